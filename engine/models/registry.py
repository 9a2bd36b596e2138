"""Which class serves which architecture: ours where there is one, else the transformers adapter."""

from __future__ import annotations

from typing import Protocol

import torch
from transformers import PretrainedConfig

from engine.layers.attention_batch import AttentionBatch, LayerCache, LayerKV
from engine.models.llama import LlamaModel
from engine.models.opt import OPTModel

NATIVE: dict[str, type[LlamaModel] | type[OPTModel]] = {
    "LlamaForCausalLM": LlamaModel,
    "MistralForCausalLM": LlamaModel,
    "Qwen2ForCausalLM": LlamaModel,
    "Qwen3ForCausalLM": LlamaModel,
    "OPTForCausalLM": OPTModel,
}
"""By the name that config.json gives under `architectures`."""


class CausalLM(Protocol):
    """What the worker needs of a model."""

    architecture: str
    implementation: str  # "native" or "transformers adapter"
    vocab_size: int
    max_model_len: int  # positions that the model can tell apart

    @property
    def kv_spec(self) -> list[LayerKV]:
        """One for each attention layer, in the order of `caches`."""
        ...

    def __call__(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: list[LayerCache],
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """input_ids, positions: int64 [tokens] → hidden [tokens, width]."""
        ...

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [n, width] → [n, vocabulary], in the model's dtype."""
        ...


def native_class(config: PretrainedConfig) -> type[LlamaModel] | type[OPTModel] | None:
    """Our own class for this model, or None where the adapter has to serve it."""
    names = config.architectures or []
    found = NATIVE.get(names[0]) if names else None
    return found if found is not None and found.supports(config) else None
