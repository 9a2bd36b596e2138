"""Run a load of made-up requests through the core: what the page of the site does in a browser.

No record is needed: step times are of a small model on one CPU core. A policy is Python text that
defines a class `Policy`, a subclass of the engine's scheduler.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.core.messages import KVShape
from engine.core.scheduler import Scheduler
from engine.trace.files import to_jsonl
from engine.whatif.arrivals import Arrival
from engine.whatif.measures import measure
from engine.whatif.simulator import run
from engine.whatif.step_times import Shape

BLOCK_SIZE = 16
MOST_REQUESTS = 200
STEP_US, TOKEN_US, ROW_US, COPY_US = 900.0, 90.0, 70.0, 25.0


class Sliders(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold what the page's sliders say."""

    requests: int = 40
    per_second: float = 200.0
    prompt: int = 60  # tokens, on average
    output: int = 40  # tokens, on average
    shared: int = 32  # tokens that all prompts begin with
    blocks: int = 30
    seats: int = 6
    budget: int = 128
    seed: int = 1


def play(sliders: str, policy: str = "") -> str:
    """Run the load; both arguments and the answer are text: JSON, Python, JSON.

    The answer has `record` (JSON lines) and `rows` (the measures by name), or `error`.
    """
    try:
        wanted = msgspec.json.decode(sliders, type=Sliders)
        scheduler = policy_of(policy) if policy.strip() else Scheduler
        answer = _run(wanted, scheduler)
    except Exception as error:  # anything that a policy may do
        answer = {"error": f"{type(error).__name__}: {error}"}
    return msgspec.json.encode(answer).decode()


def policy_of(text: str) -> type[Scheduler]:
    """Return the class `Policy` that this text defines. Raises whatever the text does."""
    names: dict[str, Any] = {"Scheduler": Scheduler, "__name__": "policy"}
    exec(compile(text, "your policy", "exec"), names)
    found = names.get("Policy")
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise ValueError("the text defines no class Policy(Scheduler)")
    return found


def _run(wanted: Sliders, scheduler: type[Scheduler]) -> dict[str, Any]:
    config = EngineConfig(
        max_num_seqs=wanted.seats, max_num_batched_tokens=wanted.budget, block_size=BLOCK_SIZE
    )
    kv = KVShape(
        num_blocks=wanted.blocks,
        num_host_blocks=0,
        block_size=BLOCK_SIZE,
        bytes_per_block=BLOCK_SIZE * 2048,
        max_model_len=wanted.blocks * BLOCK_SIZE,
        vocab_size=0,
    )
    events = run(_arrivals(wanted), config, kv, _step_us, scheduler=scheduler)
    found = measure(events)
    return {"record": to_jsonl(events).decode(), "rows": found.rows(), "refused": found.refused}


def _arrivals(wanted: Sliders) -> list[Arrival]:
    draw = random.Random(wanted.seed)
    made, now_s = [], 1.0
    for number in range(min(wanted.requests, MOST_REQUESTS)):
        now_s += draw.expovariate(max(0.1, wanted.per_second))
        prompt = max(1, round(draw.uniform(0.3, 1.7) * wanted.prompt))
        output = max(1, round(draw.uniform(0.3, 1.7) * wanted.output))
        shared = min(wanted.shared, prompt)
        tokens = [1] * shared + [2 + number] * (prompt - shared + output)
        made.append(
            Arrival(f"req-{number + 1}", round(now_s * 1e9), prompt, output, 0, 1, [output],
                    [tokens], stops=False)
        )  # fmt: skip
    return made


def _step_us(shape: Shape) -> float:
    prompt, rows, copied, _prompts = shape
    return STEP_US + TOKEN_US * prompt + ROW_US * rows + COPY_US * copied
