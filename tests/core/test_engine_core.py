"""Rules 1 to 8 of the core, one by one, on a worker that finds mistakes in block management."""

from __future__ import annotations

import itertools
import re
from copy import copy
from types import SimpleNamespace

import pytest

from engine.core.admission import RequestError
from engine.core.messages import RowDetail
from engine.core.request import Status
from engine.placeholders import NO_TOKEN
from engine.trace import events
from tests.support.core_harness import Harness
from tests.support.paged_oracle import solo_answer

LOOPS = pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
MODES = pytest.mark.parametrize("mode", ["recompute", "swap", "auto"])


@pytest.fixture
def engine():
    made: list[Harness] = []

    def make(**kwargs) -> Harness:
        fields = {
            "num_blocks",
            "num_host_blocks",
            "block_size",
            "max_model_len",
            "swap_us_per_block",
        }
        shape = {k: kwargs.pop(k) for k in list(kwargs) if k in fields}
        made.append(Harness(**shape, options=kwargs))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + i) % 50 for i in range(length)]


@LOOPS
def test_one_request(engine, overlapped):
    h = engine(async_scheduling=overlapped)
    h.add("a", prompt(10), max_tokens=9)
    h.run()
    h.expect_solo_answers()
    assert h.finish_reasons["a", 0] == "length"


def test_rule_1_a_decoding_request_is_one_token_behind(engine):
    h = engine()
    h.add("a", prompt(6), max_tokens=5)
    h.step()
    for _ in range(3):
        (request,) = h.core.scheduler.running
        assert request.num_computed_tokens == request.num_tokens - 1
        h.step()


@LOOPS
@pytest.mark.parametrize("budget", [1, 2, 7, 2048])
def test_rule_2_no_phases_any_budget(engine, overlapped, budget):
    h = engine(max_num_batched_tokens=budget, async_scheduling=overlapped, num_blocks=40)
    for i in range(5):
        h.add(f"r{i}", prompt(3 + 5 * i, i), max_tokens=4 + i)
    h.run()
    h.expect_solo_answers()
    for planned in h.recorded(events.StepPlanned):
        assert 0 < sum(row.num_tokens for row in planned.rows) <= budget


def test_rule_2_prefill_and_decode_share_a_step(engine):
    h = engine(max_num_batched_tokens=8)
    h.add("a", prompt(4), max_tokens=12)
    h.step()
    h.add("b", prompt(20, 7), max_tokens=2)
    h.step()
    rows = h.recorded(events.StepPlanned)[-1].rows
    assert [(r.request_id, r.num_tokens) for r in rows] == [("a", 1), ("b", 7)]
    h.run()
    h.expect_solo_answers()


def test_rule_3_the_latest_arrival_is_preempted_and_nobody_is_admitted_then(engine):
    h = engine(num_blocks=6, enable_prefix_caching=False)
    h.add("old", prompt(8), max_tokens=12)  # 2 blocks, grows to 5
    h.add("young", prompt(8, 20), max_tokens=12)
    h.run()
    h.expect_solo_answers()
    preempted = h.recorded(events.RequestPreempted)
    assert preempted and {e.request_id for e in preempted} == {"young"}
    assert {e.for_request for e in preempted} <= {"old", "young"}
    admitted = h.recorded(events.RequestAdmitted) + h.recorded(events.RequestResumed)
    assert not {e.step for e in preempted} & {e.step for e in admitted}


def test_rule_3_priority_decides_who_runs_and_who_is_preempted(engine):
    h = engine(num_blocks=6, scheduling_policy="priority", enable_prefix_caching=False)
    h.add("low", prompt(8), max_tokens=12, priority=5)
    h.step()
    h.add("high", prompt(8, 20), max_tokens=12, priority=-1)
    h.run()
    h.expect_solo_answers()
    assert {e.request_id for e in h.recorded(events.RequestPreempted)} == {"low"}


def test_rule_3_under_fcfs_priority_changes_nothing(engine):
    h = engine(max_num_seqs=1)
    h.add("first", prompt(4), max_tokens=2, priority=9)
    h.add("second", prompt(4, 9), max_tokens=2, priority=0)
    h.run()
    assert [e.request_id for e in h.recorded(events.RequestFinished)] == ["first", "second"]


