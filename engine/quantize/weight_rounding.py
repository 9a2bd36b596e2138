"""Choose scales and zero points for groups of weights, and round weights to codes.

w ≈ (code − zero) · scale        code in 0 … 2^bits − 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Grid:
    """Hold what a format allows."""

    bits: int
    group: int  # inputs that share a scale; it must divide K
    symmetric: bool  # zero is the middle code, so that only the scale is stored
    scale_dtype: torch.dtype = torch.float16

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def last(self) -> int:
        return (1 << self.bits) - 1


class Rounded(NamedTuple):
    """Hold a rounded matrix."""

    codes: torch.Tensor  # uint8 [N, K]
    scales: torch.Tensor  # in the grid's dtype [N, K / group]
    zeros: torch.Tensor  # int16 [N, K / group]

    def numbers(self) -> torch.Tensor:
        """Return what the codes stand for: fp32 [N, K]."""
        group = self.codes.shape[1] // self.scales.shape[1]
        zeros = self.zeros.float().repeat_interleave(group, 1)
        return (self.codes.float() - zeros) * self.scales.float().repeat_interleave(group, 1)


def choose_scales(weight: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a scale and a zero for each row of one group.

    weight: fp32 [N, group] → scales [N] as they will be stored, zeros int16 [N].
    """
    if grid.symmetric:
        # The number of the greatest magnitude becomes code 0, the only one so far from the middle:
        # so the scale may be negative. This is how llama.cpp's Q4_0 is made, too.
        greatest = weight.gather(1, weight.abs().argmax(1, keepdim=True))[:, 0]
        scales = greatest / -grid.middle
        zeros = torch.full_like(scales, grid.middle)
    else:
        least, most = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        scales = (most - least) / grid.last
        zeros = (-least / scales).nan_to_num(0.0, 0.0, 0.0).round()
    scales = scales.to(grid.scale_dtype)
    scales[scales == 0] = 1.0  # a group of zeros
    return scales, zeros.clamp(0, grid.last).to(torch.int16)


def to_codes(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Round to the nearest code. weight: fp32 [N, n], scales and zeros: [N] → uint8 [N, n]."""
    codes = (weight / scales.float()[:, None]).round() + zeros.float()[:, None]
    return codes.clamp(0, grid.last).to(torch.uint8)


def round_to_nearest(weight: torch.Tensor, grid: Grid) -> Rounded:
    """Round each weight by itself. weight: [N, K]."""
    parts = weight.float().split(grid.group, dim=1)
    scales, zeros = zip(*(choose_scales(part, grid) for part in parts))
    codes = [to_codes(*group, grid) for group in zip(parts, scales, zeros)]
    return Rounded(torch.cat(codes, 1), torch.stack(scales, 1), torch.stack(zeros, 1))
