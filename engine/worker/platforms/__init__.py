"""Do what differs between kinds of device: one file for each kind.

A new kind needs a class as `Platform` states it, its line in `PLATFORMS`, and its line in
`BACKENDS` (`engine/kernels/__init__.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.worker.platforms.cpu import CpuPlatform
from engine.worker.platforms.cuda import CudaPlatform
from engine.worker.platforms.platform import Platform

PLATFORMS: dict[str, Callable[[torch.device], Platform]] = {
    "cpu": CpuPlatform,
    "cuda": CudaPlatform,
}
"""By `torch.device.type`."""


def platform_for(device: torch.device) -> Platform:
    """Return the platform of a device."""
    return PLATFORMS[device.type](device)
