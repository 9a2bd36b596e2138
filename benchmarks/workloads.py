"""Define the workloads that every system is given: exact lengths, greedy, no end of sequence."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "kind", "size", "open", "tags"],
        "properties": {
            "name": {"type": "string", "minLength": 10, "maxLength": 40},
            "kind": {"enum": ["circle", "square", "triangle"]},
            "size": {"type": "integer", "minimum": 0, "maximum": 9999},
            "open": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        },
    },
}
"""A form: a list of records that doesn't end before the requests' last token."""


@dataclass(frozen=True)
class Job:
    """Describe one request: `prompt` token ids, `num_output` tokens wanted."""

    prompt: list[int]
    num_output: int


@dataclass(frozen=True)
class Workload:
    name: str
    what: str
    jobs: list[Job]

    @property
    def num_output(self) -> int:
        return sum(job.num_output for job in self.jobs)


@dataclass
class Run:
    """Hold seconds for one workload: the whole, until the first token, and each request's end."""

    total_s: float
    first_token_s: float
    ends_s: list[float]
    num_steps: int = 0


def _prompt(draw: random.Random, length: int, vocab_size: int) -> list[int]:
    return [draw.randrange(10, vocab_size) for _ in range(length)]


def mixed(num_requests: int, vocab_size: int, seed: int = 0) -> list[Job]:
    """Make `num_requests` at once, input and output lengths uniform in 32 … 256."""
    draw = random.Random(seed)
    return [
        Job(_prompt(draw, draw.randint(32, 256), vocab_size), draw.randint(32, 256))
        for _ in range(num_requests)
    ]


def workloads(vocab_size: int) -> dict[str, Workload]:
    """Return W1 … W4 by name."""
    draw = random.Random(1)
    single = Job(_prompt(draw, 32, vocab_size), 128)
    prefill = Job(_prompt(draw, 1024, vocab_size), 1)
    return {
        "W1": Workload("W1", "one request: 32 tokens in, 128 out", [single]),
        "W2": Workload("W2", "16 requests at once, 32–256 in and out", mixed(16, vocab_size)),
        "W3": Workload("W3", "64 requests at once, 32–256 in and out", mixed(64, vocab_size)),
        "W4": Workload("W4", "one prompt of 1,024 tokens", [prefill]),
    }
