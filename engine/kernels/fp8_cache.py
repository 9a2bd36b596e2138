"""Store keys and values in 8 bits: half of bf16's memory and traffic, for some accuracy.

Only the cache holds such numbers. They are rounded to nearest when written; a number that is too
large becomes the largest (a plain cast would make infinity of it). Attention converts them back to
the model's dtype before it computes. Scale 1: keys and values of known models are far from 448.
"""

from __future__ import annotations

import torch

from engine.fp8_formats import E4M3, E5M2

LARGEST = {getattr(torch, fp8.torch_name): fp8.largest for fp8 in (E4M3, E5M2)}
"""The dtypes, each with its largest number."""


def computed_in(stored: torch.dtype, model: torch.dtype) -> torch.dtype:
    """Return the dtype that attention computes in: the cache's, unless that dtype only stores."""
    return model if stored in LARGEST else stored


def stored_as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round x to what a cache of `dtype` holds."""
    largest = LARGEST.get(dtype)
    return x.to(dtype) if largest is None else x.float().clamp(-largest, largest).to(dtype)


def as_bytes(pages: torch.Tensor) -> torch.Tensor:
    """View pages in a dtype that can be gathered and scattered: 8-bit floats can't."""
    return pages.view(torch.uint8) if pages.dtype in LARGEST else pages
