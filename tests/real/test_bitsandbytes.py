"""What bitsandbytes itself stores is read to the bit; skipped where it isn't installed."""

from __future__ import annotations

import pytest
import torch

from engine.models.filling import expanded
from engine.models.formats.bitsandbytes import BitsAndBytes

functional = pytest.importorskip("bitsandbytes.functional")

SHAPE = 96, 256  # of whole blocks: where blocks cross rows, its own expansion on a CPU is wrong


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) / 10


def read(packed: torch.Tensor, state, shape: tuple[int, int]) -> torch.Tensor:
    """What the loader reads from the tensors that a checkpoint has."""
    stored = {f".weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return expanded(BitsAndBytes({}).filling("layer", {".weight": packed, **stored}, shape))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block", [64, 128])
def test_4_bits(kind, nested, block):
    packed, state = functional.quantize_4bit(
        weights(*SHAPE), blocksize=block, compress_statistics=nested, quant_type=kind
    )
    wanted = functional.dequantize_4bit(packed, state)
    assert torch.equal(read(packed, state, SHAPE), wanted.float())


def test_blocks_that_cross_rows():
    """10 % is what 4 bits cost; with scales of other blocks it would be 20 %."""
    shape = 96, 192
    packed, state = functional.quantize_4bit(weights(*shape), blocksize=128, quant_type="nf4")
    error = read(packed, state, shape) - weights(*shape)
    assert float(error.norm() / weights(*shape).norm()) < 0.11


def test_8_bits():
    codes, most, _ = functional.int8_vectorwise_quant(weights(*SHAPE).half())
    wanted = functional.int8_vectorwise_dequant(codes, most)
    stored = {".weight": codes, ".SCB": most, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = expanded(BitsAndBytes({"load_in_8bit": True}).filling("layer", stored, SHAPE))
    assert torch.equal(found, wanted.float())
