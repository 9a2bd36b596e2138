"""Rule 11: proposals change nothing but the number of steps, and leave nothing behind."""

from __future__ import annotations

import itertools
import random
import sys

import pytest

from engine.core import worth
from engine.core.block_pool import block_hash, root_hash
from engine.core.hits import HitsByLength, chances
from engine.core.messages import CoreRequest
from engine.core.proposer import NgramProposer, Proposed
from engine.core.request import Request
from engine.core.speculator import Speculator
from engine.core.step_costs import StepCosts
from engine.core.verification import num_right
from engine.placeholders import UNKNOWN
from engine.sampling_params import SamplingParams
from engine.trace import events
from tests.support.core_harness import Harness
from tests.support.paged_oracle import solo_answer
from tests.support.proposing import NothingCosts, proposals, proposing_scheduler

LOOPS = pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])


@pytest.fixture
def engine():
    made: list[Harness] = []

    def make(most=5, num_blocks=40, **options) -> Harness:
        host_blocks = options.pop("num_host_blocks", 0)
        options["speculative_config"] = proposals(most)
        made.append(
            Harness(num_blocks, host_blocks, options=options, scheduler=proposing_scheduler)
        )
        return made[-1]

    yield make
    for harness in made:
        harness.close()


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + i) % 50 for i in range(length)]


def free_text(name: str, draw: random.Random, length: int) -> Request:
    """Make a request whose tokens are random."""
    token_ids = [draw.randrange(60) for _ in range(length)]
    params = SamplingParams(max_tokens=5000)
    core = CoreRequest(request_id=name, prompt_token_ids=token_ids, params=params)
    return Request(core, (0, 0, 0), 0, 100_000)


class EndlessBlocks:
    """Stand in for a pool with room for any proposal."""

    block_size = 16

    class pool:
        num_free = 10_000

    def blocks_to_grow(self, request: Request, count: int) -> int:
        return 0


def steps(harness: Harness) -> int:
    return len(harness.recorded(events.StepFinished))


@LOOPS
@pytest.mark.parametrize("most", [1, 2, 5, 20])
def test_the_same_text_in_fewer_steps(engine, overlapped, most):
    h = engine(most, async_scheduling=overlapped)
    h.add("a", prompt(10), max_tokens=40)
    h.run()
    h.expect_solo_answers()
    assert steps(h) < 40
    verified = h.recorded(events.SpecVerified)
    assert sum(e.num_accepted for e in verified) == 40 - steps(h)
    assert {e.num_accepted < e.num_proposed for e in verified} == {True, False}


@LOOPS
@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_with_too_few_blocks_proposals_go_first(engine, overlapped, mode):
    """Preemptions happen where they happen without proposals: never for a proposal."""
    told = []
    for most in (0, 5):
        h = engine(most, 9, num_host_blocks=20, preemption_mode=mode, async_scheduling=overlapped)
        h.add("old", prompt(12), max_tokens=20)
        h.add("young", prompt(12, 20), max_tokens=20)
        h.run()
        h.expect_solo_answers()
        told.append(h.recorded(events.RequestPreempted))
    without, with_proposals = told
    assert without and {e.request_id for e in with_proposals} <= {"young"}
    assert all(e.need <= 2 for e in with_proposals), (
        "room for a token and a copy, not for proposals"
    )


def test_wrong_proposals_are_never_cached(engine):
    """The prefix cache has the blocks of the texts, with their own tokens in the pages."""
    h = engine(7, 70)
    for i in range(6):
        h.add(f"r{i}", prompt(9, 8 * i), max_tokens=30, seed=i)
    h.run()
    expected = {}
    for i in range(6):
        parent, text = root_hash(""), prompt(9, 8 * i) + solo_answer(prompt(9, 8 * i), i, 30)
        for first in range(0, len(text) - 4, 4):  # the last token isn't computed
            tokens = text[first : first + 4]
            parent = block_hash(parent, tokens)
            expected[parent] = [(token, first + place) for place, token in enumerate(tokens)]
    cached = h.core.scheduler.kv.pool.cached
    assert {hash: h.worker.pages[block] for hash, block in cached.items()} == expected
    assert any(e.num_accepted < e.num_proposed for e in h.recorded(events.SpecVerified))


