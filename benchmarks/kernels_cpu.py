"""Measure each native CPU kernel against plain torch and against the memory of this machine.

    python benchmarks/kernels_cpu.py [--threads N] [--seconds S] [--only quantized]

One round times the native kernel, torch (for quantized weights: our own product in bf16 of the same
shape), and a plain read of as many bytes, one after the other on
data that no cache holds (weights and pages rotate through more memory than the last-level cache
has; `warm` rows reuse one set). Rounds repeat; the table shows the fastest tenth of each, and the
JSON medians beside it: on a busy machine a median tells how often others interrupted, and the
fastest tenth what the kernel does. `share` is the time of the read divided by the kernel's: 100 %
is the memory's own speed.

Prints a table and writes it to kernels_cpu.json in the machine's folder of benchmarks/results/, by
number of threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import cpu_name  # noqa: E402
from benchmarks.machine_folder import machine_folder  # noqa: E402
from engine.kernels import TORCH, cpu  # noqa: E402
from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache  # noqa: E402
from engine.kernels.machine_limits import machine_limits  # noqa: E402
from engine.kernels.quantized_weight import QuantizedWeight  # noqa: E402
from engine.rounding import ceil_div  # noqa: E402
from engine.trace.command import run_command  # noqa: E402

MATRICES = {
    "OPT-125M fc1": (3072, 768),
    "SmolLM2 gate+up": (3072, 576),
    "Qwen3 gate+up": (6144, 1024),
}
ROWS = (1, 2, 4, 8, 16, 64, 256)
BLOCK = 16


class Bench:
    """Collect rows of the table. `cold`: bytes that data is rotated through."""

    def __init__(self, seconds: float, cold: int) -> None:
        self.seconds, self.cold = seconds, cold
        self.memory = torch.ones(cold // 4)
        self.place = 0
        self.results: list[dict] = []

    def read(self, num_bytes: int) -> None:
        """Read so many bytes that were not read lately."""
        count = max(num_bytes // 4, 1)
        if self.place + count > len(self.memory):
            self.place = 0
        self.memory[self.place : self.place + count].sum()
        self.place += count

    def compare(
        self,
        kernel: str,
        case: str,
        dtype: torch.dtype,
        native: Callable[[int], object],
        plain: Callable[[int], object],
        num_bytes: int,
        flops: int,
        sets: int,
        other: str = "torch",
    ) -> None:
        """Time both in turn. native(i), plain(i): one run on data set i of `sets`.

        num_bytes: what one run moves. other: what `plain` is.
        """
        times: dict[str, list[float]] = {"native": [], other: [], "read": []}
        runs = {"native": native, other: plain, "read": lambda _: self.read(num_bytes)}
        for run in runs.values():
            run(0)
        started, index = time.perf_counter(), 0
        while time.perf_counter() - started < self.seconds or len(times["read"]) < 15:
            for name, run in runs.items():
                index = (index + 1) % sets  # each run uses data that the one before didn't touch
                before = time.perf_counter()
                run(index)
                times[name].append(time.perf_counter() - before)
        fast = {name: statistics.quantiles(taken, n=10)[0] for name, taken in times.items()}
        row = {
            "kernel": kernel,
            "case": case,
            "dtype": str(dtype).removeprefix("torch."),
            "cold": sets > 1,
            **{f"{name}_us": taken * 1e6 for name, taken in fast.items()},
            **{f"{name}_median_us": statistics.median(t) * 1e6 for name, t in times.items()},
            f"faster_than_{other}": fast[other] / fast["native"],
            "share_of_bandwidth": fast["read"] / fast["native"],
            "gb_s": num_bytes / fast["native"] / 1e9,
            "gflop_s": flops / fast["native"] / 1e9,
            "rounds": len(times["read"]),
        }
        self.results.append(row)
        print(
            f"{kernel:10} {case:32} {row['dtype']:9} {'cold' if row['cold'] else 'warm'}"
            f" {row['native_us']:10.1f} {row[f'{other}_us']:10.1f}"
            f" {row[f'faster_than_{other}']:7.2f}x"
            f" {row['share_of_bandwidth']:7.0%} {row['gb_s']:7.1f} {row['gflop_s']:8.1f}",
            flush=True,
        )


def linear(bench: Bench, ops: cpu.NativeOps) -> None:
    for name, (outputs, inputs) in MATRICES.items():
        for dtype in (torch.float32, torch.bfloat16):
            size = outputs * inputs * dtype.itemsize
            first = torch.randn(outputs, inputs).to(dtype)
            plain = [first.clone() for _ in range(bench.cold // size)]
            packed = [ops.pack_weight(weight) for weight in plain]  # as a loaded model has them
            for rows in ROWS if name == "OPT-125M fc1" else (1, 4, 16):
                x = torch.randn(rows, inputs).to(dtype)
                bench.compare(
                    "linear",
                    f"{name}, {rows} rows",
                    dtype,
                    lambda i, x=x, w=packed: ops.linear(x, w[i], None),
                    lambda i, x=x, w=plain: TORCH.linear(x, w[i], None),
                    size + x.nbytes + rows * outputs * dtype.itemsize,
                    2 * rows * outputs * inputs,
                    len(plain),
                )


QUANTIZED = {  # name: (bits, group, dtype of scales, zeros of groups, offsets)
    "Q4_0": (4, 32, torch.float16, False, False),
    "Q4_1": (4, 32, torch.float16, False, True),
    "Q4_K": (4, 32, torch.float32, False, True),
    "AWQ g128": (4, 128, torch.float16, True, False),
    "Q8_0": (8, 32, torch.float16, False, False),
}
QUANTIZED_MATRICES = {
    "SmolLM2 gate+up": (3072, 576),
    "SmolLM2 down": (576, 1536),
    "Qwen3 gate+up": (6144, 1024),
    "Qwen3 down": (1024, 3072),
}


def quantized(bench: Bench, ops: cpu.NativeOps) -> None:
    """Time products with quantized weights beside our own with the same weights in bf16."""
    for name, (outputs, inputs) in QUANTIZED_MATRICES.items():
        size = outputs * inputs * 2
        first = ops.pack_weight(torch.randn(outputs, inputs).bfloat16())
        plain = [first.clone() for _ in range(bench.cold // size)]
        for form in QUANTIZED:
            weight = ops.pack_quantized(quantized_weight(form, outputs, inputs), torch.bfloat16)
            assert not isinstance(weight, QuantizedWeight)
            sets = len(plain) * size // weight.num_bytes
            packed = [replace(weight, data=weight.data.clone()) for _ in range(sets)]
            for rows in (1, 4, 16, 64, 128, 1024):
                x = torch.randn(rows, inputs).bfloat16()
                bench.compare(
                    "quantized",
                    f"{name}, {form}, {rows} rows",
                    torch.bfloat16,
                    lambda i, x=x, w=packed: ops.quantized_linear(x, w[i], None),
                    lambda i, x=x, w=plain: ops.linear(x, w[i % len(w)], None),
                    weight.num_bytes + x.nbytes + rows * outputs * 2,
                    2 * rows * outputs * inputs,
                    sets,
                    "bf16",
                )


def quantized_weight(form: str, outputs: int, inputs: int) -> QuantizedWeight:
    """Make a weight of random codes in one of the forms above."""
    bits, group, dtype, zeros, offsets = QUANTIZED[form]
    groups = outputs, ceil_div(inputs, group)
    return QuantizedWeight(
        torch.randint(0, 256, (outputs, inputs * bits // 8), dtype=torch.uint8),
        bits,
        group,
        torch.randn(groups).to(dtype),
        torch.randint(0, 16, groups, dtype=torch.int16)
        if zeros
        else 0
        if offsets
        else 1 << bits - 1,
        torch.randn(groups).to(dtype) if offsets else None,
    )


ATTENTION = {  # name: (heads, kv_heads, head_dim), (rows, tokens before, tokens now)
    "SmolLM2, 1 row at 2000": ((9, 3, 64), (1, 1999, 1)),
    "SmolLM2, 16 rows at 256": ((9, 3, 64), (16, 255, 1)),
    "SmolLM2, 64 rows at 256": ((9, 3, 64), (64, 255, 1)),
    "OPT-125M, 16 rows at 256": ((12, 12, 64), (16, 255, 1)),
    "Qwen3, 16 rows at 256": ((16, 8, 128), (16, 255, 1)),
    "SmolLM2, prompt of 128": ((9, 3, 64), (1, 0, 128)),
    "SmolLM2, prompt of 1024": ((9, 3, 64), (1, 0, 1024)),
    "SmolLM2, 256 more at 1024": ((9, 3, 64), (1, 1024, 256)),
}


def attention(bench: Bench, ops: cpu.NativeOps) -> None:
    for name, ((heads, kv_heads, dim), (rows, before, now)) in ATTENTION.items():
        for dtype in (torch.float32, torch.bfloat16):
            context, spec = before + now, AttentionSpec(heads, kv_heads, dim, dim**-0.5)
            pages = ceil_div(context, BLOCK)
            row_bytes = 2 * context * kv_heads * dim * dtype.itemsize
            sets = max(min(bench.cold // (rows * row_bytes), 64), 1)
            cache = LayerCache(
                *(torch.randn(sets * rows * pages, BLOCK, kv_heads, dim).to(dtype) for _ in "kv")
            )
            order = torch.randperm(sets * rows * pages, dtype=torch.int32)
            tables = order.view(sets, rows, pages)
            batches = [batch_of(tables[i], before, now) for i in range(sets)]
            q = torch.randn(rows * now, heads, dim).to(dtype)
            pairs = sum(before + i + 1 for i in range(now)) * rows
            bench.compare(
                "attention",
                name,
                dtype,
                lambda i, a=(q, cache, batches, spec): ops.paged_attention(
                    a[0], a[1], a[2][i], a[3]
                ),
                lambda i, a=(q, cache, batches, spec): TORCH.paged_attention(
                    a[0], a[1], a[2][i], a[3]
                ),
                rows * row_bytes + 2 * q.nbytes,
                4 * pairs * heads * dim,
                sets,
            )


def batch_of(tables: torch.Tensor, before: int, now: int) -> AttentionBatch:
    """Make a step in which every row has `before` tokens in the cache and computes `now`."""
    rows, context = len(tables), before + now
    return AttentionBatch(
        positions=torch.arange(before, context).repeat(rows),
        slot_mapping=torch.empty(0, dtype=torch.int64),
        block_tables=tables,
        query_start=torch.arange(0, rows * now + 1, now, dtype=torch.int32),
        context_lens=torch.full((rows,), context, dtype=torch.int32),
        num_decode_rows=rows if now == 1 else 0,
        block_size=BLOCK,
        query_lens=[now] * rows,
        context_lens_list=[context] * rows,
        max_context_len=context,
    )


def elementwise(bench: Bench, ops: cpu.NativeOps) -> None:
    """Time elementwise kernels on one set of data: a layer's output is still in the cache."""
    for rows in (1, 16, 512):
        for dtype in (torch.float32, torch.bfloat16):
            x, residual = torch.randn(rows, 576).to(dtype), torch.randn(rows, 576)
            weight = torch.ones(576, dtype=dtype)
            both, logits = torch.randn(rows, 3072).to(dtype), torch.randn(rows, 49152).to(dtype)
            qk, cos = torch.randn(rows, 12, 64).to(dtype), torch.randn(rows, 1, 64)
            cases: list[tuple[str, Callable[[object], object], int]] = [
                ("add_rms_norm", lambda k, a=(x, residual, weight, 1e-5): k.add_rms_norm(*a), 4),
                ("add_layer_norm",
                 lambda k, a=(x, residual, weight, weight, 1e-5): k.add_layer_norm(*a), 4),
                ("rotate", lambda k, a=(qk, cos, cos): k.rotate(*a), 4),
                ("silu_and_mul", lambda k, a=both: k.silu_and_mul(a), 4),
            ]  # fmt: skip
            for name, run, passes in cases:
                moved = passes * rows * 576 * dtype.itemsize
                bench.compare(
                    name,
                    f"SmolLM2, {rows} rows",
                    dtype,
                    lambda _, run=run: run(ops),
                    lambda _, run=run: run(TORCH),
                    rows * 4608 * dtype.itemsize if name == "silu_and_mul" else moved,
                    moved,
                    1,
                )
            if rows < 512:
                bench.compare(
                    "argmax",
                    f"49152 tokens, {rows} rows",
                    dtype,
                    lambda _, a=logits: ops.argmax(a),
                    lambda _, a=logits: a.argmax(dim=-1),
                    logits.nbytes,
                    logits.numel(),
                    1,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="of rounds for each line")
    parts = {part.__name__: part for part in (linear, quantized, attention, elementwise)}
    parser.add_argument("--only", choices=parts, help="this part of the table")
    parser.add_argument("--cold-mib", type=int, default=768, help="data is rotated through this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ops = cpu.native()
    if ops is None:
        sys.exit(cpu.why())
    limits = machine_limits()
    print(f"{cpu_name()}, {options.threads} threads, kernels for {ops.variant}")
    print(
        f"read {limits.read_gb_s:.0f} GB/s, copy {limits.copy_gb_s:.0f} GB/s, GEMM "
        + ", ".join(f"{dtype} {rate:.0f} GFLOP/s" for dtype, rate in limits.gemm_gflop_s.items())
    )
    print(
        f"{'kernel':10} {'case':32} {'dtype':9} data {'native µs':>10} {'beside µs':>10}"
        f" {'faster':>8} {'share':>7} {'GB/s':>7} {'GFLOP/s':>8}"
    )
    bench = Bench(options.seconds, options.cold_mib << 20)
    with torch.inference_mode():
        for name, part in parts.items():
            if options.only in (None, name):
                part(bench, ops)
    target = machine_folder() / "kernels_cpu.json"
    machine = {
        "processor": cpu_name(),
        "threads": options.threads,
        "variant": ops.variant,
        "load_average": Path("/proc/loadavg").read_text().split()[:3],
        "limits": {
            "read_gb_s": limits.read_gb_s,
            "copy_gb_s": limits.copy_gb_s,
            "gemm_gflop_s": limits.gemm_gflop_s,
        },
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    runs = json.loads(target.read_text()) if target.exists() else {}
    only = f", {options.only}" if options.only else ""
    runs[f"{options.threads} threads{only}"] = {"machine": machine, "results": bench.results}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
