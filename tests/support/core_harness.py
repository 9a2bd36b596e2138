"""Drives an EngineCore over the PagedOracle, with every invariant checked after every step."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore, MakeScheduler
from engine.core.messages import CoreOutput, CoreRequest
from engine.core.scheduler import Scheduler
from engine.sampling_params import SamplingParams
from engine.trace.events import Event
from engine.trace.recorder import Recorder
from tests.support.paged_oracle import PagedOracle, solo_answer


@dataclass
class Harness:
    """An engine with `num_blocks` blocks of `block_size`; keeps all outputs and events."""

    num_blocks: int = 16
    num_host_blocks: int = 0
    block_size: int = 4
    max_model_len: int = 64
    swap_us_per_block: float = 1.0
    options: dict = field(default_factory=dict)
    scheduler: MakeScheduler = Scheduler

    def __post_init__(self) -> None:
        self.config = EngineConfig(**{"preemption_mode": "recompute", **self.options})
        self.worker = PagedOracle(
            self.num_blocks,
            self.num_host_blocks,
            self.block_size,
            self.max_model_len,
            self.swap_us_per_block,
            self.config.max_num_seqs,
        )
        self.recorder = Recorder(level="steps")
        self.events: list[Event] = []
        self.recorder.subscribe(self.events.extend)
        self.core = EngineCore(self.config, self.worker, self.recorder, self.scheduler)
        self.answers: dict[tuple[str, int], list[int]] = {}
        self.finish_reasons: dict[tuple[str, int], str] = {}
        self.sent: dict[str, CoreRequest] = {}

    def add(self, request_id: str, prompt: list[int], **params) -> None:
        extra = {
            k: params.pop(k) for k in ("priority", "cache_salt", "eos_token_ids") if k in params
        }
        params.setdefault("seed", 0)
        request = CoreRequest(
            request_id=request_id,
            prompt_token_ids=prompt,
            params=SamplingParams(**params),
            **extra,
        )
        self.core.add_request(request)
        self.sent[request_id] = request

    def forget(self, request_id: str) -> None:
        """Expect nothing of an aborted request: its id is to be used again."""
        del self.sent[request_id]
        for told in (self.answers, self.finish_reasons):
            for key in [key for key in told if key[0] == request_id]:
                del told[key]

    def step(self) -> list[CoreOutput]:
        outputs = self.core.step()
        self.core.check()
        for output in outputs:
            key = (output.request_id, output.index)
            assert key not in self.finish_reasons, "an output after the end"
            self.answers.setdefault(key, []).extend(output.token_ids)
            if output.finish_reason:
                self.finish_reasons[key] = output.finish_reason
        return outputs

    def run(self, limit: int = 5000) -> None:
        """Step until no work is left, and check that nothing else is left either."""
        for _ in range(limit):
            if not self.core.has_work:
                break
            self.step()
        assert not self.core.has_work, "the engine doesn't come to an end"
        pool = self.core.scheduler.kv.pool
        assert pool.num_used == 0 and self.core.scheduler.kv.host_pool.num_used == 0
        assert self.core.scheduler.seats_taken == 0

    def expect_solo_answers(self, *request_ids: str) -> None:
        """Check that each request got exactly the answer that it gets alone."""
        for request_id in request_ids or self.sent:
            request = self.sent[request_id]
            params = request.params
            stop_ids = frozenset(params.stop_token_ids or ())
            if not params.ignore_eos:
                stop_ids |= frozenset(request.eos_token_ids)
            prompt = request.prompt_token_ids
            room = self.max_model_len - len(prompt)
            max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
            for index in range(params.n):
                expected = solo_answer(prompt, params.seed + index, max_tokens, stop_ids)
                assert self.answers.get((request_id, index)) == expected, (request_id, index)

    def recorded(self, kind: type[Event]) -> list:
        self.recorder.flush()
        return [event for event in self.events if isinstance(event, kind)]

    def close(self) -> None:
        self.core.close()
        self.recorder.close()
