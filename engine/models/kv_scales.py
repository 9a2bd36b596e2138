"""Report scales for an 8-bit KV cache that some checkpoints bring; they are not used.

A checkpoint calibrated for such a cache holds for each layer the number by which keys (values) are
to be divided before they are stored: their greatest over 448 (the largest of e4m3). Our cache
stores at scale 1 (`kernels/fp8_cache.py`): 8-bit floats are as exact for small numbers as for large
ones down to 2^-6, so a scale only matters where a number would not fit. That is refused by name.

Names: compressed-tensors and vLLM save `self_attn.k_scale` and `self_attn.v_scale`; ModelOpt puts
them below `k_proj` and `v_proj`; older ones have one `self_attn.kv_scale` for both.
"""

from __future__ import annotations

import math
import re

from engine.fp8_formats import E4M3, E5M2, FP8_FORMATS
from engine.models.errors import ModelError

_SCALE = re.compile(r"\.self_attn\.((attn|[kv]_proj)\.)?(k|v|kv)_scale$")
CALIBRATED_TO = E4M3.largest  # the greatest number divided by its scale


def is_kv_scale(name: str) -> bool:
    """Return whether a tensor of this name is such a scale."""
    return _SCALE.search(name) is not None


def judge(scales: dict[str, float], kv_cache_dtype: str) -> str:
    """Return a line for the log, "" if there is nothing to say, as without an 8-bit cache.

    scales: greatest number of each such tensor, by its name. kv_cache_dtype: the option. Raises
    `ModelError` where numbers would be cut off.
    """
    fp8 = FP8_FORMATS.get(kv_cache_dtype)
    largest = None if fp8 is None else fp8.largest  # at scale 1
    if not scales or largest is None:
        return ""
    name = max(scales, key=lambda name: (math.isnan(scales[name]), scales[name]))
    reach = scales[name] * CALIBRATED_TO
    if not reach <= largest:  # NaN, too
        raise ModelError(
            f"{name} is {scales[name]:.3g}: numbers up to {reach:,.0f}, but --kv-cache-dtype"
            f" {kv_cache_dtype} holds {largest:,} here (scales are not applied); use"
            f" {'fp8_e5m2 or auto' if reach <= E5M2.largest else 'auto'}."
        )
    return (
        f"the checkpoint's {len(scales)} scales for an 8-bit KV cache are not used:"
        f" {kv_cache_dtype} holds numbers up to {largest:,} without, and by them they reach"
        f" {reach:,.4g}"
    )