def test_a_later_prompt_may_find_what_was_proposed(engine):
    h = engine(7)
    h.add("a", prompt(9), max_tokens=30)
    h.run()
    answer = h.answers["a", 0]
    h.add("b", prompt(9) + answer, max_tokens=9, seed=4)
    h.run()
    h.expect_solo_answers()
    admitted = h.recorded(events.RequestAdmitted)[-1]
    assert admitted.num_cached_tokens == (9 + 30 - 1) // 4 * 4


@LOOPS
def test_forks_speculate_and_copy_before_they_write(engine, overlapped):
    h = engine(6, 80, async_scheduling=overlapped)
    h.add("a", prompt(10), n=4, max_tokens=25)
    h.run()
    h.expect_solo_answers()
    assert {e.request_id for e in h.recorded(events.SpecVerified)} == {"a", "a.1", "a.2", "a.3"}
    assert h.recorded(events.BlockCopied)


def test_a_step_draws_no_more_than_it_may_have_rows(engine):
    """The worker keeps memory for so many draws, and a prompt with n > 1 draws n of them."""
    h = engine(7, 900, max_num_seqs=64, enable_prefix_caching=False)
    for i in range(30):
        h.add(f"r{i}", prompt(4, i), max_tokens=20)
    h.step()
    h.add("a", prompt(4, 40), n=34, max_tokens=2)
    h.run()
    h.expect_solo_answers()
    planned = h.recorded(events.StepPlanned)
    most = h.config.max_step_rows
    assert max(len(e.rows) for e in planned) == most == 128
    assert max(sum(row.samples for row in e.rows) for e in planned) == most
    forking = next(e for e in planned if any(row.samples == 34 for row in e.rows))
    assert len(forking.rows) > 31, "what room there is is used"


@LOOPS
def test_the_text_ends_where_it_would_have(engine, overlapped):
    """At the stop token, though proposals behind it were right; never beyond max_tokens."""
    answer = solo_answer(prompt(10), 0, 40)
    for place in range(1, 30):
        h = engine(8, async_scheduling=overlapped)
        h.add("a", prompt(10), max_tokens=place, eos_token_ids=[answer[17]])
        h.run()
        h.expect_solo_answers()
        first = answer.index(answer[17]) + 1
        assert h.finish_reasons["a", 0] == ("stop" if place >= first else "length")


def test_the_last_token_of_the_context(engine):
    h = engine(8)
    h.add("a", prompt(50), max_tokens=None)
    h.run()
    h.expect_solo_answers()
    assert len(h.answers["a", 0]) == 64 - 50


@LOOPS
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_proposals_take_what_the_budget_leaves(engine, overlapped, budget):
    h = engine(5, max_num_batched_tokens=budget, async_scheduling=overlapped)
    for i in range(3):
        h.add(f"r{i}", prompt(5 + 4 * i, i), max_tokens=12)
    h.run()
    h.expect_solo_answers()
    planned = h.recorded(events.StepPlanned)
    assert max(e.budget_used for e in planned) <= budget
    for event in planned:  # who runs gets its token first
        names = [row.request_id for row in event.rows]
        assert len(set(names)) == min(event.num_running, budget) or event.num_running > len(names)


def test_proposals_leave_room_for_those_who_wait(engine):
    h = engine(5, 60, max_num_batched_tokens=8)
    h.add("a", prompt(4), max_tokens=30)
    h.step()
    h.step()
    h.add("b", prompt(20, 7), max_tokens=2)
    h.step()
    rows = h.recorded(events.StepPlanned)[-1].rows
    assert [(r.request_id, r.num_tokens) for r in rows] == [("a", 1), ("b", 7)]
    h.run()
    h.expect_solo_answers()


