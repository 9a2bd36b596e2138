"""Multiply few tokens by quantized weights, whose codes are read once, as fast as memory allows.

It is `quantized.quantized_linear` for up to `MAX_ROWS` rows. As in `skinny.py`, a program has a few
outputs and all of K, and asks for its next codes before it uses these. Codes become numbers in
registers, in fp32 and exactly; a group's scale multiplies the sum over the group:

    sum over k of x w  =  scale * (sum of x value  -  zero * sum of x)  +  offset * sum of x

and a factor of all weights, where there is one, the sum of all groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.code_words import BLOCK_WORDS, PackedWords, input_of, numbers_at
from engine.kernels.triton.start import let_next_start, start, wait_for_previous
from engine.trace.wording import count

MAX_ROWS = 4
IN_FLIGHT = 2048  # words of a program's lines that are loaded at once: 8 KB
MAX_WORDS = 512
WARP = 32 * BLOCK_WORDS  # words that a warp loads at once


@triton.jit(do_not_specialize=["rows"])
def skinny_quantized_kernel(
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
    ROWS: tl.constexpr,  # rows, rounded up to a power of two
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,  # words of a line that are multiplied at once
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    PLACES: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PLACES
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
    WHOLE: tl.constexpr = WORDS % BLOCK_W == 0
    row = tl.arange(0, ROWS)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # what is beyond the last row or line repeats it, and isn't stored
    line = tl.minimum(n, N - 1).to(tl.int64)[None, :, None]
    word = tl.arange(0, BLOCK_W)
    words_at = words_ptr + line * WORDS + word[None, None, :]
    x_at = (
        x_ptr + tl.minimum(row, rows - 1)[:, None, None] * K + input_of(word, BITS)[None, None, :]
    )
    table_at = table_ptr + line * (16 if TABLES else 0)
    words = tl.load(words_at, (word < WORDS)[None, None, :], 0, eviction_policy="evict_first")
    wait_for_previous(PDL)

    sums = tl.zeros([ROWS, BLOCK_N, BLOCK_W], tl.float32)
    for first in range(0, WORDS, BLOCK_W):
        this = words
        there = (word < WORDS - BLOCK_W - first)[None, None, :]
        words = tl.load(words_at + first + BLOCK_W, there, 0, eviction_policy="evict_first")
        real = (word < WORDS - first)[None, None, :]
        part = tl.zeros([ROWS, BLOCK_N, BLOCK_W], tl.float32)
        of_x = tl.zeros([ROWS, 1, BLOCK_W], tl.float32)
        for place in tl.static_range(PLACES):
            at = x_at + first * PLACES + 4 * place
            if WHOLE:
                x = tl.load(at).to(tl.float32)
            else:
                x = tl.load(at, real, 0.0).to(tl.float32)
            part += x * numbers_at(this, table_at, place, BITS, KIND, ZERO)
            if ZEROS or OFFSETS:
                of_x += x
            if (4 * place + 4) % SPAN == 0:
                group = ((first + word) // 4 * (4 * PLACES) + 4 * place) // GROUP
                at = line * GROUPS + group[None, None, :]
                if ZEROS:
                    part -= tl.load(zeros_ptr + at, real, 0).to(tl.float32) * of_x
                sums += tl.load(scales_ptr + at, real, 0.0).to(tl.float32) * part
                if OFFSETS:
                    sums += tl.load(offsets_ptr + at, real, 0.0).to(tl.float32) * of_x
                part = tl.zeros([ROWS, BLOCK_N, BLOCK_W], tl.float32)
                of_x = tl.zeros([ROWS, 1, BLOCK_W], tl.float32)

    out = tl.sum(sums, 2)
    if FACTOR:
        out *= factor
    if BIAS:
        out += tl.load(bias_ptr + tl.minimum(n, N - 1)).to(tl.float32)[None, :]
    tl.store(
        out_ptr + row.to(tl.int64)[:, None] * out_stride + n[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=(row < rows)[:, None] & (n < N)[None, :],
    )


def tile(rows: int, num_words: int) -> dict[str, int]:
    """Choose how a launch is cut: few lines a program, each with many bytes in flight.

    num_words: of a line. By the rule that suits `skinny.py` on an H200; not tried on a card.
    """
    padded = triton.next_power_of_2(rows)
    words = min(MAX_WORDS, triton.next_power_of_2(num_words))
    return {
        "ROWS": padded,
        "BLOCK_N": max(1, min(8, IN_FLIGHT // words) // padded),
        "BLOCK_W": words,
    }


def warps(cut: dict[str, int]) -> int:
    """Return the warps that load a line of a tile at once, a block for each thread."""
    return max(1, cut["BLOCK_W"] // WARP)


def skinny_quantized(
    x: torch.Tensor, weight: PackedWords, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Launch the product once for 1 to `MAX_ROWS` rows.

    x: [rows, K], contiguous, its inputs in the order of the codes. out: [rows, N].
    """
    rows, (outputs, inputs) = len(x), weight.shape
    cut = tile(rows, weight.words.shape[1])
    grid = (triton.cdiv(outputs, cut["BLOCK_N"]),)
    moved = x.nbytes + weight.num_bytes + out.numel() * out.element_size()
    start(
        "linear_quantized",
        skinny_quantized_kernel,
        grid,
        (
            *(x, *weight.pointers, x if bias is None else bias, out),
            *(rows, outputs, out.stride(0), weight.factor),
        ),
        {**weight.constants, "BIAS": int(bias is not None), **cut},
        warps(cut),
        1,
        lambda: Cost(
            list(grid),
            moved,
            2 * rows * outputs * inputs,
            why=f"{count(rows, 'row')} {'reuses' if rows == 1 else 'reuse'} no"
            f" code: each is read once, {weight.said}",
        ),
    )
