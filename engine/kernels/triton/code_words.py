"""Lay quantized weights out for CUDA, and turn their codes into numbers inside of kernels.

A word of 32 bits holds 8 codes of 4 bits or 4 of 8 bits. Four words are a block: 16 bytes, which a
thread loads at once, with the codes of 32 or 16 neighbouring inputs. Place i of word j belongs to
input 4i + j of the block, so that one place of a block's four words needs four neighbours of x:

    word 0: inputs 0 4 8 …     word 1: inputs 1 5 9 …     word 2: 2 6 10 …     word 3: 3 7 11 …
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import triton
import triton.language as tl

from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div

BLOCK_WORDS = 4
HALF = 16  # inputs: what shares a scale for certain, also where a block has two groups
PACKED_AT_ONCE = 1 << 24
"""Codes that are laid out at once, about: it takes some three bytes for each meanwhile."""


class CodeKind(IntEnum):
    """Name how numbers are made of codes."""

    INTEGER = 0
    TABLE = 1  # of 16 entries
    FLOAT8 = 2  # e4m3, without NaN


@dataclass(frozen=True, eq=False)
class PackedWords:
    """Hold a quantized weight as the kernels read it.

    words: int32 [N, K * bits / 32]. scales, zeros, offsets: [N, groups]. table: fp32 [16], or
    [N, 16] where each row has its own. inputs: int64 [K], for code k the input of x.
    """

    words: torch.Tensor
    shape: tuple[int, int]
    bits: int
    kind: CodeKind
    group: int
    zero: int  # of all groups, beside their own
    scales: torch.Tensor
    zeros: torch.Tensor | None
    offsets: torch.Tensor | None
    table: torch.Tensor | None
    inputs: torch.Tensor | None
    factor: float  # multiplies all weights last

    @property
    def num_bytes(self) -> int:
        parts = self.words, self.scales, self.zeros, self.offsets, self.table, self.inputs
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def pointers(self) -> tuple[torch.Tensor, ...]:
        """Return words, scales, zeros, offsets and table; what isn't there is never read."""
        others = (self.scales, self.zeros, self.offsets, self.table)
        return self.words, *(self.scales if part is None else part for part in others)

    @property
    def said(self) -> str:
        """Describe its codes, for the record."""
        bits = 8 * self.num_bytes / (self.shape[0] * self.shape[1])
        return f"{self.kind.name.lower()}s in groups of {self.group}, {bits:.2f} bits a weight"

    @property
    def constants(self) -> dict[str, int]:
        """Return what the kernels must know of it when they are compiled."""
        return format_constants(
            self.shape[1],
            self.group,
            self.bits,
            self.kind,
            self.zero,
            self.zeros is not None,
            self.offsets is not None,
            self.table is not None and self.table.dim() == 2,
            self.factor != 1.0,
        )


def format_constants(
    inputs: int,
    group: int,
    bits: int,
    kind: CodeKind,
    zero: int = 0,
    zeros: bool = False,
    offsets: bool = False,
    tables: bool = False,
    factor: bool = False,
) -> dict[str, int]:
    """Return the compile-time arguments that say how weights are stored."""
    block = BLOCK_WORDS * 32 // bits
    return {
        "K": inputs,
        "GROUP": group,
        "SPAN": block if group % block == 0 else HALF,
        "BITS": bits,
        "KIND": int(kind),
        "ZERO": zero,
        "ZEROS": int(zeros),
        "OFFSETS": int(offsets),
        "TABLES": int(tables),
        "FACTOR": int(factor),
    }


def pack_quantized(weight: QuantizedWeight, dtype: torch.dtype) -> PackedWords | QuantizedWeight:
    """Lay out a weight for the kernels; what they don't take is returned unchanged.

    One layout is for rows of any dtype.

    They take any N. K must fill blocks, and groups, if there are several, must be multiples of 16.
    """
    _, inputs = weight.shape
    block = BLOCK_WORDS * 32 // weight.bits
    group = min(weight.group, inputs)
    if inputs % block or (group < inputs and group % HALF):
        return weight
    zero = weight.zero if isinstance(weight.zero, int) else 0
    table, kind = weight.table, CodeKind.INTEGER
    if weight.codes.dtype is not torch.uint8:
        kind = CodeKind.FLOAT8
    elif table is not None:
        kind = CodeKind.TABLE
    if (kind is CodeKind.TABLE and weight.bits == 8) or (kind is CodeKind.FLOAT8 and zero):
        return weight
    return PackedWords(
        _words(weight.codes.view(torch.uint8), weight.bits),
        weight.shape,
        weight.bits,
        kind,
        group,
        zero if kind is CodeKind.INTEGER else 0,
        _scales(weight),
        weight.zero if isinstance(weight.zero, torch.Tensor) else None,
        None if weight.offsets is None else weight.offsets.contiguous(),
        None if table is None else (table.float() - zero).contiguous(),
        weight.inputs,
        weight.factor,
    )


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Order codes as words. codes: uint8 [N, K * bits / 8] → int32 [N, K * bits / 32]."""
    rows, width = codes.shape
    words = torch.empty(rows, width // 4, dtype=torch.int32, device=codes.device)
    step = max(1, PACKED_AT_ONCE // width)
    for start in range(0, rows, step):
        part = codes[start : start + step]
        if bits == 4:
            part = torch.stack((part & 15, part >> 4), dim=-1)
        places = part.reshape(len(part), -1, 32 // bits, BLOCK_WORDS)
        if bits == 4:
            places = places[:, :, ::2] | places[:, :, 1::2] << 4
        # [rows, blocks, byte of a word, word] → a word's bytes beside each other
        in_words = places.transpose(2, 3).contiguous().view(torch.int32)
        words[start : start + step] = in_words.reshape(len(part), -1)
    return words


def _scales(weight: QuantizedWeight) -> torch.Tensor:
    """Return the scales: ones where the weight has none."""
    if weight.scales is not None:
        return weight.scales.contiguous()
    shape = weight.shape[0], ceil_div(weight.shape[1], weight.group)
    return torch.ones(shape, dtype=torch.bfloat16, device=weight.codes.device)


@triton.jit
def numbers_at(
    words,  # int32, of any shape
    table_at,  # pointers to the first entries of the lines' tables; used when KIND is TABLE
    PLACE: tl.constexpr,
    BITS: tl.constexpr,
    KIND: tl.constexpr,
    ZERO: tl.constexpr,
):
    """Return what the codes at one place of each word stand for, before zeros and scales."""
    code = (words >> (BITS * PLACE)) & ((1 << BITS) - 1)
    if KIND == 0:  # 2^23 + code, by its bits: cheaper than a conversion, and as exact
        return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + ZERO)
    elif KIND == 1:
        return tl.load(table_at + code)
    else:  # e4m3's bits are those of an fp32 whose exponent is 120 too small
        bits = ((code & 127) << 20) | ((code & 128) << 24)
        return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def input_of(word, BITS: tl.constexpr):
    """Return the input of place 0 of each word; place i's is 4i further. word: int32 [n]."""
    inputs = word // 4 * (128 // BITS) + word % 4
    return tl.max_contiguous(tl.multiple_of(inputs, (4,)), (4,))
