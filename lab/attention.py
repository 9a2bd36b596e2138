"""Compare attention, naive against one pass (flash) and against pages (a chapter)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.kernels import kernels_for
from engine.kernels.batch import AttentionSpec, LayerCache
from engine.rounding import ceil_div
from lab.chapter import Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, Lines, Series
from lab.limits import best_seconds
from lab.operations import operations_of
from lab.workbench import Workbench, row_of

PASSES = 6  # over the scores: written, masked (read, written), softmax (read, written), read


@dataclass(frozen=True)
class _Heads:
    """Describe the shape of one attention layer of the model."""

    query: int
    kv: int
    dim: int

    def qkvo_numbers(self, length: int) -> int:
        return 2 * (self.query + self.kv) * self.dim * length

    def scores(self, length: int) -> int:
        return self.query * length * length


def _heads(bench: Workbench) -> _Heads:
    spec = bench.runner.model.kv_spec[0]
    return _Heads(bench.description.num_attention_heads, spec.num_kv_heads, spec.head_dim)


def _lengths(bench: Workbench) -> list[int]:
    """Choose lengths freely: only the layer is computed, not the model."""
    return [128, 256, 512, 1024] if bench.quick else [128, 256, 512, 1024, 2048]


def predict(bench: Workbench) -> list[Expectation]:
    heads, longest, size = _heads(bench), _lengths(bench)[-1], bench.dtype.itemsize
    scores, others = heads.scores(longest), heads.qkvo_numbers(longest)
    naive = (PASSES * scores + others) * size
    flops = 4.0 * scores * heads.dim
    limits = bench.limits
    return [
        Expectation(
            "memory", f"naive: memory for the scores of {longest:,} tokens", scores * size, "B",
            f"{heads.query} heads × {longest:,}² × {size} bytes",
        ),
        Expectation(
            "naive", "naive: time of a layer, at least", limits.least_s(naive, flops), "s",
            f"{PASSES} passes over the scores and all of {quantity(flops / 1e9, 'GFLOP')}",
        ),
        Expectation(
            "flash", "flash: time of a layer, at least",
            limits.least_s(others * size, flops / 2), "s",
            f"only q, k, v and the result touch memory ({quantity(others * size, 'B')}), and the"
            " half above the diagonal is left out",
        ),
    ]  # fmt: skip


@torch.inference_mode()
def run(bench: Workbench) -> Outcome:
    heads, lengths = _heads(bench), _lengths(bench)
    times: dict[str, list[tuple[float, float]]] = {}
    allocated: dict[str, int] = {}
    difference = 0.0
    for length in lengths:
        ways = _ways(bench, heads, length)
        results = [way().float() for way in ways.values()]
        difference = max(difference, *(float((r - results[0]).abs().max()) for r in results[1:]))
        for name, way in ways.items():
            seconds = best_seconds(way, bench.device, tries=3)
            times.setdefault(name, []).append((length, seconds))
            if length == lengths[-1]:
                allocated[name] = operations_of(way).largest_bytes
    last = {name: points[-1][1] for name, points in times.items()}
    naive, flash, paged = last.values()
    return Outcome(
        {"memory": allocated["naive"], "naive": naive, "flash": flash},
        [
            f"at {lengths[-1]:,} tokens flash is {quantity(naive / flash, '×')} as fast as naive;"
            f" the engine's own kernel on scattered pages"
            f" ({kernels_for(bench.device).name}) {quantity(naive / paged, '×')}",
            f"all three give the same result to {difference:.1e}, in"
            f" {str(bench.dtype).removeprefix('torch.')}",
        ],
        [
            Lines(
                "One attention layer over a whole prompt",
                "tokens",
                "seconds",
                [Series(name, points) for name, points in times.items()],
                log_x=True,
                log_y=True,
            ),
            Bars(
                f"The largest tensor that is made at {lengths[-1]:,} tokens",
                "B",
                [Bar(name, [(size, i)]) for i, (name, size) in enumerate(allocated.items())],
            ),
        ],
    )


def _ways(bench: Workbench, heads: _Heads, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return three ways to compute the same attention; each returns [length, heads, dim]."""
    device, dtype, size = bench.device, bench.dtype, bench.kv.block_size
    generator = torch.Generator().manual_seed(length)

    def draw(count: int) -> torch.Tensor:
        return torch.randn(length, count, heads.dim, generator=generator).to(device, dtype)

    q, k, v = draw(heads.query), draw(heads.kv), draw(heads.kv)
    scale, group = heads.dim**-0.5, heads.query // heads.kv
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    by_head = [
        q.transpose(0, 1).contiguous(),
        *(x.transpose(0, 1).repeat_interleave(group, dim=0) for x in (k, v)),
    ]  # each [heads, length, dim]

    def naive() -> torch.Tensor:
        scores = by_head[0] @ by_head[1].transpose(1, 2) * scale
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        return (weights @ by_head[2]).transpose(0, 1)

    def flash() -> torch.Tensor:
        queries, keys, values = (x[None] for x in by_head)
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
        return out[0].transpose(0, 1)

    pages = ceil_div(length, size)
    table = torch.randperm(pages, generator=generator).tolist()  # pages lie anywhere
    batch = row_of(length, table, size, device)
    cache = LayerCache(
        *(torch.zeros(pages, size, heads.kv, heads.dim, dtype=dtype, device=device) for _ in "kv")
    )
    spec = AttentionSpec(heads.query, heads.kv, heads.dim, scale)
    kernels = kernels_for(device)
    kernels.write_kv(k, v, cache, batch.slot_mapping)
    return {
        "naive": naive,
        "flash (torch's SDPA)": flash,
        "paged (the engine's)": lambda: kernels.paged_attention(q, cache, batch, spec),
    }


CHAPTER = Chapter(
    "attention",
    "Attention: naive, in one pass, and over pages",
    "Written down naively, attention makes a matrix of scores, of length × length for each head,"
    " and goes over it several times. Flash attention takes keys and values piece by piece, keeps"
    " a running maximum and sum, and never writes the scores down. Paged attention does the same"
    " over blocks that lie anywhere in memory.",
    predict,
    run,
    "engine/kernels/torch_attention.py",
    "paged attention in plain torch, the reference of all its kernels",
)
