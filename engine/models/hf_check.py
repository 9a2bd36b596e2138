"""Refuse models of transformers that the adapter can't serve exactly, by name and with the reason.

Three checks, each for what the one before lets through: what config.json says; what the layers ask
of the attention function; the logits, where the adapter, fed in pieces over pages, must agree with
the model's own eager attention on the whole text. The last finds any state that the pages don't
hold (recurrent layers, convolutions) and any position or mask that a model makes by itself.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from engine.kernels.batch import AttentionBatch, LayerCache
from engine.models.causal_lm import CausalLM
from engine.models.errors import ModelError
from engine.one_line import one_line
from engine.rounding import ceil_div

LAYER_TYPES = {"full_attention", "sliding_attention"}

HANDLED = {"sliding_window", "softcap", "s_aux"}
"""Arguments of the attention function that change its result, and that `Attention` computes."""

HARMLESS = {
    "dropout",  # not in inference
    "position_ids",
    "cache_position",
    "past_key_values",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "logits_to_keep",
    "layer_idx",
    "deterministic",
    "position_embeddings",  # applied to q and k already
}

TEXT_LENGTH = 23
"""Tokens of the comparison: more than one page, and cut so that every kind of row occurs."""

PAGE = 8


def refusal(architecture: str, reason: str) -> ModelError:
    reason = one_line(reason)
    return ModelError(f"{architecture} can't be served: {reason.rstrip('.')}.")


def refuse_by_config(config: PretrainedConfig, architecture: str) -> None:
    """Refuse models whose class or config.json rules them out. Raises `ModelError`."""
    if config.is_encoder_decoder:
        raise refusal(architecture, "it is an encoder-decoder, not a causal language model")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise refusal(architecture, "transformers has no causal language model for it")
    if getattr(model_class, "_is_stateful", False):
        raise refusal(architecture, "its recurrent layers keep a state that KV pages can't hold")
    if not getattr(model_class, "_supports_attention_backend", False):
        raise refusal(
            architecture, "its code in transformers does not let its attention be replaced"
        )
    text = config.get_text_config()
    others = set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES
    if others:
        raise refusal(architecture, f"it has layers of type {', '.join(sorted(others))}")
    if getattr(text, "attention_chunk_size", None):
        raise refusal(architecture, "its attention is chunked (attention_chunk_size)")


def refuse_by_calls(
    calls: list[tuple[nn.Module, dict[str, Any]]], config: PretrainedConfig, architecture: str
) -> None:
    """Refuse what layers ask for and paged attention doesn't do. Raises `ModelError`.

    calls: of each layer the module and the arguments that it passed, beside q, k, v and scaling.
    """
    if not calls:
        raise refusal(architecture, "none of its layers calls the attention function")
    if len({module for module, _ in calls}) < len(calls):
        raise refusal(architecture, "a layer attends twice in one step")
    layer_types = getattr(config, "layer_types", None)
    for module, arguments in calls:
        if arguments.get("value_dim") is not None:
            raise refusal(architecture, "its values are of another width than its keys (MLA)")
        if getattr(module, "is_causal", True) is False or arguments.get("is_causal") is False:
            raise refusal(architecture, "its attention is not causal")
        for name, value in arguments.items():
            if value is not None and name not in HANDLED | HARMLESS | {"is_causal"}:
                raise refusal(architecture, f"its attention needs {name}, which we don't compute")
        index = getattr(module, "layer_idx", None)
        slides = layer_types and index is not None and layer_types[index] == "sliding_attention"
        if slides and arguments.get("sliding_window") is None:
            raise refusal(architecture, "it has sliding windows that it does not pass on")


@torch.inference_mode()
def compare_with_eager(
    adapter: CausalLM,
    inner: PreTrainedModel,
    attention_name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise `ModelError` unless the adapter agrees with the model's own attention.

    Two copies of one short text, each cut at a different place, so that decode rows and chunks
    share a batch.
    """
    generator = torch.Generator().manual_seed(0)
    length = min(TEXT_LENGTH, adapter.max_model_len)
    text = torch.randint(0, adapter.vocab_size, (length,), generator=generator).to(device)
    inner.set_attn_implementation("eager")
    try:
        expected = inner(input_ids=text[None], use_cache=False).logits[0].float()
    except Exception as error:  # whatever a model's own code raises
        raise refusal(adapter.architecture, f"it does not run: {error}") from error
    finally:
        inner.set_attn_implementation(attention_name)
    try:
        found = _logits_in_pieces(adapter, text, dtype).float()
    except Exception as error:  # whatever a model's own code raises
        raise refusal(adapter.architecture, f"it does not run on pages: {error}") from error
    spread = expected.std().clamp(min=1e-6)
    distance = float((found - expected[None]).abs().mean() / spread)
    # a mean, because in half precision a router may send single tokens to other experts
    limit = 1e-3 if dtype == torch.float32 else 0.1
    if not distance <= limit:  # NaN fails too
        raise refusal(
            adapter.architecture,
            f"on pages its logits differ from its own by {distance:.2g} of their spread",
        )


def _logits_in_pieces(adapter: CausalLM, text: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return logits [2, length, vocabulary]: two rows of the same text, cut at different places."""
    length, device = len(text), text.device
    pages = ceil_div(length, PAGE)
    caches = []
    for kv in adapter.kv_spec:
        shape = (2 * pages, PAGE, kv.num_kv_heads, kv.head_dim)
        k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        caches.append(LayerCache(k, v))
    tables = torch.arange(2 * pages, device=device, dtype=torch.int32).view(pages, 2).T
    parts: list[list[torch.Tensor]] = [[], []]
    cuts = [(0, 0), (1, length // 2), (length // 3, length - 1), (length, length)]
    for starts, ends in itertools.pairwise(cuts):
        rows = [row for row in (0, 1) if ends[row] > starts[row]]
        rows.sort(key=lambda row: ends[row] - starts[row] != 1)  # decode rows first
        lengths = [ends[row] - starts[row] for row in rows]
        positions = torch.cat([torch.arange(starts[row], ends[row], device=device) for row in rows])
        row_of = torch.repeat_interleave(
            torch.tensor(rows, device=device), torch.tensor(lengths, device=device)
        )
        batch = AttentionBatch(
            positions=positions,
            slot_mapping=tables[row_of, positions // PAGE].long() * PAGE + positions % PAGE,
            block_tables=tables[rows].contiguous(),
            query_start=torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32),
            context_lens=torch.tensor([ends[r] for r in rows], device=device, dtype=torch.int32),
            num_decode_rows=sum(count == 1 for count in lengths),
            block_size=PAGE,
            query_lens=lengths,
            context_lens_list=[ends[row] for row in rows],
            max_context_len=max(ends[row] for row in rows),
        )
        hidden = adapter(text[positions], positions, caches, batch)
        logits = adapter.compute_logits(hidden)
        for row, part in zip(rows, logits.split(lengths)):
            parts[row].append(part)
    return torch.stack([torch.cat(part) for part in parts])