@LOOPS
def test_an_abort_right_after_proposals_leaves_nothing(engine, overlapped):
    for when in range(1, 12):
        h = engine(5, async_scheduling=overlapped)
        h.add("a", prompt(10), n=2, max_tokens=40)
        h.add("b", prompt(10), max_tokens=20)
        for _ in range(when):
            h.step()
        h.core.abort("a", "test")
        h.run()
        h.expect_solo_answers("b")


class Costs(NothingCosts):
    """Claim that a row costs what a step costs, so that nothing pays, until told otherwise."""

    each = 1.0

    def line(self, num_rows: int) -> tuple[float, float]:
        return 1.0 - self.each, self.each


def test_the_loop_overlaps_while_no_proposal_pays(engine):
    h = engine(5, 90, async_scheduling=True)
    costs = h.core.scheduler.speculator.costs = Costs()
    h.add("a", prompt(10), max_tokens=60)
    for _ in range(20):
        h.step()
    assert not h.recorded(events.SpecVerified)
    costs.each = 0.0
    h.run()
    h.expect_solo_answers()
    finished = {e.step: e.seq for e in h.recorded(events.StepFinished)}
    planned = h.recorded(events.StepPlanned)
    ahead = [e.step for e in planned if e.seq < finished.get(e.step - 1, 0)]
    verified = {e.step for e in h.recorded(events.SpecVerified)}
    assert ahead and verified and max(ahead) < min(verified)


def test_no_step_follows_proposals_in_flight_though_their_request_is_aborted(engine):
    """The worker keeps no drawn tokens of such a step, so the others' next ones aren't known."""
    h = engine(5, 90, async_scheduling=True)
    costs = h.core.scheduler.speculator.costs = Costs()
    costs.each = 0.0
    for request_id in ("a", "b"):
        h.add(request_id, prompt(10), max_tokens=60)
    proposed: set[str] = set()
    while proposed != {"a"}:
        assert h.core.has_work
        h.step()
        proposed = set().union(*(plan.proposed for plan, *_ in h.core._in_flight))
    costs.each = 1.0  # from now on no proposal pays
    h.core.abort("a", "gone")
    assert h.core.scheduler.schedule() is None
    h.run()
    h.expect_solo_answers("b")


def test_a_grammar_stops_the_overlap_only_where_it_forces_more_than_is_being_drawn(engine):
    h = engine(5, 90, async_scheduling=True)
    h.core.scheduler.speculator.costs = Costs()
    h.add("a", prompt(10), max_tokens=60)
    for _ in range(3):
        h.step()
    [request] = h.core.scheduler.running
    request.grammar = object()
    h.core.scheduler.speculator.costs = NothingCosts()  # any proposal pays, but it gets none
    for forced, waits in (([], False), ([7], False), ([7, 8], True), ([], False)):
        h.core.scheduler.proposals.set_forced(request, forced)
        h.step()
        assert bool(h.core._in_flight) != waits, forced
        h.step()
        assert h.core._in_flight
    h.run()
    h.expect_solo_answers()
    assert not h.recorded(events.SpecVerified)


def test_counts_of_a_step(engine):
    h = engine(5)
    h.add("a", prompt(10), max_tokens=30)
    drafts = proposed = told = 0
    accepted: list[int] = [0] * 5
    while h.core.has_work:
        tokens = sum(len(output.token_ids) for output in h.step())
        stats = h.core.stats()
        drafts, proposed = drafts + stats.num_drafts, proposed + stats.num_proposed
        for place, count in enumerate(stats.accepted):
            accepted[place] += count
        told += stats.tokens_told - (10 if tokens and not told else 0)
    verified = h.recorded(events.SpecVerified)
    assert told == 30
    assert drafts == len(verified)
    assert proposed == sum(e.num_proposed for e in verified)
    assert sum(accepted) == sum(e.num_accepted for e in verified) > 0
    assert accepted[0] == sum(e.num_accepted > 0 for e in verified)
    sampled = sum(e.num_sampled for e in h.recorded(events.StepFinished))
    assert sampled == 30, "wrong proposals' draws aren't tokens"


