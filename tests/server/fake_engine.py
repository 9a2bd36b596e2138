"""An executor without a model: it continues a text with its own letters, one step every `step_s`.

The token after `t` at position p is a letter chosen by (t, p): a pure function, so that the same
request gives the same text whatever shares its batch. The core that runs it is the real one.
"""

from __future__ import annotations

import os
import time
from functools import partial

from engine.core.messages import KVShape, RowDetail, StepOutput, StepPlan, TokenLogprobs
from engine.trace.events import EngineKvSized

LETTERS = b"abcdefghijklmnopqrstuvwxyz "


def next_token(last: int, position: int) -> int:
    return LETTERS[(last * 31 + position * 17) % len(LETTERS)]


def expected_text(prompt: bytes, count: int) -> str:
    """What the fake engine says after `prompt`."""
    text = bytearray(prompt)
    for _ in range(count):
        text.append(next_token(text[-1], len(text)))
    return text[len(prompt) :].decode()


class FakeExecutor:
    def __init__(self, step_s: float, num_blocks: int):
        self.step_s = step_s
        self.kv = KVShape(
            num_blocks=num_blocks,
            num_host_blocks=0,
            block_size=16,
            bytes_per_block=1,
            max_model_len=512,
            vocab_size=261,
        )
        self.rows: dict[str, list[int]] = {}
        self.params = {}
        self.prompt_length: dict[str, int] = {}

    def execute(self, plan: StepPlan) -> StepOutput:
        time.sleep(self.step_s)
        for name in plan.dropped:
            self.rows.pop(name, None)
        tokens, details = [], {}
        for name, new in plan.new.items():
            self.rows[name] = list(new.token_ids)
            self.params[name] = new.params
            self.prompt_length[name] = new.num_prompt_tokens
        for row in plan.rows:
            ids = self.rows[row.request_id]
            end = row.start + row.num_tokens
            drawn = [next_token(ids[end - 1], end)] * row.samples
            if drawn and end == len(ids):
                ids.append(drawn[0])
            tokens.append(drawn)
            params = self.params[row.request_id]
            detail = RowDetail()
            if drawn and params.logprobs is not None:
                detail.logprobs = [
                    self._logprobs(t, params.logprobs, params.logprob_token_ids) for t in drawn
                ]
            if params.prompt_logprobs is not None:
                detail.prompt_logprobs = [
                    self._logprobs(t, params.prompt_logprobs) for t in ids[row.start + 1 : end + 1]
                ][: max(0, self.prompt_length[row.request_id] - row.start - 1)]
            details[row.request_id] = detail
        return StepOutput(step=plan.step, tokens=tokens, details=details)

    @staticmethod
    def _logprobs(token: int, count: int, named: list[int] | None = None) -> TokenLogprobs:
        """The token itself is always the best, at −0.1/3, which no rounded value equals; named
        tokens have the log-probability −id."""
        tops = named or [token, *(t for t in [*range(65, 261), *range(65)] if t != token)][:count]
        values = [-0.1 / 3 - place for place in range(len(tops))]
        if named:
            values = [-float(token_id) for token_id in named]
        return TokenLogprobs(token, -0.1 / 3, 1, tops, values)


def load_fake(config, recorder, progress, step_s=0.0, num_blocks=256, load_s=0.0, error=""):
    progress("pretending to load")
    time.sleep(load_s)
    if error:
        raise ValueError(error)
    recorder.record(EngineKvSized(num_blocks=num_blocks, block_size=16, max_model_len=512))
    return FakeExecutor(step_s, num_blocks)


def fake(**options):
    """A `load` for the engine process."""
    return partial(load_fake, **options)


def crash(config, recorder, progress):
    """Crash the whole process while loading, without a message."""
    os._exit(7)