@pytest.mark.parametrize(
    ("options", "shape", "reason"),
    [
        ({"max_num_seqs": 1}, {}, "seats"),
        ({"max_num_batched_tokens": 1}, {}, "budget"),
        ({}, {"num_blocks": 4}, "blocks"),
    ],
)
def test_rule_3_the_head_says_what_it_waits_for(engine, options, shape, reason):
    h = engine(**options, **shape)
    h.add("a", prompt(5), max_tokens=8)
    h.step()
    h.add("big", prompt(12, 20), max_tokens=2)
    h.add("tiny", [1], max_tokens=1)  # would fit, but the queue is strict
    h.step()
    waiting = [
        e for e in h.recorded(events.RequestWaiting) if e.step == h.core.scheduler.step_number
    ]
    assert [(e.request_id, e.waits_for, e.behind) for e in waiting] == [("big", reason, 1)]
    if reason != "budget":
        assert waiting[0].next_release == "a" and waiting[0].next_release_steps > 0
    h.run()
    h.expect_solo_answers()
    assert [e.request_id for e in h.recorded(events.RequestAdmitted)] == ["a", "big", "tiny"]


@LOOPS
@MODES
def test_rule_4_preempted_requests_keep_their_output(engine, overlapped, mode):
    h = engine(num_blocks=9, num_host_blocks=32, preemption_mode=mode, async_scheduling=overlapped)
    for i in range(4):
        h.add(f"r{i}", prompt(6, 11 * i), max_tokens=20)
    h.run()
    h.expect_solo_answers()
    modes = {e.mode for e in h.recorded(events.RequestPreempted)}
    assert modes == {"recompute"} if mode == "recompute" else "swap" in modes
    if "swap" in modes:
        assert h.recorded(events.BlockSwappedOut) and h.recorded(events.BlockSwappedIn)


@pytest.mark.parametrize(("us_per_block", "expected"), [(0.01, "swap"), (1e6, "recompute")])
def test_rule_4_auto_compares_measured_costs_and_states_both(engine, us_per_block, expected):
    h = engine(
        num_blocks=6, num_host_blocks=32, preemption_mode="auto", swap_us_per_block=us_per_block
    )
    h.add("a", prompt(8), max_tokens=12)
    h.add("b", prompt(8, 20), max_tokens=12)
    h.run()
    preempted = h.recorded(events.RequestPreempted)
    assert preempted and {e.mode for e in preempted} == {expected}
    assert all(e.recompute_ms > 0 and e.swap_ms > 0 for e in preempted)


def test_rule_4_swap_without_host_room_falls_back(engine):
    h = engine(num_blocks=6, num_host_blocks=1, preemption_mode="swap")
    h.add("a", prompt(8), max_tokens=12)
    h.add("b", prompt(8, 20), max_tokens=12)
    h.run()
    h.expect_solo_answers()
    preempted = h.recorded(events.RequestPreempted)[0]
    assert (
        preempted.mode_why == f"swapping needs {preempted.num_blocks} host blocks,"
        " 1 host block is free"
    )


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_rule_4_a_preemption_says_who_needed_what_why_this_one_and_what_helps(engine, mode):
    h = engine(num_blocks=6, num_host_blocks=32, preemption_mode=mode, enable_prefix_caching=False)
    h.add("old", prompt(8), max_tokens=12)
    h.add("young", prompt(8, 20), max_tokens=12)
    h.run()
    preempted = h.recorded(events.RequestPreempted)
    assert preempted
    for event in preempted:
        by_itself = event.for_request == event.request_id
        needs, last = ("it", "it") if by_itself else (event.for_request, event.request_id)
        assert event.need == 1 and event.available == 0
        row = re.fullmatch(
            rf"{needs} needs 1 block for token (\d+), no block is free; {last} is the last by rank"
            r" of 2 that run; a larger pool \(--num-gpu-blocks-override\) or fewer seats"
            r" \(--max-num-seqs 1\) would help",
            event.why,
        )
        assert row, event.why
        assert int(row[1]) % 4 == 0, "a block is needed for its first token"