@pytest.mark.parametrize(
    ("proposed", "drawn", "right"),
    [([], [4], 0), ([4], [4, 5], 1), ([5], [4, 5], 0), ([4, 5, 6], [4, 5, 7, 6], 2)],
)
def test_num_right(proposed, drawn, right):
    assert num_right(proposed, drawn) == right


def sequence(token_ids: list[int]) -> Request:
    core = CoreRequest(request_id="a", prompt_token_ids=token_ids, params=SamplingParams())
    return Request(core, (0, 0, 0), 0, 100)


@pytest.mark.parametrize(
    ("token_ids", "most", "found", "source"),
    [
        ([1, 2, 3, 9, 1, 2], 2, [3, 9], 2),
        ([1, 2, 3, 9, 1, 2], 9, [3, 9, 1, 2, 3, 9, 1, 2, 3], 2),  # it goes on to repeat
        ([1, 2, 7, 1, 2, 8, 1, 2], 1, [8], 5),  # the last place
        ([5, 1, 2, 7, 1, 2, 8, 5, 1, 2], 1, [7], 3),  # a longer match wins
        ([3, 3, 3], 4, [3, 3, 3, 3], 2),
        ([1, 2, 3, 4], 4, [], -1),
        ([1], 4, [], -1),
        ([256, 1, 2, 65536, 256], 1, [], -1),  # equal bytes, but not at the start of a token
    ],
)
def test_prompt_lookup(token_ids, most, found, source):
    proposal = NgramProposer(2, 4).propose(sequence(token_ids), most)
    assert list(proposal.token_ids) == found
    assert proposal.source == source or not found


def equal_tokens(tokens: list[int], source: int) -> int:
    """Return how many tokens before a place are equal to the last ones."""
    count = 0
    while count < source and tokens[source - 1 - count] == tokens[-1 - count]:
        count += 1
    return count


@pytest.mark.parametrize(("shortest", "longest"), [(1, 400), (1, 3), (3, 5), (4, 4)])
def test_prompt_lookup_follows_the_text(shortest, longest):
    """It finds what a search of the whole text finds, at every length of a growing text.

    With a limit below the text's length, a place that has come true is kept, though the limit
    would let a later one win.
    """
    draw = random.Random(3)
    request, proposer = sequence([draw.randrange(3)]), NgramProposer(shortest, longest)
    found = 0
    for _ in range(300):
        tokens = request.token_ids
        lengths = {place: equal_tokens(tokens, place) for place in range(1, len(tokens))}
        most = max(lengths.values(), default=0)
        proposed = proposer.propose(request, 2)
        assert bool(proposed.token_ids) == (most >= shortest)
        if proposed.token_ids:
            found += 1
            assert lengths[proposed.source] >= proposed.matched >= min(most, longest)
            copied = tokens[proposed.source :][:2]
            assert proposed.token_ids == (copied * 2)[:2]
            if longest > len(tokens):
                assert proposed.matched == most
                assert proposed.source == max(p for p, its in lengths.items() if its == most)
        for _ in range(draw.choice([1, 1, 2, 5])):  # drawn in one step
            source = tokens[proposed.source] if proposed.token_ids else 0
            tokens.append(source if draw.random() < 0.6 else draw.randrange(3))
    assert found > 100


def speculator(fixed: float, each: float, most: int = 7) -> Speculator:
    """Return one that knows how long steps take: `fixed + each · rows`."""
    harness = Harness(60, options={"speculative_config": proposals(most)})
    harness.close()
    made = harness.core.scheduler.speculator
    assert made is not None
    for rows in (1, 2, 4, 8, 16, 64, 128):
        for _ in range(10):  # fewer don't count
            made.costs.observe(rows, fixed + each * rows)
    return made


def decoding(count: int) -> list[Request]:
    """Return requests whose last tokens stood before."""
    return [sequence([1, 2, 3, 4, 5, 6, 7, 8, 9] * 2) for _ in range(count)]


