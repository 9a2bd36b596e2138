"""Serve any causal language model of transformers, with its attention replaced by ours.

transformers lets us register an attention function. Ours (`_attend`) gets each layer's q, k and v
with positions already applied, writes them to the pages and attends there. Everything else of the
model runs as transformers wrote it, on all rows of the step at once, as one text of T tokens with
the positions that we name. What a layer needs (heads, window, soft-cap, sinks) is observed in a
first run on one token, not guessed from config.json.

A model that this can't serve exactly is refused by name: `hf_check` has the reasons, and compares
the finished adapter with the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import AttentionInterface
from transformers.utils import ModelOutput

from engine.kernels import kernels_for
from engine.kernels.batch import AttentionBatch, LayerCache, LayerKV
from engine.layers.attention import Attention
from engine.models import hf_check
from engine.models.checkpoint import is_computed
from engine.models.errors import ModelError
from engine.models.length import max_model_len
from engine.one_line import one_line

ATTENTION_NAME = "glasshouse_paged"
DUMMY_SEED = 0


class TransformersModel(nn.Module):
    """Run a model of transformers whose attention is computed over our pages."""

    implementation = "transformers adapter"

    def __init__(
        self,
        folder: Path,
        config: PretrainedConfig,
        device: torch.device,
        dtype: torch.dtype,
        dummy: bool = False,
    ) -> None:
        """Load the weights from `folder` (dummy: random ones). Raises `ModelError`."""
        super().__init__()
        text_config = config.get_text_config()
        self.architecture = (config.architectures or [config.model_type])[0]
        self.vocab_size = text_config.vocab_size
        hf_check.refuse_by_config(config, self.architecture)
        self.max_model_len = max_model_len(text_config)
        self.inner = _make(config, dtype) if dummy else _load(folder, config, dtype)
        self.inner.eval().requires_grad_(False)
        nn.Module.to(self.inner, device)
        _widen_head(self.inner)
        self._step = _Step()
        for module in self.inner.modules():  # how `_attend` finds the step from a module
            module.__dict__["paged_step"] = self._step
        self._decoder = _replaceable_decoder(self.inner, self._step)
        self._attentions = self._probe(device)
        hf_check.compare_with_eager(self, self.inner, ATTENTION_NAME, device, dtype)

    @property
    def kv_spec(self) -> list[LayerKV]:
        return [attention.kv for attention in self._attentions]

    @property
    def has_head_of_its_own(self) -> bool:
        """Return whether the head is separate although config.json ties it to the embeddings."""
        if not getattr(self.inner.config, "tie_word_embeddings", False):
            return False
        table, head = self.inner.get_input_embeddings(), self.inner.get_output_embeddings()
        return head is not None and getattr(head, "weight", None) is not getattr(
            table, "weight", None
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: list[LayerCache],
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Compute hidden states. input_ids, positions: int64 [tokens] → hidden [tokens, width]."""
        self._step.caches, self._step.batch = caches, batch
        try:
            output = self._decoder(
                input_ids=input_ids[None], position_ids=positions[None], use_cache=False
            )
        finally:
            self._step.caches, self._step.batch = [], None
        self._step.output_type = type(output)
        return output.last_hidden_state[0]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits. hidden: [n, width] → [n, vocabulary], in fp32.

        Each model scales and caps its logits in its own way, inside the forward of the whole model.
        So that forward runs here, with a decoder that only returns the hidden states that we have.
        """
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        self._step.hidden = hidden[None]
        try:
            return self.inner(input_ids=ids, use_cache=False).logits[0].float()
        finally:
            self._step.hidden = None

    def _probe(self, device: torch.device) -> list[Attention]:
        """Run one token and make an `Attention` for each layer that asks for one."""
        calls: list[_Call] = []
        self._step.probe = calls
        token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        try:
            with torch.inference_mode():
                self._decoder(input_ids=token, position_ids=token, use_cache=False)
        except ModelError:
            raise
        except Exception as error:  # whatever a model's own code raises
            raise hf_check.refusal(self.architecture, f"it does not run: {error}") from error
        finally:
            self._step.probe = None
        hf_check.refuse_by_calls(
            [(call.module, call.arguments) for call in calls],
            self.inner.config.get_text_config(),
            self.architecture,
        )
        attentions = []
        for index, call in enumerate(calls):
            attentions.append(call.attention(index))
            self._step.attentions[call.module] = attentions[-1]
        return attentions


@dataclass
class _Call:
    """Hold one call of the attention function, as the probe saw it."""

    module: nn.Module
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    scaling: float | None
    arguments: dict[str, Any]

    def attention(self, index: int) -> Attention:
        return Attention(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.head_dim**-0.5 if self.scaling is None else float(self.scaling),
            index,
            sliding_window=self.arguments.get("sliding_window"),
            soft_cap=self.arguments.get("softcap"),
            sinks=self.arguments.get("s_aux"),
        )


@dataclass
class _Step:
    """Hold what `_attend` and the decoder's stand-in need of the current step."""

    caches: list[LayerCache] = field(default_factory=list)
    batch: AttentionBatch | None = None
    attentions: dict[nn.Module, Attention] = field(default_factory=dict)
    probe: list[_Call] | None = None  # collects calls instead of computing them
    hidden: torch.Tensor | None = None  # given: the decoder returns it instead of computing
    output_type: type[ModelOutput] = ModelOutput


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention when transformers asks for it.

    query: [1, heads, T, D], key, value: [1, kv_heads, T, D] → ([1, T, heads, D], None).
    """
    step: _Step = module.__dict__["paged_step"]
    if step.probe is not None:
        if attention_mask is not None:
            arguments["attention_mask"] = attention_mask
        heads, head_dim = query.shape[1], query.shape[3]
        kv_heads, value_dim = value.shape[1], value.shape[3]
        arguments["value_dim"] = None if value_dim == head_dim else value_dim
        call = _Call(module, heads, kv_heads, head_dim, value_dim, scaling, arguments)
        step.probe.append(call)
        return query.new_zeros(1, query.shape[2], heads, value_dim), None
    attention = step.attentions[module]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    assert step.batch is not None  # `forward` has set it
    return attention(q, k, v, step.caches[attention.layer_index], step.batch)[None], None


AttentionInterface.register(ATTENTION_NAME, _attend)


def _make(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Make the model with transformers' random weights, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DUMMY_SEED)
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION_NAME, trust_remote_code=False
        )


def _load(folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model with its weights. Raises `ModelError` where some are missing or left over."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise ModelError(f"the model in {folder} can't be loaded: {reason}") from None
    model, report = loaded
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(name) for name in report.get(f"{kind}_keys") or ())
        names = [name for name in names if not is_computed(name)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"the checkpoint in {folder} does not fit its config.json: {kind} weights"
                f" {', '.join(names[:3])}{more}."
            )
    return model


def _widen_head(inner: PreTrainedModel) -> None:
    """Make the model's head return fp32 (`torch_ops.logits`), where it is a plain linear layer."""
    head: Any = inner.get_output_embeddings()
    if not _is_plain_linear(head):
        return

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = kernels_for(hidden.device).logits(rows, head.weight)
        if head.bias is not None:
            logits += head.bias
        return logits.view(*hidden.shape[:-1], -1)

    head.forward = forward  # on this instance only


def _is_plain_linear(module: object) -> bool:
    return type(module) is nn.Linear


def _replaceable_decoder(inner: PreTrainedModel, step: _Step) -> nn.Module:
    """Return the part before the head, made to return `step.hidden` when that is given."""
    decoder = inner.get_decoder()
    compute = decoder.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        if step.hidden is None:
            return compute(*arguments, **named)
        return step.output_type(last_hidden_state=step.hidden)

    decoder.forward = forward  # on this instance only
    return decoder
