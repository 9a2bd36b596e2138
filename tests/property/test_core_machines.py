"""Hypothesis state machines over the pool, the KV manager and the whole core: every invariant after
every operation.

Together they run at least 100,000 operations with `--full` (`MINIMUM_OPERATIONS`), which the last
test of the file counts.
"""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.admission import RequestError
from engine.core.block_pool import BlockPool, OutOfBlocks, block_hash, root_hash
from engine.core.core_record import CoreRecord
from engine.core.kv_manager import KVManager
from engine.core.messages import CoreRequest
from engine.core.request import Request, Status
from engine.sampling_params import SamplingParams
from engine.trace.recorder import Recorder
from engine.trace.state import EngineState
from tests.support.cases import cases
from tests.support.core_harness import Harness
from tests.support.paged_oracle import VOCAB_SIZE
from tests.support.proposing import proposals, proposing_scheduler

MINIMUM_OPERATIONS = cases(100_000)
operations: Counter[str] = Counter()


def machine_settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=cases(examples),
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


class PoolMachine(RuleBasedStateMachine):
    """BlockPool against block tables kept by hand."""

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks):
        self.pool = BlockPool(num_blocks)
        self.tables: list[list[int]] = []
        self.parent = root_hash("")

    @rule(count=st.integers(0, 5))
    def allocate(self, count):
        operations["pool"] += 1
        free_before = list(self.pool.free_queue)
        try:
            blocks, evicted = self.pool.allocate(count)
        except OutOfBlocks:
            assert count > len(free_before) and list(self.pool.free_queue) == free_before
            return
        assert blocks == free_before[:count], "blocks are taken from the front"
        assert {b for b, _ in evicted} <= set(blocks)
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data):
        operations["pool"] += 1
        table = data.draw(st.sampled_from(self.tables))
        prefix = table[: data.draw(st.integers(0, len(table)))]
        self.pool.share(prefix)
        self.tables.append(list(prefix))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data):
        operations["pool"] += 1
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.free(self.tables.pop(index)[::-1])

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), token=st.integers(0, 6))
    def cache(self, data, token):
        operations["pool"] += 1
        table = data.draw(st.sampled_from([t for t in self.tables if t]))
        block = data.draw(st.sampled_from(table))
        if self.pool.hashes[block] is None:
            self.pool.cache(block, block_hash(self.parent, [token]))

    @rule(token=st.integers(0, 6))
    def find_and_share(self, token):
        operations["pool"] += 1
        found = self.pool.find([block_hash(self.parent, [token])])
        self.pool.share(found)
        self.tables.append(found)

    @invariant()
    def agrees(self):
        if hasattr(self, "pool"):
            self.pool.check(self.tables)


