"""Multiply some tokens by quantized weights on tensor cores, expanding codes a tile at a time.

It is `quantized.quantized_linear` for up to `MOST_ROWS` rows in 16 bits: too many to multiply one
by one, and too few to pay for writing what the codes stand for and reading it again. Weights are
rounded to x's dtype, as in the reference.

Grid: (pieces of N, pieces of the rows). Sums run over K in one program, first input to last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.code_words import PackedWords, input_of, numbers_at
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

MOST_ROWS = 64
BLOCK_N = 32
BLOCK_W = 16  # words of a line: the least that a product on tensor cores reduces over
NUM_WARPS = 4
NUM_STAGES = 3


@triton.jit(do_not_specialize=["rows"])
def tiled_quantized_kernel(
    x_ptr,  # [rows, K], contiguous
    words_ptr,  # int32 [N, K * BITS / 32]: code_words.py
    scales_ptr,  # [N, groups]
    zeros_ptr,  # int16 [N, groups]; read when ZEROS
    offsets_ptr,  # [N, groups]; read when OFFSETS
    table_ptr,  # fp32 [16], when TABLES [N, 16]; read when KIND is TABLE
    bias_ptr,  # [N]; read when BIAS
    out_ptr,  # [rows, N], its rows `out_stride` apart
    rows,
    N,
    out_stride,
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
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    PLACES: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PLACES
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    line = tl.minimum(n, N - 1).to(tl.int64)[:, None]
    word = tl.arange(0, BLOCK_W)
    x_at = (
        x_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * K + input_of(word, BITS)[None, :]
    )
    table_at = table_ptr + line * (16 if TABLES else 0)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, WORDS, BLOCK_W):
        real = (word < WORDS - first)[None, :]
        words = tl.load(words_ptr + line * WORDS + (first + word)[None, :], real, 0)
        for place in tl.static_range(PLACES):
            if (4 * place) % SPAN == 0:
                group = ((first + word) // 4 * (4 * PLACES) + 4 * place) // GROUP
                at = line * GROUPS + group[None, :]
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
            x = tl.load(x_at + first * PLACES + 4 * place, real, 0.0)
            sums = tl.dot(x, tl.trans(number.to(x.dtype)), sums, input_precision="ieee")
    if BIAS:
        sums += tl.load(bias_ptr + tl.minimum(n, N - 1)).to(tl.float32)[None, :]
    tl.store(
        out_ptr + row.to(tl.int64)[:, None] * out_stride + n[None, :],
        sums.to(out_ptr.dtype.element_ty),
        mask=(row < rows)[:, None] & (n < N)[None, :],
    )


def tile(rows: int) -> dict[str, int]:
    """Choose how a launch is cut; not tried on a card."""
    return {
        "BLOCK_M": min(64, max(16, triton.next_power_of_2(rows))),
        "BLOCK_N": BLOCK_N,
        "BLOCK_W": BLOCK_W,
    }


def tiled_quantized(
    x: torch.Tensor, weight: PackedWords, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Launch the product once for up to `MOST_ROWS` rows.

    x: [rows, K] in 16 bits, contiguous, its inputs in the order of the codes. out: [rows, N].
    """
    rows, (outputs, inputs) = len(x), weight.shape
    cut = tile(rows)
    grid = (triton.cdiv(outputs, cut["BLOCK_N"]), triton.cdiv(rows, cut["BLOCK_M"]))
    moved = x.nbytes + weight.num_bytes + out.numel() * out.element_size()
    start(
        "linear_quantized",
        tiled_quantized_kernel,
        grid,
        (
            *(x, *weight.pointers, x if bias is None else bias, out),
            *(rows, outputs, out.stride(0), weight.factor),
        ),
        {**weight.constants, "BIAS": int(bias is not None), **cut},
        NUM_WARPS,
        NUM_STAGES,
        lambda: Cost(
            list(grid),
            moved,
            2 * rows * outputs * inputs,
            str(x.dtype).removeprefix("torch."),
            f"{rows} rows are worth tensor cores, and not writing the weights: {weight.said}",
        ),
    )