@pytest.mark.parametrize(
    ("fixed", "each", "requests", "proposed"),
    [
        (100.0, 0.0, 1, 7),  # rows cost nothing
        (100.0, 50.0, 1, 4),  # behind nine equal tokens 0.87 are right: 0.87⁴ pays, 0.87⁵ doesn't
        (0.0, 100.0, 1, 0),  # a row costs a step
        (100.0, 5.0, 64, 0),  # a full batch: a row costs what a token is worth
        (0.0, 0.0, 1, 0),  # no time was measured: nothing is known
    ],
)
def test_what_pays_is_proposed(fixed, each, requests, proposed):
    chosen = speculator(fixed, each).choose(decoding(requests), requests, 2000)
    assert sum(len(token_ids) for _, token_ids in chosen) == proposed


def test_the_number_adapts_to_what_was_right():
    made, (request,) = speculator(100.0, 50.0), decoding(1)
    [(_, usual)] = made.choose([request], 1, 2000)
    for _ in range(10):
        made.choose([request], 1, 2000)
        made.verified(request, 7, 7)
    [(_, more)] = made.choose([request], 1, 2000)
    assert len(more) == 7 > len(usual) == 4
    for _ in range(80):
        if made.choose([request], 1, 2000):
            made.verified(request, 1, 0)
    tried = 0
    for _ in range(1000):
        if made.choose([request], 1, 2000):
            made.verified(request, 1, 0)
            tried += 1
    assert 5 < tried < 50, "what was wrong is tried again, but seldom: a row costs half a step"


def test_short_equal_parts_are_doubted_and_long_ones_trusted():
    """Of one sequence, proposals behind one equal token may be wrong and those behind many right:
    what is known of either says nothing of the other."""
    made = speculator(100.0, 20.0, 15)
    short = sequence([1, 2, 3, 4, 5, 6, 7, 9, 4])
    long = sequence([*range(1, 30), *range(1, 25)])
    for _ in range(20):
        for request, right in ((short, 0), (long, 15)):
            for _, token_ids in made.choose([request], 1, 2000):
                made.verified(request, len(token_ids), min(right, len(token_ids)))
    assert made.choose([short], 1, 2000) == []
    [(_, token_ids)] = made.choose([long], 1, 2000)
    assert len(token_ids) == 15
    new_short, new_long = sequence([8, 8, 3, 8, 7, 3]), sequence([*range(30, 60), *range(30, 50)])
    found = dict(made.choose([new_short, new_long], 2, 2000))
    assert new_short not in found, "what others' were is known"
    assert len(found[new_long]) == 15


@pytest.mark.parametrize(("matched", "count"), [(1, 15), (5, 3), (14, 2), (40, 2)])
def test_chances_by_length(matched, count):
    """Each place of a draft has a chance of its own: by its class, its sequence and all others."""
    own, everyone, none = HitsByLength(), HitsByLength(), HitsByLength()
    prior = chances(None, none, matched, count)
    assert prior == chances(none, none, matched, count)
    assert prior[0] < 1 and all(b / a >= prior[0] for a, b in itertools.pairwise(prior))
    for _ in range(60):
        everyone.add(matched, count, 0)
    trusted = chances(None, everyone, matched, count)
    assert all(a > b for a, b in zip(trusted, prior)) and trusted[-1] > 0.6
    for _ in range(60):
        own.add(matched, 0, 1)
    assert chances(own, everyone, matched, count)[0] < 0.3
    other = 1 if matched > 1 else 3
    assert chances(own, none, other, 1) == chances(None, none, other, 1)


def test_costs_follow_the_shortest_of_the_last_steps():
    costs = StepCosts()
    assert costs.line(1)[1] > 0, "a row costs something before any step is known"
    for _ in range(50):
        for rows in (1, 2, 4, 8):
            costs.observe(rows, 100 + 10 * rows + (900 if rows == 4 else 0))
            costs.observe(rows, 100 + 10 * rows)
    fixed, each = costs.line(1)
    assert abs(fixed - 100) < 5 and abs(each - 10) < 1
    for _ in range(300):  # a longer context: all steps take longer
        for rows in (1, 2, 4, 8):
            costs.observe(rows, 500 + 20 * rows)
    fixed, each = costs.line(1)
    assert abs(fixed - 500) < 25 and abs(each - 20) < 2


