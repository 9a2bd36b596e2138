"""Copy to the device and back without waiting for it.

The host must wait while pageable memory is copied, and for everything launched before the copy. So
everything goes by way of pinned memory; torch reuses that only after its copy has been made.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from engine.kernels import asynchronous, kernels_for

STAGED = 3
"""Pieces of pinned memory that steps use in turn: one may still be copied for the current step and
one for the step before it."""


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to the device; on a CPU, share its memory."""
    return pinned(torch.from_numpy(np.ascontiguousarray(array)), device)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to the device by way of pinned memory."""
    if not asynchronous(device):
        return tensor
    if not tensor.numel():
        return torch.empty_like(tensor, device=device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to the host's memory: read it when the device has passed a later event."""
    if not asynchronous(tensor.device):
        return tensor.numpy().copy()  # the next step may be replayed onto the same memory
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return there.copy_(tensor, non_blocking=True).numpy()


class Outbox:
    """Receive the tokens of each step on the host."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Allocate the host's memory. size: tokens of a step, at most."""
        pieces = range(STAGED if asynchronous(device) else 0)
        self._pieces = deque(torch.zeros(size, dtype=torch.int64, pin_memory=True) for _ in pieces)

    def take(self, tokens: torch.Tensor) -> np.ndarray:
        """Copy the tokens, int64 [draws], to the host's memory.

        Read them after the device has passed a later event, and before two more steps are launched.
        """
        if not self._pieces:
            return to_host(tokens)
        self._pieces.rotate()
        there = self._pieces[0][: len(tokens)]
        kernels_for(tokens.device).hand_out(tokens, there)
        return there.numpy()