def test_rule_5_a_repeated_prompt_is_found_up_to_its_last_token(engine):
    h = engine()
    h.add("a", prompt(12), max_tokens=3)  # an exact multiple of the block size
    h.run()
    h.add("b", prompt(12), max_tokens=3)
    h.run()
    h.expect_solo_answers()
    admitted = h.recorded(events.RequestAdmitted)
    assert [e.num_cached_tokens for e in admitted] == [0, 8]  # not 12: one token is computed


def test_rule_5_output_blocks_are_found_by_the_next_turn(engine):
    h = engine()
    h.add("a", prompt(8), max_tokens=8)
    h.run()
    h.add("b", prompt(8) + h.answers["a", 0], max_tokens=3)
    h.run()
    h.expect_solo_answers()
    assert h.recorded(events.RequestAdmitted)[-1].num_cached_tokens == 12


def test_rule_5_salt_separates(engine):
    h = engine()
    h.add("a", prompt(12), max_tokens=3)
    h.run()
    h.add("b", prompt(12), max_tokens=3, cache_salt="secret")
    h.run()
    assert h.recorded(events.RequestAdmitted)[-1].num_cached_tokens == 0


def test_rule_5_off(engine):
    h = engine(enable_prefix_caching=False)
    for name in "ab":
        h.add(name, prompt(12), max_tokens=3)
        h.run()
    assert h.recorded(events.RequestAdmitted)[-1].num_cached_tokens == 0
    assert not h.recorded(events.BlockCached)


def test_rule_5_prompt_logprobs_compute_the_whole_prompt(engine):
    h = engine()
    for name in "ab":
        h.add(name, prompt(12), max_tokens=3, prompt_logprobs=1)
        h.run()
    assert h.recorded(events.RequestAdmitted)[-1].num_cached_tokens == 0


def test_rule_5_least_recently_used_is_evicted_first(engine):
    h = engine(num_blocks=8)
    h.add("a", prompt(12), max_tokens=1)
    h.run()
    h.add("b", prompt(12, 30), max_tokens=1)
    h.run()
    h.add("a2", prompt(12), max_tokens=1)  # touches a's blocks
    h.run()
    h.add("c", prompt(20, 15), max_tokens=1)  # needs room: b's must go first
    h.run()
    h.add("a3", prompt(12), max_tokens=1)
    h.run()
    h.expect_solo_answers()
    hits = {e.request_id: e.num_cached_tokens for e in h.recorded(events.RequestAdmitted)}
    assert hits == {"a": 0, "b": 0, "a2": 8, "c": 0, "a3": 8}
    assert h.recorded(events.BlockEvicted)


@LOOPS
def test_rule_5_identical_prompts_at_once(engine, overlapped):
    h = engine(num_blocks=64, max_num_batched_tokens=13, async_scheduling=overlapped)
    for i in range(6):
        h.add(f"r{i}", prompt(13), max_tokens=5)
    h.run()
    h.expect_solo_answers()
    hits = [e.num_cached_tokens for e in h.recorded(events.RequestAdmitted)]
    assert hits[-1] == 12  # the later ones found what the first computed


@LOOPS
@MODES
def test_a_resumed_request_counts_only_what_its_first_admission_found(engine, overlapped, mode):
    h = engine(num_blocks=9, num_host_blocks=8, preemption_mode=mode, async_scheduling=overlapped)
    for i in range(4):
        h.add(f"r{i}", prompt(6, 11 * i), max_tokens=20, n=1 + i % 2)
    told = set()
    while h.core.has_work:
        told |= {output.num_cached_tokens for output in h.step()}
    resumed = h.recorded(events.RequestResumed)
    assert any(e.num_cached_tokens > 6 for e in resumed), "none finds more than its prompt"
    assert {e.num_cached_tokens for e in h.recorded(events.RequestAdmitted)} == {0}
    assert told == {e.num_cached_tokens for e in h.recorded(events.RequestFinished)} == {0}


@LOOPS
@pytest.mark.parametrize("length", [5, 8, 11])
def test_rule_6_siblings_share_the_prompt_and_the_first_writer_copies(engine, overlapped, length):
    h = engine(async_scheduling=overlapped)
    h.add("a", prompt(length), n=4, max_tokens=7)
    h.run()
    h.expect_solo_answers()
    copied = h.recorded(events.BlockCopied)
    # the last of the four writes in place: nobody shares the block any more
    assert len(copied) == (0 if length % 4 == 0 else 3)
    computed = sum(e.num_tokens for e in h.recorded(events.StepFinished))
    assert computed == length + 4 * 6


