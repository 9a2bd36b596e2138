"""Define the elementwise operations and the matrix product in plain torch, for every backend.

Each is the reference of its fused kernels, and runs where there is none. `x` is [tokens, width]
unless its argument says otherwise; results are new tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.placeholders import NO_TOKEN

VOCABULARY_PART = 8192
"""Rows of a head that are widened to fp32 at once, where it must be: a few MB."""


def embed(
    ids: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor | None = None,
    position_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute table[ids], plus position_table[positions] where a model has one (OPT).

    ids, positions: int64 [tokens]; tables: [entries, width] → [tokens, width] in fp32 (of fp64:
    fp64), for the residual stream begins here. In bf16 it would be rounded twice in each layer,
    which changes more of the most probable tokens than all other rounding together.
    """
    x = _wide(F.embedding(ids, table))
    if positions is None or position_table is None:
        return x
    return x + F.embedding(positions, position_table)


def angles(
    positions: torch.Tensor, inv_freq: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute cos and sin of position * inv_freq, times scale, as `rotate` takes them.

    positions: int64 [tokens], inv_freq: fp32 [D / 2] → cos, sin: fp32 [tokens, 1, D].
    """
    turned = positions[:, None, None].float() * inv_freq
    cos, sin = turned.cos() * scale, turned.sin() * scale
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return weight [N, K] in the order of this backend's `linear` and `embed`: unchanged."""
    return weight


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wide: bool = False
) -> torch.Tensor:
    """Compute x Wᵀ + b. x: [tokens, K], weight: [N, K], bias: [N] → [tokens, N].

    wide: a backend may return fp32, as 16-bit numbers are added up, where that costs nothing. torch
    rounds what it returns.
    """
    return F.linear(x, weight, bias)


def logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute x Wᵀ in fp32 (of fp64: fp64).

    x: [rows, K], weight: [vocabulary, K] → [rows, vocabulary].

    The products of 16-bit numbers are added in fp32 and stay there. In bf16, numbers between 16 and
    32, where the greatest logits lie, are 0.125 apart: the first two would often be equal.
    """
    if x.dtype in (torch.float32, torch.float64):
        return F.linear(x, weight)
    if x.is_cuda:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    x = x.float()  # torch's product of these on a CPU rounds what it returns
    return torch.cat([F.linear(x, part.float()) for part in weight.split(VOCABULARY_PART)], dim=1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute x / sqrt(mean(x²) + eps) * weight over the last dimension, in fp32.

    x: [..., width]. The result has the weight's dtype; x may be wider, as the residual stream is.
    """
    if x.dtype is weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(_wide(x), weight.shape, weight.to(_wide(x).dtype), eps).to(weight.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rms_norm(x + residual), x + residual): a block's end and the next one's beginning.

    The sum is kept in the wider dtype of the two.
    """
    total = x + residual
    return rms_norm(total, weight, eps), total


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Compute (x − mean) / sqrt(var + eps) * weight + bias over the last dimension, in fp32.

    The result has the weight's dtype, or x's without one.
    """
    if weight is None or x.dtype is weight.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    x = _wide(x)
    bias = None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias, eps).to(weight.dtype)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (layer_norm(x + residual), x + residual in the wider dtype of the two).

    The norm has the weight's dtype, or x's without one.
    """
    total = x + residual
    return layer_norm(total, weight, bias, eps).to((x if weight is None else weight).dtype), total


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return x in fp32, or as it is if it has more digits."""
    return x if x.dtype is torch.float64 else x.float()


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Compute silu(gate) * up. x: [tokens, 2 * width], gate then up → [tokens, width]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def relu(x: torch.Tensor) -> torch.Tensor:
    """Compute max(x, 0) in place, for any shape, and return x."""
    return x.relu_()


def greatest(x: torch.Tensor) -> torch.Tensor:
    """Return the place of each row's largest value, the first of equals.

    x: [rows, width] → int64 [rows]. `max` is documented to name the first; on the CPU it is twice
    as fast as `argmax`. `NO_TOKEN` where the largest isn't finite; a NaN is larger than anything.
    """
    best = x.max(dim=-1)
    return torch.where(best.values.abs() < torch.inf, best.indices, NO_TOKEN)


def mask_logits(logits: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor) -> None:
    """Set the logits of forbidden tokens to −∞, in some rows, in place.

    logits: fp32 [*, width]; masks: int32 [rows, words], bit t % 32 of word t // 32 is 1 where token
    t is allowed; rows: int64 [rows], which line of logits each mask is for, none twice.
    """
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    allowed = ((masks[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[1]].bool()
    logits[rows] = logits[rows].masked_fill(~allowed, -torch.inf)


def take_drawn(token_ids: torch.Tensor, drawn: torch.Tensor, places: torch.Tensor) -> None:
    """Replace each negative token by `drawn[place]`; if that is `NO_TOKEN`, by token 0.

    token_ids, places: int64 [rows]; drawn: int64 [tokens drawn by the step before].
    """
    unknown = token_ids < 0
    token_ids[unknown] = drawn[places[unknown]].clamp_min_(0)


def take_inputs(
    packed: torch.Tensor, staged: torch.Tensor, rows: int, drawn: torch.Tensor | None
) -> None:
    """Copy the first `rows` columns of a decode step's inputs to the device, without waiting.

    packed: int64 [5, n], on the device: token ids, positions, slots, places, and lengths, which
    have 32 bits each. staged: the same, on the host. drawn: see `take_drawn`, with these places.
    """
    packed[:, :rows].copy_(staged[:, :rows], non_blocking=True)
    if drawn is not None:
        take_drawn(packed[0, :rows], drawn, packed[3, :rows])


def hand_out(tokens: torch.Tensor, there: torch.Tensor) -> None:
    """Copy tokens, int64 [rows], to the host, without waiting. there: int64 [rows], on the host."""
    there.copy_(tokens, non_blocking=True)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embedding (Su et al., 2021) on halves: dimension i turns with i + D/2.

    x: [tokens, heads, D]; cos, sin: [tokens, 1, D] fp32, sin negated in its first half, so that x *
    cos + swap(x) * sin is the rotation. Returns fp32 on bf16 input: attention wants q and k in the
    cache's dtype, and rounding them twice would lose digits.
    """
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((right, left), dim=-1), sin)
