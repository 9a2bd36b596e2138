"""Ask vLLM what it would say at each place of given texts.

`python -m benchmarks.peers.vllm_quality MODEL DTYPE THREADS`

Runs in vLLM's environment. `MODEL DTYPE THREADS` are its arguments; token ids of texts come on
standard input, as JSON, and the answer goes to standard output: of each place but the first of a
text, the most probable token and the log-probability of the text's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.peers.in_process import ROOT, WorkerFailed
from benchmarks.peers.install import LOGS, Peers, last_words

Place = tuple[int, float]
"""The most probable token, and the log-probability of the token that the text has."""


def asked(peers: Peers, model: str, texts: list[list[int]], threads: int) -> list[list[Place]]:
    """Return the places of each text, from vLLM in bf16. Raises `WorkerFailed`."""
    environment = peers.vllm_environment()
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "vllm-quality.log"
    command = [str(peers.vllm_python), "-m", "benchmarks.peers.vllm_quality"]
    with log.open("wb") as errors:
        ran = subprocess.run(
            [*command, model, "bfloat16", str(threads)],
            input=json.dumps(texts).encode(),
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=environment,
        )
    if ran.returncode:
        raise WorkerFailed(f"vLLM ended; its log ends so:\n{last_words(log)}")
    return [[(best, own) for best, own in places] for places in json.loads(ran.stdout)]


def main() -> None:
    model, dtype, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print on standard output
    texts = json.load(sys.stdin)

    from vllm import SamplingParams

    from benchmarks.peers.vllm import Vllm

    peer = Vllm(model, dtype, int(threads))
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    found = []
    for text in texts:
        peer.engine.add_request(str(next(peer.numbers)), {"prompt_token_ids": text}, params)
        ended = None
        while ended is None:
            ended = next((output for output in peer.engine.step() if output.finished), None)
        places = zip(text[1:], ended.prompt_logprobs[1:])
        found.append(
            [
                (next(i for i, it in place.items() if it.rank == 1), place[token].logprob)
                for token, place in places
            ]
        )
    answers.write(json.dumps(found))
    answers.flush()
    os._exit(0)  # the answer is written; some libraries hang or complain at exit


if __name__ == "__main__":
    main()
