"""What vLLM 0.32 passes to a scheduler class, as far as the viewer reads it: made by hand."""

from __future__ import annotations

from types import SimpleNamespace

SIZE = 4  # tokens of a block


class FakeRequest(SimpleNamespace):
    """A request, with the names that vLLM's has."""

    def __init__(self, request_id: str, num_prompt_tokens: int, max_tokens: int = 16):
        super().__init__(
            request_id=request_id,
            num_prompt_tokens=num_prompt_tokens,
            num_tokens=num_prompt_tokens,
            num_output_tokens=0,
            max_tokens=max_tokens,
            priority=0,
            num_preemptions=0,
            stop_reason=None,
            is_prefill_chunk=False,
            ended=None,
        )

    def is_finished(self) -> bool:
        return self.ended is not None

    def get_finished_reason(self):
        return self.ended


def blocks(count: int) -> list[SimpleNamespace]:
    """A pool; `block_hash` is bytes once a block is full, as vLLM has it."""
    return [SimpleNamespace(block_hash=None) for _ in range(count)]


def plan(rows: dict[str, int], new=(), old=(), resumed=(), preempted=()) -> SimpleNamespace:
    """A SchedulerOutput. `new`: (name, blocks, computed); `old`: (name, new blocks, computed)."""
    return SimpleNamespace(
        num_scheduled_tokens=dict(rows),
        total_num_scheduled_tokens=sum(rows.values()),
        preempted_req_ids=set(preempted),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, block_ids=(ids,), num_computed_tokens=computed)
            for name, ids, computed in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, _ids, _computed in old],
            new_block_ids=[(ids,) if ids else None for _name, ids, _computed in old],
            num_computed_tokens=[computed for _name, _ids, computed in old],
            resumed_req_ids=set(resumed),
        ),
    )
