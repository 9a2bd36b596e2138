"""Multiply one weight matrix by more and more tokens, against this machine's limits (a chapter).

The limits are what memory and arithmetic allow.
"""

from __future__ import annotations

from functools import partial

import torch

from engine.kernels import kernels_for
from engine.kernels.machine_limits import BUFFER_BYTES
from lab.chapter import Chapter, Expectation, Outcome, quantity
from lab.drawings import Lines, Series
from lab.limits import best_seconds
from lab.workbench import Workbench

WIDTH = 4096
FEW = 1


def _matrix(bench: Workbench) -> tuple[int, int]:
    """Return (rows, bytes) of a weight matrix [rows, WIDTH] in the model's dtype.

    It is as large as the buffer on which the bandwidth is measured, because a matrix that fits a
    cache would not be read from memory.
    """
    return BUFFER_BYTES // (WIDTH * bench.dtype.itemsize), BUFFER_BYTES


def _token_counts(bench: Workbench) -> list[int]:
    return [1, 4, 16, 64] if bench.quick else [1, 4, 16, 64, 256]


def _least(bench: Workbench, tokens: int) -> float:
    rows, num_bytes = _matrix(bench)
    return bench.limits.least_s(num_bytes, 2.0 * rows * WIDTH * tokens)


def predict(bench: Workbench) -> list[Expectation]:
    limits, many = bench.limits, _token_counts(bench)[-1]
    rows, num_bytes = _matrix(bench)
    flops = 2.0 * rows * WIDTH * many
    return [
        Expectation(
            "few",
            f"{quantity(num_bytes, 'B')} of weights × {FEW} token",
            _least(bench, FEW),
            "s",
            f"every weight is read once: {quantity(num_bytes, 'B')} at"
            f" {quantity(limits.read_gb_s, 'GB/s')}",
        ),
        Expectation(
            "many",
            f"the same weights × {many} tokens",
            _least(bench, many),
            "s",
            f"the larger of that and {quantity(flops / 1e9, 'GFLOP')} at"
            f" {quantity(limits.gemm_gflop_s, 'GFLOP/s')}",
        ),
    ]


def run(bench: Workbench) -> Outcome:
    rows, num_bytes = _matrix(bench)
    counts, linear = _token_counts(bench), kernels_for(bench.device).linear
    weight = torch.full((rows, WIDTH), 0.01, dtype=bench.dtype, device=bench.device)
    seconds = {}
    for count in counts:
        x = torch.full((count, WIDTH), 0.01, dtype=bench.dtype, device=bench.device)
        seconds[count] = best_seconds(partial(linear, x, weight, None), bench.device, tries=3)
    many = counts[-1]
    limits = bench.limits
    size = num_bytes // (rows * WIDTH)
    balance = limits.gemm_gflop_s * size / (2 * limits.read_gb_s)
    return Outcome(
        {"few": seconds[FEW], "many": seconds[many]},
        [
            f"memory {quantity(limits.read_gb_s, 'GB/s')} (read), a large product"
            f" {quantity(limits.gemm_gflop_s, 'GFLOP/s')} in"
            f" {str(bench.dtype).removeprefix('torch.')}",
            f"{many} tokens take {quantity(seconds[many] / seconds[FEW], '×')} as long as one, not"
            f" {many}×: they share the reading of the weights. On paper that ends at"
            f" {balance:,.0f} tokens, where arithmetic takes as long as memory.",
        ],
        [
            Lines(
                "One matrix product, by the number of tokens that share it",
                "tokens",
                "seconds",
                [
                    Series("measured", [(n, seconds[n]) for n in counts]),
                    Series("the machine's limit", [(n, _least(bench, n)) for n in counts]),
                ],
                log_x=True,
                log_y=True,
            )
        ],
    )


CHAPTER = Chapter(
    "machine",
    "The machine and its two limits",
    "A step of a language model multiplies all of its weights with the tokens that it computes."
    " With few tokens it waits for the memory that delivers the weights, with many for the"
    " arithmetic. Everything that an engine does about speed is to move between these two limits.",
    predict,
    run,
    "engine/kernels/machine_limits.py",
    "how the two limits are measured",
)
