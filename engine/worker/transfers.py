"""To the device and back without waiting for it.

Memory that the system may page out can only be copied while the host waits, and it then waits for
all that was launched before. So everything goes by way of pinned memory; torch keeps that from
being used again before its copy has been made.
"""

from __future__ import annotations

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of the array, on a CPU the same memory."""
    return pinned(torch.from_numpy(np.ascontiguousarray(array)), device)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host, on the device."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> np.ndarray:
    """A copy in the host's memory: to be read when the device has passed a later event."""
    if tensor.device.type != "cuda":
        return tensor.numpy().copy()  # the next step may be played onto the same memory
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return there.copy_(tensor, non_blocking=True).numpy()
