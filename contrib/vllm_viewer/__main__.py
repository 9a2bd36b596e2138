"""Record a real vLLM: `python -m contrib.vllm_viewer MODEL -o record.jsonl`, in vLLM's environment.

Runs prompts that share their beginnings through a pool so small that some are preempted, then folds
the record as a reader does, and says what is in it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from engine.trace.command import run_command

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, which ends when this one does
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
BLOCK = 32  # tokens; vLLM's attention on a CPU wants a multiple of 32


def main() -> int:
    """Return 0 if the record can be folded to its end, 1 if not, 2 without vLLM."""
    parser = argparse.ArgumentParser(prog="python -m contrib.vllm_viewer", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, default=Path("vllm-record.jsonl"))
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--num-gpu-blocks", type=int, default=24)
    parser.add_argument("--plain", action="store_true", help="without async scheduling")
    arguments = parser.parse_args()
    os.environ.update(SETTINGS, GLASSHOUSE_RECORD=str(arguments.output))
    try:
        _run(arguments)
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        print("vLLM isn't installed here: run this with the python that has it.", file=sys.stderr)
        return 2
    return _check(arguments.output)


def _run(arguments: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams  # reads the environment when it is imported

    name = "PlainRecordingScheduler" if arguments.plain else "RecordingScheduler"
    llm = LLM(
        model=arguments.model,
        max_model_len=512,
        max_num_seqs=6,
        block_size=BLOCK,
        num_gpu_blocks_override=arguments.num_gpu_blocks,
        skip_tokenizer_init=True,
        enforce_eager=True,  # compiling takes minutes, and changes no decision
        async_scheduling=not arguments.plain,
        scheduler_cls=f"contrib.vllm_viewer.scheduler.{name}",
    )
    common = [5 + i % 90 for i in range(2 * BLOCK)]
    prompts = [
        {"prompt_token_ids": [*common, *(7 + (13 * number + i) % 90 for i in range(20))]}
        for number in range(arguments.requests)
    ]
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True, detokenize=False)
    llm.generate(prompts, params, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()


def _check(path: Path) -> int:
    from engine.trace.events import kind
    from engine.trace.files import read_all
    from engine.trace.replay import Replay, ReplayError

    events = read_all(path)
    found = Counter(kind(event) for event in events)
    print("\n".join(f"{number:6,} {name}" for name, number in sorted(found.items())))
    replay = Replay()
    try:
        for event in events:
            replay.fold(event)
        replay.check()
    except ReplayError as problem:
        print(f"the record can't be folded: {problem}")
        return 1
    missing = {"request.finished", "step.finished", "request.preempted", "block.shared"} - {*found}
    print(f"{path}: it folds to its end" + (f", but has no {sorted(missing)}" if missing else ""))
    return 0


if __name__ == "__main__":
    run_command(main)