def test_a_row_costs_something_though_longer_steps_seem_shorter():
    costs = StepCosts()
    for rows in (2, 4, 8) * 10:
        costs.observe(rows, 130.0 - rows)
    fixed, each = costs.line(1)
    assert each > 1 and 110 < fixed + 4 * each < 135


def test_nothing_is_proposed_where_the_first_row_more_costs_too_much():
    """A step of one row may take another way through the kernels than one of some rows."""
    costs = StepCosts()
    for _ in range(50):
        for rows in (1, 2, 4, 8):
            costs.observe(rows, 100.0 if rows == 1 else 140.0 + 5 * rows)
    fixed, each = costs.line(1)
    assert abs(fixed - 140) < 3 and abs(each - 5) < 0.5 and costs.of(1) < 102 and not costs.of(3)
    step = worth.BareStep(1, fixed, each, 15, costs.of(1))
    assert worth.most_probable(step, [[0.3, 0.05]]) == [0]
    assert worth.most_probable(step, [[0.3, 0.05], [0.3, 0.2]]) == [1, 2]
    assert worth.most_probable(step._replace(measured=0.0), [[0.3, 0.05]]) == [2]
    assert worth.by_passes(step, [0.3], [2], lambda rows: 0.0) == [0]
    assert worth.by_passes(step, [0.9], [2], lambda rows: 0.0) == [2]


@pytest.mark.parametrize(
    ("shares", "pass_us", "each", "counts"),
    [
        ([0.7], 0.0, 0.0, [4]),  # nothing costs anything
        ([1.0], 50.0, 1.0, [4]),  # half a step for a sure token
        ([0.4], 50.0, 1.0, [0]),
        ([0.7], 20.0, 1.0, [3]),  # 2.53 / 164: more than 2.19 / 143 and 2.77 / 185
        ([0.7, 0.7], 60.0, 1.0, [1, 1]),  # a pass for two costs what it costs for one
        ([0.7, 0.1], 20.0, 10.0, [1, 0]),
        ([0.9] * 64, 100.0, 100.0, [0] * 64),  # a full batch
    ],
)
def test_how_many_passes_of_a_draft_model_pay(shares, pass_us, each, counts):
    step = worth.BareStep(len(shares), 100.0, each, 500)
    assert worth.by_passes(step, shares, [4] * len(shares), lambda rows: pass_us) == counts


def test_passes_of_a_draft_model_stay_within_the_room():
    step = worth.BareStep(3, 100.0, 0.0, 7)
    counts = worth.by_passes(step, [0.9, 0.5, 0.8], [4, 4, 2], lambda rows: 0.0)
    assert counts[2] == 2 and sum(counts) <= 7 and counts[0] == 4
    assert worth.by_passes(worth.BareStep(1, 0.0, 0.0, 7), [1.0], [4], lambda rows: 0.0) == [0]


@pytest.mark.parametrize("others", [1, 64])
def test_choosing_passes_takes_few_operations_for_many_seats(others):
    """The longest case: no number of passes fills the room early."""
    lines = 0

    def trace(frame, event, _argument):
        nonlocal lines
        lines += frame.f_code is worth.by_passes.__code__ and event == "line"
        return trace

    seats, most = 256, [64] + [others] * 255
    step = worth.BareStep(seats, 1000.0, 0.001, 10**6)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        counts = worth.by_passes(step, [0.9] * seats, most, lambda rows: 1.0)
    finally:
        sys.settrace(before)
    assert counts[0] and counts[1]
    assert lines < 150 * seats  # 64 passes would be three times as many


