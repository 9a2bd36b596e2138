"""State what the worker needs of a model."""

from __future__ import annotations

from typing import Protocol

import torch

from engine.kernels.batch import AttentionBatch, LayerCache, LayerKV


class CausalLM(Protocol):
    """Declare what the worker calls on a model."""

    architecture: str
    implementation: str  # "native" or "transformers adapter"
    vocab_size: int
    max_model_len: int  # positions that the model can tell apart

    @property
    def kv_spec(self) -> list[LayerKV]:
        """Return one entry for each attention layer, in the order of `caches`."""
        ...

    def __call__(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: list[LayerCache],
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Compute hidden states. input_ids, positions: int64 [tokens] → hidden [tokens, width]."""
        ...

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits. hidden: [n, width] → [n, vocabulary], in fp32."""
        ...
