"""A decode step on a tape gives what the step itself gives, to the bit, for any later input."""

from __future__ import annotations

import gc

import pytest
import torch

from engine.kernels import cpu
from engine.kernels.cpu.tape import Arena, NotTapeable, Tape


@pytest.fixture
def ops():
    native = cpu.native()
    if native is None:
        pytest.skip(cpu.why())
    return native


def mixed(ops, x, weight, norm):
    """Kernels of ours around operations of torch: a view, one in place, one that makes a tensor."""
    y = ops.relu(ops.linear(x, weight, None))
    y = ops.rms_norm(y.view(len(x), -1), norm, 1e-6)
    y = y + 1
    y.mul_(2)
    return ops.linear(y, weight, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_play_is_the_computation_on_the_inputs_of_then(ops, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 64, dtype=dtype), torch.randn(64, 64, dtype=dtype)
    norm = torch.randn(64, dtype=dtype)
    tape = Tape(ops.replay, Arena())
    with tape.recording():
        out = mixed(ops, x, weight, norm)
    assert torch.equal(out, mixed(ops, x.clone(), weight, norm))
    assert tape.num_kernels == 4 if dtype is torch.bfloat16 or ops.variant != "portable" else True
    assert tape.num_torch_operations == 2
    for _ in range(3):
        x.copy_(torch.randn(3, 64))
        tape.play()
        assert torch.equal(out, mixed(ops, x.clone(), weight, norm))


@torch.inference_mode()
def test_tapes_share_memory_and_keep_what_they_need(ops):
    """Fresh memory is poisoned before each replay, so a replay can't rely on earlier contents."""
    torch.manual_seed(0)
    weight, norm = torch.randn(64, 64), torch.randn(64)
    arena, tapes = Arena(), []
    for rows in (1, 4, 2):
        x = torch.randn(rows, 64)
        tape = Tape(ops.replay, arena)
        with tape.recording():
            out = mixed(ops, x, weight, norm)
        tapes.append((tape, x, arena.window(out)))
        del out
    gc.collect()
    assert arena.num_bytes < 3 * 4 * 64 * 4 * 4, "no tape has every result for itself"
    for tape, x, out in tapes * 2:
        for piece in arena._free:
            piece.fill(255)
        x.normal_()
        tape.play()
        assert torch.equal(out, mixed(ops, x, weight, norm))


def test_who_looks_at_a_value_is_refused(ops):
    x = torch.ones(2)
    with (
        pytest.raises(NotTapeable, match="_local_scalar_dense"),
        Tape(ops.replay, Arena()).recording(),
    ):
        x.sum().item()
    assert x.sum().item() == 2  # nothing of the tape is left


@torch.inference_mode()
def test_many_batch_sizes_share_little_memory(ops):
    """Tapes of 1 to 64 rows, in the worst order, take a few times what the largest takes."""
    norm = torch.randn(64).bfloat16()
    totals = []
    for sizes in ([64], range(1, 65)):
        arena = Arena()
        for rows in sizes:
            tape, x = Tape(ops.replay, arena), torch.randn(rows, 64).bfloat16()
            with tape.recording():
                out = ops.rms_norm(ops.relu(ops.rms_norm(x, norm, 1e-6)), norm, 1e-6)
            arena.window(out)
            del out
        totals.append(arena.num_bytes)
    assert totals[1] <= 4 * totals[0]