class KVMachine(RuleBasedStateMachine):
    """KVManager: requests that grow, fork, are cached, swapped and freed in any order."""

    @initialize(num_blocks=st.integers(2, 14), num_host=st.integers(0, 8))
    def start(self, num_blocks, num_host):
        self.recorder = Recorder(level="off")
        self.kv = KVManager(num_blocks, num_host, 4, 64, True, CoreRecord(self.recorder))
        self.living: list[Request] = []
        self.swapped: list[Request] = []
        self.made = 0

    def _new(self, length: int, kind: int) -> Request:
        self.made += 1
        core = CoreRequest(
            request_id=f"r{self.made}",
            prompt_token_ids=[kind] * length,
            params=SamplingParams(max_tokens=100, n=2, seed=1),
        )
        return Request(core, (0, self.made, 0), 1, 100)

    @rule(length=st.integers(1, 30), kind=st.integers(0, 2))
    def arrive(self, length, kind):
        operations["kv"] += 1
        request = self._new(length, kind)
        self.kv.attach_prefix(request, self.kv.find_prefix(request))
        assert request.num_computed_tokens < request.num_tokens
        self.living.append(request)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), chunk=st.integers(1, 9))
    def compute(self, data, chunk):
        operations["kv"] += 1
        request = data.draw(st.sampled_from(self.living))
        missing = request.num_tokens - request.num_computed_tokens
        chunk = min(chunk, missing)
        before = (list(request.block_table), list(self.kv.pool.free_queue))
        try:
            copy = self.kv.grow(request, chunk)
        except OutOfBlocks:
            assert before == (list(request.block_table), list(self.kv.pool.free_queue))
            return
        first = request.num_computed_tokens // 4
        last = (request.num_computed_tokens + chunk - 1) // 4
        for block in request.block_table[first : last + 1]:
            assert self.kv.pool.references[block] == 1, "about to write where others read"
        assert copy is None or copy[0] != copy[1]
        request.set_computed(request.num_computed_tokens + chunk)
        self.kv.cache_full_blocks(request)
        if request.num_computed_tokens == request.num_tokens:
            request.token_ids.append(len(request.token_ids) % 3)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def fork(self, data):
        operations["kv"] += 1
        parent = data.draw(st.sampled_from(self.living))
        child = self._new(1, 0)
        child.token_ids = list(parent.token_ids)
        self.kv.fork(parent, child)
        self.living.append(child)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def free(self, data):
        operations["kv"] += 1
        request = self.living.pop(data.draw(st.integers(0, len(self.living) - 1)))
        self.kv.free(request, "test")

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def swap_out(self, data):
        operations["kv"] += 1
        index = data.draw(st.integers(0, len(self.living) - 1))
        request = self.living[index]
        fits = self.kv.blocks_to_swap(request) <= self.kv.host_pool.num_free
        try:
            pairs = self.kv.swap_out(request)
        except OutOfBlocks:
            assert not fits
            return
        assert fits and len(pairs) == len(request.host_blocks) and not request.block_table
        self.swapped.append(self.living.pop(index))

    @precondition(lambda self: self.swapped)
    @rule(data=st.data())
    def swap_in(self, data):
        operations["kv"] += 1
        index = data.draw(st.integers(0, len(self.swapped) - 1))
        request = self.swapped[index]
        held = list(request.host_blocks)
        try:
            pairs = self.kv.swap_in(request)
        except OutOfBlocks:
            assert request.host_blocks == held and not request.block_table
            return
        assert [host for host, _ in pairs] == held
        self.living.append(self.swapped.pop(index))

    @invariant()
    def agrees(self):
        if hasattr(self, "kv"):
            everyone = [*self.living, *self.swapped]
            self.kv.pool.check(r.block_table for r in everyone)
            self.kv.host_pool.check(r.host_blocks for r in everyone)


