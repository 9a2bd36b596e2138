"""What deciding, bookkeeping and recording cost a step: the core alone, on a worker that takes no
time.

    python -m benchmarks.core_cost

64 requests decode; the pool has 1,000 or 100,000 blocks; the record is off, at `steps`, or at
`full`. CPU time of all threads of the process counts, so the recorder's drain thread, which writes
a JSONL file, is included.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest, KVShape, StepOutput, StepPlan
from engine.sampling_params import SamplingParams
from engine.trace.files import JsonlWriter
from engine.trace.recorder import Recorder

NUM_REQUESTS = 64
STEPS = 400
REPEATS = 7


class NoWork:
    """An executor that draws token 1 for every row at once."""

    def __init__(self, num_blocks: int):
        self.kv = KVShape(
            num_blocks=num_blocks,
            num_host_blocks=0,
            block_size=16,
            bytes_per_block=0,
            max_model_len=4096,
            vocab_size=1000,
        )

    def execute(self, plan: StepPlan) -> StepOutput:
        return StepOutput(step=plan.step, tokens=[[1]] * len(plan.rows))


def step_cost_us(num_blocks: int, trace: str, num_requests: int = NUM_REQUESTS) -> dict[str, float]:
    """Microseconds of wall and of CPU time that one decode step of `num_requests` takes."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(level=trace)
        recorder.subscribe(JsonlWriter(str(Path(folder) / "trace.jsonl")))
        config = EngineConfig(max_num_seqs=num_requests, enable_prefix_caching=True)
        core = EngineCore(config, NoWork(num_blocks), recorder)
        for i in range(num_requests):
            params = SamplingParams(max_tokens=STEPS + 10, ignore_eos=True, seed=0)
            prompt = [i] * 16
            core.add_request(
                CoreRequest(request_id=f"r{i}", prompt_token_ids=prompt, params=params)
            )
        for _ in range(5):
            core.step()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            core.step()
        recorder.flush()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        recorder.close()
    return {"wall_us": wall / STEPS * 1e6, "cpu_us": cpu / STEPS * 1e6}


def measure() -> list[dict]:
    """Medians over interleaved repeats, one row for each pool size and level."""
    cases = [(2_000, "off"), (2_000, "steps"), (2_000, "full"), (100_000, "steps")]
    seen: dict[tuple[int, str], list[dict[str, float]]] = {case: [] for case in cases}
    gc.collect()
    gc.freeze()  # as the server does when it has loaded
    for _ in range(REPEATS):
        for case in cases:
            seen[case].append(step_cost_us(*case))
    gc.unfreeze()
    return [
        {
            "requests": NUM_REQUESTS,
            "blocks": blocks,
            "trace": trace,
            "wall_us": round(statistics.median(r["wall_us"] for r in runs), 1),
            "cpu_us": round(statistics.median(r["cpu_us"] for r in runs), 1),
        }
        for (blocks, trace), runs in seen.items()
    ]


if __name__ == "__main__":
    for row in measure():
        print(row)
