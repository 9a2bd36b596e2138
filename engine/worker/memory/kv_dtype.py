"""Choose the dtype of the pages (`--kv-cache-dtype`), or say why it can't be had here."""

from __future__ import annotations

import torch

from engine.config import ConfigError
from engine.fp8_formats import FP8_FORMATS
from engine.kernels import kernels_for


def chosen_kv_dtype(wanted: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of the pages. wanted: the option; None for auto.

    Raises `ConfigError` where the device's kernels can't convert it.
    """
    fp8 = FP8_FORMATS.get(wanted)
    if fp8 is None:
        return None
    dtype: torch.dtype = getattr(torch, fp8.torch_name)
    if fp8.since is None or device.type != "cuda":
        return dtype
    capability = torch.cuda.get_device_capability(device)
    if kernels_for(device).name == "triton" and capability < fp8.since:
        needed, has = (".".join(map(str, version)) for version in (fp8.since, capability))
        raise ConfigError(
            f"--kv-cache-dtype {wanted} needs a GPU of compute capability {needed} or later (Ada,"
            f" Hopper); {torch.cuda.get_device_name(device)} has {has}: use fp8_e5m2, or auto."
        )
    return dtype