@LOOPS
@MODES
def test_rule_6_siblings_survive_preemption(engine, overlapped, mode):
    h = engine(num_blocks=8, num_host_blocks=32, preemption_mode=mode, async_scheduling=overlapped)
    h.add("a", prompt(9), n=3, max_tokens=15)
    h.add("b", prompt(7, 30), max_tokens=15)
    h.run()
    h.expect_solo_answers()
    assert h.recorded(events.RequestPreempted)


def test_rule_7_what_never_fits_is_refused_and_changes_nothing(engine):
    h = engine(num_blocks=4, max_model_len=64)
    for request, param in (
        (dict(prompt=prompt(64), max_tokens=1), "prompt"),
        (dict(prompt=prompt(10), max_tokens=30), "max_tokens"),
        (dict(prompt=[], max_tokens=1), "prompt"),
        (dict(prompt=[1], n=300, max_tokens=1), "n"),
    ):
        if request.get("n"):
            request["n"] = 128
            h.core.config.max_num_seqs = 100
        with pytest.raises(RequestError) as caught:
            h.add("x", **request)
        assert caught.value.param == param
        assert not h.core.has_work
    h.core.check()
    assert len(h.recorded(events.RequestRefused)) == 4
    h.add("fits", prompt(10), max_tokens=7)  # 16 slots: the 17th token is never fed back
    h.run()
    h.expect_solo_answers()


def test_max_tokens_is_clamped_to_the_context(engine):
    h = engine(max_model_len=20)
    h.add("a", prompt(15), max_tokens=100)
    h.run()
    h.expect_solo_answers()
    assert len(h.answers["a", 0]) == 5 and h.finish_reasons["a", 0] == "length"
    assert h.recorded(events.RequestQueued)[0].clamped_from == 100


@LOOPS
def test_rule_8_an_abort_frees_blocks_only_when_nothing_in_flight_uses_them(engine, overlapped):
    h = engine(async_scheduling=overlapped)
    h.add("a", prompt(9), max_tokens=30)
    h.add("b", prompt(9, 20), max_tokens=30)
    for _ in range(4):
        h.step()
    h.core.abort("a", "the client left")
    h.core.check()
    pool = h.core.scheduler.kv.pool
    if overlapped:
        assert h.core.scheduler.leaving, "its step is still in flight"
    h.step()
    assert not h.core.scheduler.leaving
    assert pool.num_used == len(h.core.scheduler.running[0].block_table)
    h.run()
    h.expect_solo_answers("b")


@LOOPS
def test_aborts_at_any_moment(engine, overlapped):
    for moment in range(14):
        h = engine(
            num_blocks=8,
            num_host_blocks=8,
            preemption_mode="swap",
            max_num_batched_tokens=5,
            async_scheduling=overlapped,
        )
        h.add("a", prompt(9), max_tokens=10, n=2)
        h.add("b", prompt(9, 20), max_tokens=10)
        h.add("c", prompt(5, 40), max_tokens=10)
        for _ in range(moment):
            h.step()
        h.core.abort("a", "test")
        h.core.check()
        h.core.abort("unknown", "test")
        h.core.abort("a", "twice")
        h.run()
        h.expect_solo_answers("b", "c")


@LOOPS
def test_stop_tokens_and_eos(engine, overlapped):
    h = engine(async_scheduling=overlapped, num_blocks=64)
    answer = solo_answer(prompt(6), 0, 12)
    h.add("eos", prompt(6), max_tokens=12, eos_token_ids=[answer[4]])
    h.add("stop", prompt(6), max_tokens=12, stop_token_ids=[answer[3]])
    h.add("ignore", prompt(6), max_tokens=12, eos_token_ids=[answer[4]], ignore_eos=True)
    h.run()
    h.expect_solo_answers()
    reasons = {e.request_id: (e.reason, e.stop_reason) for e in h.recorded(events.RequestFinished)}
    assert reasons["eos"] == ("stop", "")
    assert reasons["stop"] == ("stop", str(answer[3]))
    assert reasons["ignore"] == ("length", "")