@pytest.mark.parametrize("most", [9, 40, 64, 200])
def test_the_number_of_passes_is_nearly_the_best(most):
    step, cost = worth.BareStep(1, 1000.0, 1.0, 500), 20.0
    value = [
        (1 + sum(0.95**j for j in range(1, passes + 1))) / (1001 + (1 + cost) * passes)
        for passes in range(most + 1)
    ]
    (chosen,) = worth.by_passes(step, [0.95], [most], lambda rows: cost)
    assert value[chosen] > 0.99 * max(value)


def test_a_draft_model_is_tried_before_its_time_is_known():
    harness = Harness(60, options={"speculative_config": {"method": "draft", "model": "small"}})
    harness.close()
    made = harness.core.scheduler.speculator
    assert made is not None
    requests = decoding(2)
    assert made.choose(requests, 2, 2000) == [(r, [UNKNOWN] * 3) for r in requests]
    for rows in (1, 2, 4, 8) * 10:
        made.costs.observe(rows, 100.0 + rows)
        made.passes.observe(rows, 40.0 + rows)
    [first, second] = made.choose(requests, 2, 2000)
    assert len(first[1]) == len(second[1]) == 1, "a pass takes nearly half a step"
    for _ in range(20):
        made.choose(requests, 2, 2000)
        for request in requests:
            made.verified(request, 1, 0)
    assert made.choose(requests, 2, 2000) == []


@pytest.mark.parametrize("first_row", [0, 200, 400, 600])
def test_free_text_is_hardly_ever_waited_for(first_row):
    """Whatever holds proposals back: that none is found, that none pays, that all are wrong."""
    draw, waits = random.Random(1), 0
    speculator = Speculator(EndlessBlocks(), NgramProposer(1, 16), 15, 128)  # type: ignore[arg-type]
    for _ in range(30):
        for rows in (1, 4, 8, 16):
            speculator.costs.observe(rows, 1000 + 20 * rows + first_row * (rows > 1))
    request = free_text("a", draw, 200)
    for _ in range(1000):
        waited = speculator.wants([request], [])
        waits += waited
        token = draw.randrange(60)
        for _, token_ids in speculator.choose([request], 1, 1000) if waited else []:
            speculator.verified(request, len(token_ids), int(token_ids[0] == token))
        request.token_ids.append(token)
        speculator.costs.observe(1, 1020.0)
    assert waits < 120
    # a text that repeats is waited for in nearly every step again
    for token in itertools.islice(itertools.cycle(request.token_ids[-30:]), 300):
        waited = speculator.wants([request], [])
        waits += waited
        for _, token_ids in speculator.choose([request], 1, 1000) if waited else []:
            speculator.verified(request, len(token_ids), int(token_ids[0] == token))
        request.token_ids.append(token)
        speculator.costs.observe(1, 1020.0)
    assert waits > 300


def checked_step(speculator: Speculator, request: Request, future: list[int]) -> int:
    """Take a step of one sequence whose text is known; return how many proposals were right."""
    right = 0
    for _, token_ids in speculator.choose([request], 1, 1000):
        right = num_right(token_ids, future)
        speculator.verified(request, len(token_ids), right)
    request.token_ids += future[: right + 1]
    return right


@pytest.mark.parametrize("each", [1, 60, 200])
def test_a_copy_is_found_at_once_after_free_text(each):
    """Short equal parts that were wrong for long don't hold a long one back."""
    for seed in range(10):
        draw = random.Random(seed)
        speculator = Speculator(EndlessBlocks(), NgramProposer(1, 16), 15, 128)  # type: ignore[arg-type]
        for _ in range(30):
            for rows in (1, 4, 8, 16):
                speculator.costs.observe(rows, 1000.0 + each * rows)
        request = free_text("a", draw, 300)
        copied = request.token_ids[100:200]
        for _ in range(300):
            checked_step(speculator, request, [draw.randrange(60)])
        steps, end = 0, request.num_tokens + len(copied)
        while request.num_tokens < end:
            checked_step(speculator, request, copied[request.num_tokens - end :])
            steps += 1
        assert steps <= 12  # seven of 16 tokens, and some until enough are equal


