"""Choose the dtype of the pages (`--kv-cache-dtype`), or say why it can't be had here."""

from __future__ import annotations

import torch

from engine.config import ConfigError
from engine.kernels import kernels_for

E4M3_SINCE = (8, 9)
"""Compute capability from which Triton converts e4m3 (Ada, Hopper and later); e5m2 is the upper
half of a float16, and any GPU can split one."""

NAMED = {
    "fp8": torch.float8_e4m3fn,  # as vLLM has it
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def chosen_kv_dtype(wanted: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of the pages. wanted: the option; None for auto.

    Raises `ConfigError` where the device's kernels can't convert it.
    """
    dtype = NAMED.get(wanted)
    if dtype != torch.float8_e4m3fn or device.type != "cuda":
        return dtype
    capability = torch.cuda.get_device_capability(device)
    if kernels_for(device).name == "triton" and capability < E4M3_SINCE:
        raise ConfigError(
            f"--kv-cache-dtype {wanted} needs a GPU of compute capability 8.9 or later (Ada,"
            f" Hopper); {torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}:"
            " use fp8_e5m2, or auto."
        )
    return dtype
