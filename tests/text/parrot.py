"""A stand-in for the worker: what is computed is known beforehand."""

from __future__ import annotations

import time

from engine.core.messages import KVShape, RowDetail, StepOutput, StepPlan, TokenLogprobs


class Parrot:
    """An executor whose model says the prompt over and over."""

    kv = KVShape(
        num_blocks=64,
        num_host_blocks=0,
        block_size=4,
        bytes_per_block=1,
        max_model_len=64,
        vocab_size=610,
    )

    def __init__(self, step_s: float = 0.0):
        self.rows = {}  # sequence id → (prompt, params)
        self.fails = False
        self.step_s = step_s

    def execute(self, plan: StepPlan) -> StepOutput:
        if self.fails:
            raise RuntimeError("the device is gone")
        time.sleep(self.step_s)
        tokens, details = [], {}
        for name in plan.dropped:
            self.rows.pop(name, None)
        for name, new in plan.new.items():
            self.rows[name] = (new.token_ids[: new.num_prompt_tokens], new.params)
        for row in plan.rows:
            prompt, params = self.rows[row.request_id]
            token = prompt[(row.start + row.num_tokens) % len(prompt)]
            tokens.append([token] * row.samples)
            if params.logprobs is not None and row.samples:
                entry = TokenLogprobs(token, -0.5, 1, [token, 7], [-0.5, -1.0])
                details[row.request_id] = RowDetail(logprobs=[entry] * row.samples)
        return StepOutput(step=plan.step, tokens=tokens, details=details)