@LOOPS
def test_a_stop_string_ends_one_sibling_only(engine, overlapped):
    h = engine(async_scheduling=overlapped)
    h.add("a", prompt(6), n=2, max_tokens=12)
    for _ in range(4):
        h.step()
    h.core.finish("a", 1, "END")
    h.run()
    assert len(h.answers["a", 0]) == 12 > len(h.answers["a", 1])
    finished = {e.request_id: e.stop_reason for e in h.recorded(events.RequestFinished)}
    assert finished == {"a": "", "a.1": "END"}


@LOOPS
def test_max_tokens_zero_computes_the_prompt_only(engine, overlapped):
    h = engine(async_scheduling=overlapped)
    h.add("a", prompt(6), max_tokens=0)
    h.run()
    assert h.answers["a", 0] == [] and h.finish_reasons["a", 0] == "length"


def test_no_free_blocks_at_all(engine):
    h = engine(num_blocks=3)
    h.add("a", prompt(11), max_tokens=2)
    h.step()
    assert h.core.scheduler.kv.pool.num_free == 0
    h.add("b", prompt(3, 20), max_tokens=3)
    h.run()
    h.expect_solo_answers()


def test_seeds_of_unseeded_requests_repeat_with_the_engines_seed(engine):
    drawn = []
    for _ in range(2):
        h = engine(seed=7)
        h.add("a", prompt(6), max_tokens=8, seed=None)
        h.add("b", prompt(6), max_tokens=8, seed=None)
        h.run()
        drawn.append((h.answers["a", 0], h.answers["b", 0]))
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]


def test_a_seed_of_the_engines_own_survives_a_browser(engine):
    """The page once showed another seed than the one used: JSON's numbers are doubles there."""
    h = engine(seed=7)
    for i in range(50):
        h.add(f"r{i}", prompt(3, i), max_tokens=1, seed=None)
    seeds = [sequence.seed for sequence in h.core.scheduler.waiting.in_order()]
    assert len(set(seeds)) == 50 and all(int(float(seed)) == seed for seed in seeds)
    assert max(seeds) > 2**45
    h.run()


def test_a_step_costs_the_same_in_a_pool_of_any_size(engine):
    """Nothing in a step grows with the pool: count the lines that deciding runs, not the time."""
    import gc
    import sys

    counts = []
    for num_blocks in (1000, 100_000):
        h = engine(num_blocks=num_blocks)
        for i in range(8):
            h.add(f"r{i}", prompt(9, i), max_tokens=12)
        for _ in range(3):
            h.step()
        calls = 0

        def count(frame, event, arg):
            nonlocal calls
            calls += 1
            return count

        gc.collect()
        gc.disable()  # what other tests left behind may be tidied up by Python code
        before = sys.gettrace()  # coverage's
        sys.settrace(count)
        try:
            for _ in range(4):
                h.core.step()
        finally:
            sys.settrace(before)
            gc.enable()
        counts.append(calls)
    assert counts[0] == counts[1]


@LOOPS
def test_a_sequence_without_finite_logits_ends_alone_and_nobody_finds_its_blocks(
    engine, overlapped
):
    """The worker returns NO_TOKEN in the third step of one of two requests."""
    h = engine(async_scheduling=overlapped)
    compute = h.worker.execute
    computed = []

    def execute(plan):
        output = compute(plan)
        for place, row in enumerate(plan.rows):
            computed.append(row.request_id)
            if row.request_id == "a" and computed.count("a") == 3:
                output.tokens[place] = [NO_TOKEN]
        return output

    h.worker.execute = execute
    h.add("a", prompt(10), max_tokens=9)
    h.add("b", prompt(10, 7), max_tokens=9)
    h.run()
    assert h.finish_reasons == {("a", 0): "error", ("b", 0): "length"}
    assert len(h.answers["a", 0]) == 2
    del h.sent["a"]
    h.expect_solo_answers()
    [end] = [e for e in h.recorded(events.RequestFinished) if e.request_id == "a"]
    assert end.reason == "error" and "no finite logits for position 12" in end.why
    forgotten = [e for e in h.recorded(events.BlockEvicted) if "a failed" in e.why]
    assert len(forgotten) == 2  # full blocks of its prompt; the one that was full then isn't cached
    h.add("c", prompt(10), max_tokens=3)  # as a's: nothing is there
    h.add("d", prompt(10, 7), max_tokens=3)  # as b's
    h.run()
    cached = {e.request_id: e.num_cached_tokens for e in h.recorded(events.RequestAdmitted)}
    assert (cached["c"], cached["d"]) == (0, 8)


