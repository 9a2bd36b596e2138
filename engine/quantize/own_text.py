"""Let a model write text, collect what its layers see while reading it, and measure it on that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS, LENGTH = 16, 128  # sequences; tokens of each
SEEDS = {"calibrate": 1, "measure": 2}


def write_text(model: PreTrainedModel, purpose: str, first: int) -> torch.Tensor:
    """Sample texts from the model itself: int64 [TEXTS, LENGTH].

    first: the token that each begins with.
    """
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(SEEDS[purpose])
        begin = torch.full((TEXTS, 1), first)
        options: Any = {"do_sample": True, "top_k": 0, "pad_token_id": first, "eos_token_id": None}
        written = model.generate(  # type: ignore[operator]
            begin, attention_mask=torch.ones_like(begin), max_new_tokens=LENGTH - 1, **options
        )
    return written.clone()


def loss(model: PreTrainedModel, texts: torch.Tensor) -> float:
    """Return the mean negative log-likelihood of a token, in nats."""
    with torch.inference_mode():
        logits = model(texts).logits[:, :-1].float().flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, texts[:, 1:].flatten()))


class _Enough(Exception):
    """End a forward pass when all that was wanted is there."""


def inputs_of(
    model: PreTrainedModel, layers: dict[str, torch.nn.Module], texts: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return Σ x xᵀ over all that each layer reads: fp32 [K, K] by the layer's name."""
    found: dict[str, torch.Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0].detach().float().flatten(0, -2)
            found[name] = x.t() @ x
            if len(found) == len(layers):
                raise _Enough

        return hook

    with _hooked({name: (layer, note(name)) for name, layer in layers.items()}):
        try:
            with torch.inference_mode():
                model(texts)
        except _Enough:
            pass
    return found


@contextmanager
def _hooked(hooks: dict[str, tuple[torch.nn.Module, Any]]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(hook) for layer, hook in hooks.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
