"""Compare what proposals by prompt look-up gain here and in vLLM, on the same cores and weights.

    python -m benchmarks.peers.ngram    writes benchmarks/results/<machine>/ngram.{json,md}

SmolLM2 with its real weights answers the prompts of `benchmarks.speculation`, one at a time and
greedily. Both systems are in processes of their own, each with its proposals and without, and take
turns; both look for the same number of tokens, and propose as many. Each prompt's time is the
shortest of the rounds: in the first one its beginning isn't in the prefix cache yet.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from benchmarks.peers.in_process import Worker
from benchmarks.peers.install import Peers
from benchmarks.peers.results import ENGINE
from benchmarks.speculation import KINDS
from engine.models.hub import find_model
from engine.trace.command import run_command
from engine.worker.host import physical_cores

MODEL, DTYPE = "smollm2", "bfloat16"
CONFIG = {
    "method": "ngram",
    "num_speculative_tokens": 7,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 4,
}
"""vLLM always proposes as many tokens as it may, so that more of them would cost it more."""
WAYS: dict[str, dict[str, Any] | None] = {"without": None, "with": CONFIG}
REST_S = 0.2  # before each answer: threads of the system before it may still spin


def prompts(model: str, num: int) -> dict[str, list[list[int]]]:
    """Return the first prompts of each kind of text, as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    return {
        kind: [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            for text in made()[:num]
        ]
        for kind, made in KINDS.items()
    }


def measure(
    model: str,
    systems: list[str],
    num_prompts: int,
    num_tokens: int,
    rounds: int,
    threads: int,
    peers: Peers,
) -> dict[str, Any]:
    """Return versions and, for each kind of text and system, a case for each prompt."""
    with ExitStack() as stack:
        workers = {}
        for system in systems:
            for way, config in WAYS.items():
                arguments = [system, model, DTYPE, str(threads), json.dumps(config)]
                worker = Worker(system, "benchmarks.peers.ngram_worker", arguments, threads, peers)
                workers[system, way] = stack.enter_context(closing(worker))
        cases = []
        for kind, its in prompts(model, num_prompts).items():
            for prompt in its:
                runs: dict[tuple[str, str], list[dict]] = {key: [] for key in workers}
                line = json.dumps({"prompt": prompt, "num_tokens": num_tokens})
                for _ in range(rounds):
                    for key, worker in workers.items():
                        time.sleep(REST_S)
                        runs[key].append(worker.ask(line))
                cases += [_case(kind, system, runs) for system in systems]
        versions = {system: workers[system, "with"].versions for system in systems}
    return {"versions": versions, "cases": cases}


def _case(kind: str, system: str, runs: dict[tuple[str, str], list[dict]]) -> dict[str, Any]:
    """Sum up one prompt's runs in one system; the first of each isn't timed."""
    case: dict[str, Any] = {"kind": kind, "system": system}
    for way in WAYS:
        own = runs[system, way]
        case[way] = {
            "seconds": min(run["seconds"] for run in own[1:]),
            "steps": own[-1]["steps"],
            "tokens": len(own[-1]["tokens"]),
        }
    texts = [run["tokens"] for way in WAYS for run in runs[system, way]]
    case["same_text"] = all(text == texts[0] for text in texts)
    return case


def markdown(result: dict[str, Any], num_tokens: int, rounds: int) -> str:
    """Return the table: a line for each kind of text and system."""
    of_versions = "; ".join(
        f"{system}: " + ", ".join(f"{name} {version}" for name, version in its.items())
        for system, its in result["versions"].items()
    )
    lines = [
        f"Measured on {cpu_name()}, {time.strftime('%Y-%m-%d')}: SmolLM2-135M-Instruct in bf16, one"
        f" request at a time, greedy, {num_tokens} tokens each; both systems with"
        f" `--speculative-config '{json.dumps(CONFIG)}'` and without, in turn; each prompt's"
        f" shortest of {rounds - 1} times. Same text: with proposals as without, in every round."
        f" {of_versions}. Made by `python -m benchmarks.peers.ngram`.",
        "",
        "| text | system | tokens a step | tokens/s without | with | gain | least of a prompt"
        " | same text |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict]] = {}
    for case in result["cases"]:
        groups.setdefault((case["kind"], case["system"]), []).append(case)
    for (kind, system), its in groups.items():
        tokens = {way: sum(case[way]["tokens"] for case in its) for way in WAYS}
        speed = {way: tokens[way] / sum(case[way]["seconds"] for case in its) for way in WAYS}
        steps = sum(case["with"]["steps"] for case in its)
        least = min(case["without"]["seconds"] / case["with"]["seconds"] for case in its)
        lines.append(
            f"| {kind} | {system} | {tokens['with'] / steps:.2f} | {speed['without']:,.0f}"
            f" | {speed['with']:,.0f} | {speed['with'] / speed['without']:.2f} × | {least:.2f} ×"
            f" | {sum(case['same_text'] for case in its)} of {len(its)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the machine's files, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=5, help="of each kind, at most 5")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3, help="of which the first isn't timed")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--out", type=Path, default=machine_folder())
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error(f"--rounds is {given.rounds}; it must be at least 2: the first isn't timed.")
    peers = Peers()
    if not peers.has_vllm:
        parser.error("vLLM is not installed: python -m benchmarks.peers.install vLLM")
    model = str(find_model(MODEL, None, None))
    lengths = (given.prompts, given.tokens, given.rounds)
    result = measure(model, [ENGINE, "vLLM"], *lengths, given.threads, peers)
    table = markdown(result, given.tokens, given.rounds)
    keep_results(given.out, "ngram", result, table)


if __name__ == "__main__":
    run_command(main)
