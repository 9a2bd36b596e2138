"""Write the numbers that codes stand for: some rows of a quantized weight, in Triton.

It is `quantized.quantized_embed`, and the first half of `quantized.quantized_linear` for many rows,
where cuBLAS multiplies by what is written. An offset is added without rounding the product before
it, where the reference rounds twice; all else is equal to the bit.

Grid: (rows, pieces of their words).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.code_words import PackedWords, input_of, numbers_at
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

PIECE = 512  # words
NUM_WARPS = 4


@triton.jit(do_not_specialize=["first"])
def expand_kernel(
    ids_ptr,  # int64 [rows]; read when IDS
    words_ptr,  # int32 [N, K * BITS / 32]: code_words.py
    scales_ptr,  # [N, groups]
    zeros_ptr,  # int16 [N, groups]; read when ZEROS
    offsets_ptr,  # [N, groups]; read when OFFSETS
    table_ptr,  # fp32 [16], when TABLES [N, 16]; read when KIND is TABLE
    out_ptr,  # [rows, K]
    first,  # of the weight's rows; used when not IDS
    N,
    factor,  # of all weights; used when FACTOR
    K: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,  # inputs of a block that share a scale
    BITS: tl.constexpr,
    KIND: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    OFFSETS: tl.constexpr,
    TABLES: tl.constexpr,
    FACTOR: tl.constexpr,
    IDS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    PLACES: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PLACES
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
    row = tl.program_id(0).to(tl.int64)
    line = first + row
    if IDS:
        line = tl.load(ids_ptr + row)
    known = (line >= 0) & (line < N)
    line = tl.where(known, line, 0)
    word = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    real = word < WORDS
    words = tl.load(words_ptr + line * WORDS + word, real, 0)
    table_at = table_ptr + line * (16 if TABLES else 0)
    inputs = input_of(word, BITS)
    for place in tl.static_range(PLACES):
        if (4 * place) % SPAN == 0:
            at = line * GROUPS + (word // 4 * (4 * PLACES) + 4 * place) // GROUP
            scale = tl.load(scales_ptr + at, real, 0.0).to(tl.float32)
            if ZEROS:
                zero = tl.load(zeros_ptr + at, real, 0).to(tl.float32)
            if OFFSETS:
                offset = tl.load(offsets_ptr + at, real, 0.0).to(tl.float32)
        number = numbers_at(words, table_at, place, BITS, KIND, ZERO)
        if ZEROS:
            number -= zero
        number *= scale
        if OFFSETS:
            number += offset
        if FACTOR:
            number *= factor
        number = tl.where(known, number, float("nan"))  # as embed.py: a token that isn't there
        tl.store(
            out_ptr + row * K + inputs + 4 * place, number.to(out_ptr.dtype.element_ty), mask=real
        )


def expand(
    weight: PackedWords, rows: slice | torch.Tensor, dtype: torch.dtype, name: str
) -> torch.Tensor:
    """Launch the expansion of some rows: [rows, K], in the order of the codes.

    rows: a range of the weight's, or ids: int64 [rows], contiguous; one that isn't there gives NaN.
    name: in the record.
    """
    outputs, inputs = weight.shape
    ids = rows if isinstance(rows, torch.Tensor) else None
    first = rows.start if isinstance(rows, slice) else 0
    count = len(rows) if isinstance(rows, torch.Tensor) else rows.stop - rows.start
    out = torch.empty((count, inputs), dtype=dtype, device=weight.words.device)
    grid = (count, triton.cdiv(weight.words.shape[1], PIECE))
    moved = out.nbytes + count * weight.num_bytes // outputs
    start(
        name,
        expand_kernel,
        grid,
        (
            *(weight.words if ids is None else ids, *weight.pointers, out),
            *(first, outputs, weight.factor),
        ),
        {**weight.constants, "IDS": int(ids is not None), "BLOCK_W": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), moved, 2 * count * inputs, why=f"rows × pieces of {weight.said}"),
    )
    return out