class CoreMachine(RuleBasedStateMachine):
    """The whole core: any request at any time, aborted at any time, in both loops; every answer is
    the solo answer, and the record alone rebuilds the state.
    """

    @initialize(
        num_blocks=st.integers(3, 14),
        num_host_blocks=st.integers(0, 10),
        mode=st.sampled_from(["recompute", "swap", "auto"]),
        budget=st.sampled_from([1, 3, 7, 30]),
        seats=st.integers(1, 6),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.booleans(),
        overlapped=st.booleans(),
        proposed=st.sampled_from([0, 1, 3, 7]),
    )
    def start(
        self,
        num_blocks,
        num_host_blocks,
        mode,
        budget,
        seats,
        policy,
        caching,
        overlapped,
        proposed,
    ):
        self.h = Harness(
            num_blocks,
            num_host_blocks,
            max_model_len=40,
            options=dict(
                preemption_mode=mode,
                max_num_batched_tokens=budget,
                max_num_seqs=seats,
                scheduling_policy=policy,
                enable_prefix_caching=caching,
                async_scheduling=overlapped,
                speculative_config=proposals(proposed),
            ),
            scheduler=proposing_scheduler,
        )
        self.replay = ReplayWatch(self.h)
        self.aborted: list[str] = []
        self.made = 0

    @rule(
        length=st.integers(1, 24),
        kind=st.integers(0, 2),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        max_tokens=st.integers(0, 14),
        priority=st.integers(-1, 1),
        eos=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=4),
        again=st.booleans(),
    )
    def arrive(self, length, kind, n, max_tokens, priority, eos, again):
        operations["core"] += 1
        self.made += 1
        name = f"r{self.made}"
        if again and self.aborted:  # the id is free at once, though steps may be in flight
            name = self.aborted.pop()
            self.h.forget(name)
        prompt = [(kind * 7 + i) % VOCAB_SIZE for i in range(length)]
        try:
            self.h.add(
                name,
                prompt,
                n=n,
                max_tokens=max_tokens,
                priority=priority,
                eos_token_ids=eos,
                seed=kind,
            )
        except RequestError as error:
            assert error.param in ("max_tokens", "n")

    @rule(count=st.integers(1, 4))
    def step(self, count):
        for _ in range(count):
            operations["core"] += 1
            self.h.step()
            self.replay.check()

    @precondition(lambda self: self.h.core.books.groups)
    @rule(data=st.data())
    def abort(self, data):
        operations["core"] += 1
        request_id = data.draw(st.sampled_from(sorted(self.h.core.books.groups)))
        self.aborted.append(request_id)
        self.h.core.abort(request_id, "test")

    @invariant()
    def agrees(self):
        if hasattr(self, "h"):
            self.h.core.check()
            self.replay.check()

    def teardown(self):
        if hasattr(self, "h"):
            self.h.run()
            self.replay.check()
            for request_id in set(self.h.sent) - set(self.aborted):
                self.h.expect_solo_answers(request_id)
            self.h.close()


class ReplayWatch:
    """Folds the record as it comes and holds the result against the core's real state."""

    def __init__(self, harness: Harness):
        self.h = harness
        self.state = EngineState(harness.num_blocks, harness.num_host_blocks)
        self.folded = 0

    def check(self) -> None:
        self.h.recorder.flush()
        while self.folded < len(self.h.events):
            self.state.fold(self.h.events[self.folded])
            self.folded += 1
        state, scheduler = self.state, self.h.core.scheduler
        state.check()
        assert state.lost == 0
        pool, waiting = scheduler.kv.pool, scheduler.waiting.in_order()
        everyone = [*scheduler.running, *waiting, *scheduler.leaving]
        assert state.references == pool.references
        assert list(state.free_queue) == list(pool.free_queue)
        assert state.cached == {h.hex(): b for h, b in pool.cached.items()}
        assert [name for _, name in state.running] == [r.id for r in scheduler.running]
        assert [name for _, name in state.waiting] == [r.id for r in waiting]
        tables = {r.id: r.block_table for r in everyone if r.block_table}
        assert {name: table for name, table in state.tables.items() if table} == tables
        hosted = {r.id: r.host_blocks for r in everyone if r.host_blocks}
        assert {name: table for name, table in state.host_tables.items() if table} == hosted
        for r in everyone:
            if r.status is not Status.FINISHED:
                assert state.sequences[r.id].num_computed_tokens == r.num_computed_tokens, r.id


def run_machine(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    case = machine.TestCase()
    case.settings = machine_settings(examples, steps)
    case.runTest()


@pytest.mark.slow
def test_pool_machine():
    run_machine(PoolMachine, 500, 80)


@pytest.mark.slow
def test_kv_machine():
    run_machine(KVMachine, 500, 80)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_core_machine():
    run_machine(CoreMachine, 500, 60)


@pytest.mark.slow
def test_enough_operations_were_run():
    """The three machines above ran at least the promised number of operations in this process."""
    if not all(operations[name] for name in ("pool", "kv", "core")):
        pytest.skip("counts only when the three machines above ran")
    assert sum(operations.values()) >= MINIMUM_OPERATIONS, operations
