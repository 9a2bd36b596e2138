"""The fewest steps of any look-up are those of a search of all choices; ours needs no fewer."""

from __future__ import annotations

import random
from functools import cache

import pytest

from benchmarks.lookup_bound import fewest_steps
from engine.core.messages import CoreRequest
from engine.core.proposer import NgramProposer
from engine.core.request import Request
from engine.core.verification import num_right
from engine.sampling_params import SamplingParams


def searched(text: list[int], start: int, most: int) -> int:
    """Try every place and every part of its copy, in every step."""

    @cache
    def steps(count: int) -> int:
        if count == len(text):
            return 0
        best = 1 + steps(count + 1)
        for place in range(1, count):
            if text[place - 1] != text[count - 1]:
                continue
            for right in range(min(most, len(text) - count - 1)):
                if text[place + right] != text[count + right]:
                    break
                best = min(best, 1 + steps(count + right + 2))
        return best

    return 1 + steps(start + 1)


def looked_up(text: list[int], start: int, most: int) -> int:
    """Count the steps of the engine's own look-up, if all of its proposals are checked."""
    core = CoreRequest(request_id="a", prompt_token_ids=text[: start + 1], params=SamplingParams())
    request, proposer, steps = Request(core, (0, 0, 0), 0, 100), NgramProposer(1, 16), 1
    while (count := request.num_tokens) < len(text):
        proposed = proposer.propose(request, most).token_ids
        right = num_right(proposed[: len(text) - count - 1], text[count:])
        request.token_ids += text[count : count + right + 1]
        steps += 1
    return steps


@pytest.mark.parametrize("most", [1, 3, 15])
@pytest.mark.parametrize("vocabulary", [2, 4, 12])
def test_the_fewest_steps(vocabulary, most):
    draw = random.Random(vocabulary)
    for _ in range(12):
        part = [draw.randrange(vocabulary) for _ in range(8)]
        text = part + [
            token if draw.random() < 0.8 else draw.randrange(vocabulary) for token in part * 3
        ]
        fewest = fewest_steps(text[:8], text[8:], most)
        assert fewest == searched(text, 8, most) <= looked_up(text, 8, most) <= len(text) - 8