@LOOPS
def test_a_form_that_fails_takes_nothing_from_those_who_share_its_prompt(engine, overlapped):
    """Else one client could empty the prefix cache for all."""
    h = engine(async_scheduling=overlapped)
    compute = h.worker.execute

    def execute(plan):
        output = compute(plan)
        for place, row in enumerate(plan.rows):
            if row.request_id == "a":
                output.tokens[place] = [NO_TOKEN]
                output.details["a"] = RowDetail(failure="odd", failed_param="structured_outputs")
        return output

    h.worker.execute = execute
    h.add("first", prompt(10), max_tokens=2)
    h.run()
    h.add("a", prompt(10), max_tokens=9)
    h.run()
    h.add("b", prompt(10), max_tokens=2)
    h.run()
    assert h.finish_reasons["a", 0] == "error" and not h.recorded(events.BlockEvicted)
    cached = {e.request_id: e.num_cached_tokens for e in h.recorded(events.RequestAdmitted)}
    assert cached == {"first": 0, "a": 8, "b": 8}


@LOOPS
def test_a_decode_step_of_any_number_of_requests_takes_four_events(engine, overlapped):
    """Readers of the record get one event for each block that was begun or filled."""
    h = engine(num_blocks=200, max_num_seqs=20, async_scheduling=overlapped)
    for i in range(20):
        h.add(f"r{i}", prompt(5 + i % 4, start=i), max_tokens=20)
    for _ in range(4):
        h.step()
    with h.recorder._drain_lock:  # nobody drains meanwhile
        h.recorder._drain()
        most = 0
        for _ in range(8):
            h.step()
            most = max(most, len(h.recorder._buffer))
            h.recorder._drain()
    assert most == 4  # step.planned, step.finished, blocks grown, blocks cached
    h.run()
    h.expect_solo_answers()
    begun = {
        (event.request_id, event.index + i)
        for event in h.recorded(events.BlockAllocated)
        for i in range(len(event.blocks))
    }
    assert begun == {(f"r{i}", block) for i in range(20) for block in range((24 + i % 4 + 3) // 4)}


def test_a_prompt_of_one_token_has_its_prompt_logprobs(engine):
    h = engine()
    h.add("a", [5], max_tokens=2, prompt_logprobs=1)
    h.add("b", [5], max_tokens=0, prompt_logprobs=0, n=2)
    h.add("c", [5], max_tokens=1)
    told = {}
    while h.core.has_work:
        for output in h.step():
            if output.prompt_logprobs is not None:
                told.setdefault(output.request_id, []).append(output.prompt_logprobs)
    assert told == {"a": [[None]], "b": [[None], [None]]}


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_tokens_of_each_step_are_told_once(engine, overlapped):
    """tokens_told counts drawn tokens, and computed prompt tokens with the step that completed the
    prompt. Over all steps the sum is what was computed and drawn, whatever was chunked, cached or
    preempted."""
    h = engine(num_blocks=12, max_num_batched_tokens=7, async_scheduling=overlapped)
    for i in range(6):
        h.add(f"r{i}", prompt(5 + 2 * i), max_tokens=9, n=1 + i % 2)
    told, computed = {}, {}
    while h.core.has_work:
        for output in h.step():
            asked = len(h.sent[output.request_id].prompt_token_ids)
            computed.setdefault(output.request_id, asked - output.num_cached_tokens)
        stats = h.core.stats()
        assert told.setdefault(stats.told_step, stats.tokens_told) == stats.tokens_told
    drawn = sum(len(tokens) for tokens in h.answers.values())
    assert sum(told.values()) == drawn + sum(computed.values())
    assert h.recorded(events.RequestPreempted)


def test_an_id_that_reads_like_a_sequence_of_another_is_refused(engine):
    h = engine()
    h.add("a", prompt(3), n=2, max_tokens=8)
    h.step()
    for name in ("a.1", "x.23"):
        with pytest.raises(RequestError, match="reads like a sequence") as refused:
            h.add(name, prompt(3), max_tokens=2)
        assert refused.value.param == "request_id"
    h.add("a.b", prompt(3), max_tokens=2)  # names nothing else
    h.add("a.01", prompt(3), max_tokens=2)
    h.run()
    h.expect_solo_answers()


@pytest.mark.parametrize("n", [1, 2])
def test_an_aborted_requests_id_is_free_at_once_though_its_step_is_in_flight(engine, n):
    h = engine(async_scheduling=True)
    h.add("a", prompt(5), n=n, max_tokens=9)
    for _ in range(3):
        h.step()
    h.core.abort("a", "the client left")
    h.forget("a")
    assert h.core.scheduler.leaving
    h.add("a", prompt(4, 2), n=n, max_tokens=6)
    h.run()
    h.expect_solo_answers("a")


@LOOPS
def test_a_seat_is_free_once_the_last_step_in_flight_is_back(engine, overlapped):
    """The worker keeps a row until then: a plan that gives its seat away too early fails."""
    h = engine(max_num_seqs=3, async_scheduling=overlapped, num_blocks=64)
    for i in range(24):
        h.add(f"r{i}", [i + 1, 2, 3], max_tokens=9, stop_token_ids=list(range(0, 4096, 3)), n=1)
    h.run()
    h.expect_solo_answers()
    assert "stop" in h.finish_reasons.values()


def test_a_waiting_request_whose_grammar_forces_tokens_does_not_stop_the_overlap(engine):
    h = engine(num_blocks=7, async_scheduling=True)
    h.add("a", prompt(11), max_tokens=14)
    h.add("b", prompt(11, 20), max_tokens=14)
    while not len(h.core.scheduler.waiting) or h.core.scheduler.step_number < 4:
        h.step()
    [waits] = h.core.scheduler.waiting.in_order()
    assert waits.num_output_tokens, "it was preempted"
    h.core.scheduler.proposals.set_forced(waits, [7])
    h.step()
    assert h.core._in_flight and waits.status is Status.WAITING
    h.core.scheduler.proposals.set_forced(waits, [])
    h.run()
    h.expect_solo_answers()


@LOOPS
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_after_a_step_that_was_broken_off_all_can_be_aborted_and_others_served(
    engine, at, computed, overlapped
):
    """As when Ctrl-C ends `LLM.generate`, before or after the worker has done what is planned."""
    h = engine(num_blocks=12, max_num_seqs=4, max_num_batched_tokens=7, async_scheduling=overlapped)
    execute, steps = h.worker.execute, itertools.count()

    def interrupted(plan):
        known = [name for name in dict.fromkeys(plan.dropped) if name in h.worker.tokens]
        plan = copy(plan)
        plan.dropped = known  # as the real worker does
        if next(steps) != at:
            return execute(plan)
        if computed:
            execute(plan)
        raise KeyboardInterrupt

    if overlapped:  # as on CUDA: on this thread

        def launch(plan):
            output = h.worker.execute(plan)
            return SimpleNamespace(result=lambda: output)

        h.core._launch = launch
    h.worker.execute = interrupted
    prompts = {name: prompt(5 + i, i) for i, name in enumerate("abcde")}
    for name, ids in prompts.items():
        h.add(name, ids, n=2, max_tokens=4)
    with pytest.raises(KeyboardInterrupt):
        h.run()
    for name in prompts:
        h.core.abort(name, "LLM stopped: KeyboardInterrupt")
        h.forget(name)
    assert h.core.has_work == overlapped * (at > 0)  # the step before is still to be booked
    for name, ids in prompts.items():  # found in the prefix cache is only what was computed
        h.add(name, [*ids, 1], n=2, max_tokens=4)
    h.run()
    h.expect_solo_answers()


def test_a_wait_for_the_worker_may_be_interrupted(engine):
    h = engine(async_scheduling=True)
    for name in "ab":
        h.add(name, prompt(5), max_tokens=9)
    h.step()
    pending = h.core._in_flight[0]
    result = pending[3].result

    def interrupted():
        pending[3].result = result
        raise KeyboardInterrupt

    pending[3].result = interrupted
    with pytest.raises(KeyboardInterrupt):
        h.run()
    h.core.abort("a", "LLM stopped: KeyboardInterrupt")
    h.forget("a")
    h.run()
    h.expect_solo_answers("b")
