"""Speed on the device, each figure beside what bandwidth allows: random weights in real shapes."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, OPTConfig, PretrainedConfig, Qwen3Config

from benchmarks.gpu.kernel_checks import on_device
from benchmarks.gpu.limits import Limits, seconds
from benchmarks.gpu.paged_step import finite, make_step
from benchmarks.run_engine import Engine
from benchmarks.workloads import Job, Workload
from engine.kernels import Kernels
from engine.layers.attention_batch import AttentionSpec

SHAPES: dict[str, PretrainedConfig] = {
    "llama-2-7b": LlamaConfig(dtype="bfloat16"),  # transformers' defaults are this model
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "opt-125m": OPTConfig(),  # transformers' default is this model
    "tiny": LlamaConfig(
        vocab_size=199,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    ),
}


@dataclass(frozen=True)
class Case:
    """A line of the table: `jobs` requests, lengths drawn uniformly from the two ranges."""

    shape: str
    jobs: int
    lengths_in: tuple[int, int]
    lengths_out: tuple[int, int]
    trace: str = "steps"


CASES = [
    Case("llama-2-7b", 1, (32, 32), (256, 256)),
    Case("llama-3.2-1b", 1, (32, 32), (256, 256)),
    Case("qwen3-0.6b", 256, (100, 1024), (100, 1024)),
    Case("qwen3-0.6b", 256, (100, 1024), (100, 1024), trace="off"),
    *(Case("opt-125m", jobs, (32, 256), (32, 256)) for jobs in (1, 5, 32, 256)),
]
TINY_CASES = [Case("tiny", 1, (5, 5), (4, 4)), Case("tiny", 3, (3, 9), (2, 5), trace="off")]


def run_case(case: Case, device: torch.device, limits: Limits, folder: Path) -> dict:
    """Tokens per second, and the time that reading weights and keys would take alone."""
    shape = SHAPES[case.shape]
    where = folder / case.shape
    shape.save_pretrained(where)
    if not shape.architectures:  # a configuration that no model saved names none
        shape.architectures = [f"{type(shape).__name__.removesuffix('Config')}ForCausalLM"]
        shape.save_pretrained(where)
    dtype = torch.bfloat16
    engine = Engine(
        str(where),
        "bfloat16",
        case.trace,
        device=device.type,
        load_format="dummy",
        **({"num_gpu_blocks_override": 64, "swap_space": 0.0} if case.shape == "tiny" else {}),
    )
    draw = random.Random(0)
    jobs = [
        Job(
            [draw.randrange(10, shape.vocab_size) for _ in range(draw.randint(*case.lengths_in))],
            draw.randint(*case.lengths_out),
        )
        for _ in range(case.jobs)
    ]
    warm = Workload("warm", "", [Job(jobs[0].prompt, min(8, jobs[0].num_output))])
    engine.run(warm)
    result = engine.run(Workload("run", "", jobs))
    runner = engine.core.executor
    weights = sum(p.nbytes for p in runner.model.parameters())
    if not shape.tie_word_embeddings:  # a step reads single lines of the input's table
        weights -= shape.vocab_size * shape.hidden_size * dtype.itemsize
    per_token = sum(2 * kv.num_kv_heads * kv.head_dim for kv in runner.model.kv_spec)
    contexts = sum(sum(range(len(job.prompt), len(job.prompt) + job.num_output)) for job in jobs)
    longest = max(job.num_output for job in jobs)
    least = (longest * weights + contexts * per_token * dtype.itemsize) / limits.copy_gb_s / 1e9
    ends = sorted(result.ends_s)
    output = sum(job.num_output for job in jobs)
    engine.core.close()
    engine.recorder.close()
    del engine, runner
    gc.collect()
    return {
        "shape": case.shape,
        "requests": case.jobs,
        "trace": case.trace,
        "output_tokens": output,
        "tokens_per_s": output / result.total_s,
        "seconds": result.total_s,
        "seconds_by_bandwidth": least,
        "share_of_limit": least / result.total_s,
        "first_token_s": result.first_token_s,
        "p50_s": ends[len(ends) // 2],
        "p95_s": ends[int(len(ends) * 0.95)],
        "p99_s": ends[int(len(ends) * 0.99)],
    }


def decode_attention(
    kernels: Kernels, device: torch.device, limits: Limits, rows: int, context: int
) -> dict:
    """Paged decode attention alone: bytes of keys and values over time, against bandwidth."""
    cache, batch = make_step([(context - 1, 1)] * rows, 8, 128, 16, torch.float16)
    cache, batch = on_device(finite(cache), batch, device)
    spec = AttentionSpec(32, 8, 128, 128**-0.5)
    q = torch.randn(rows, 32, 128, device=device).half()
    tries = 20 if device.type == "cuda" else 1
    taken = seconds(lambda: kernels.paged_attention(q, cache, batch, spec), device, tries)
    moved = 2 * rows * context * 8 * 128 * 2
    return {
        "rows": rows,
        "context": context,
        "us": taken * 1e6,
        "gb_s": moved / taken / 1e9,
        "share_of_limit": moved / taken / 1e9 / limits.copy_gb_s,
    }