class CountedLookups(NgramProposer):
    """Count how often each sequence is looked up."""

    def __init__(self) -> None:
        super().__init__(1, 16)
        self.counts: dict[str, int] = {}

    def propose(self, request: Request, most: int, least_equal: int = 0) -> Proposed:
        self.counts[request.id] = self.counts.get(request.id, 0) + 1
        return super().propose(request, most, least_equal)


@pytest.mark.parametrize(("step_us", "looked_up"), [(200.0, 1), (1600.0, 3), (20_000.0, 8)])
def test_looking_up_takes_a_small_part_of_a_step(step_us, looked_up):
    """Of 8 sequences of free text so many are looked up in a step, all in turn."""
    draw, proposer = random.Random(2), CountedLookups()
    speculator = Speculator(EndlessBlocks(), proposer, 1, 256)  # type: ignore[arg-type]
    for _ in range(30):
        for rows in (4, 8, 16):
            speculator.costs.observe(rows, step_us + step_us / 100 * (rows - 8))
    requests = [free_text(f"a{i}", draw, 20) for i in range(8)]
    for step in range(81):
        if step == 1:  # all were tried once
            assert set(proposer.counts.values()) == {1} and len(proposer.counts) == 8
            proposer.counts.clear()
        for request, token_ids in speculator.choose(requests, 8, 2000):
            speculator.verified(request, len(token_ids), 0)
        for request in requests:
            request.token_ids.append(draw.randrange(10**6))
    counts = proposer.counts.values()
    assert len(counts) == 8 and max(counts) - min(counts) <= 1
    assert abs(sum(counts) / 80 - looked_up) <= 1


@pytest.mark.parametrize("count", [2, 12, 64])
def test_a_copy_does_not_outweigh_what_is_known_of_all_beyond_a_tile(count):
    """What a row more costs is hardly known there."""
    made = speculator(100.0, 100.0 / count, 15)
    for _ in range(50):
        made.everyone.add(0, 1)
    assert not made.choose(decoding(count), count, 2000)
    for _ in range(40):
        made.everyone.add(3, 0)
    assert made.choose(decoding(count), count, 2000), "most was right lately"


def test_short_parts_are_not_searched_where_only_long_ones_pay():
    proposer, tokens = NgramProposer(1, 16), [1, 2, 3, 9, 1, 2, 3]
    assert proposer.propose(sequence(tokens), 1, 4).token_ids == []
    request = sequence(tokens)
    assert proposer.propose(request, 1, 3) == ([9], 3, 3)
    assert proposer.propose(request, 1, 4).token_ids == []
    request.token_ids.append(9)  # it came true
    assert proposer.propose(request, 1, 4) == ([1], 4, 4)


def test_chances_fade_once_a_step_however_many_were_left_out():
    """Else what all know of one equal token is forgotten the sooner the more requests there are."""
    found = []
    for count in (1, 32):
        draw = random.Random(1)
        speculator = Speculator(EndlessBlocks(), NgramProposer(1, 16), 15, 128)  # type: ignore[arg-type]
        for _ in range(30):
            for rows in (1, 8, 32, 64):
                speculator.costs.observe(rows, 1000.0 + 900 * rows)
        speculator.everyone.add(100, 0)  # worth a look
        for _ in range(200):
            speculator.everyone_by_length.add(1, 0, 1)
        requests = [free_text(f"a{i}", draw, 200) for i in range(count)]
        speculator.choose(requests, count, 2000)
        found.append(chances(None, speculator.everyone_by_length, 1, 1)[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("right", [0, 1, 5, 30])
def test_a_draft_fades_the_ones_before_it_once(right):
    """Whether its right and its wrong proposals fall into one class or into several."""
    by_length = HitsByLength()
    for _ in range(400):
        by_length.add(1, right, 1)
    for kind, hits in by_length._hits.items():
        one = HitsByLength()
        one.add(1, right, 1)
        expected = one._hits[kind]
        assert hits.right == pytest.approx(10 * expected.right)
        assert hits.wrong == pytest.approx(10 * expected.wrong)
