"""Sentences: one for every kind, complete, with the numbers of the event; and the story that joins
them.
"""

from __future__ import annotations

import io
import json
import re

import pytest

from engine.trace import events as ev
from engine.trace.annotate import annotate
from engine.trace.columns import RichPrinter
from engine.trace.console import LogConsole, Throttle
from engine.trace.context import Context
from engine.trace.story import Line, Story
from engine.trace.wording import amount, blocks, count, duration, quoted, ranges, size
from tests.trace.example_events import ID, stamped
from tests.trace.model_engine import ModelEngine

MS = 1_000_000


def sentences() -> list[tuple[str, str]]:
    context = Context()
    return [(ev.kind(event), annotate(event, context)) for event in stamped()]


@pytest.mark.parametrize(("kind", "line"), sentences(), ids=[kind for kind, _line in sentences()])
def test_every_kind_has_a_sentence(kind, line):
    assert line and "\n" not in line and line == line.strip()
    assert len(line) <= 200
    assert not re.search(r"None|\bnan\b|\[|\{|Enum|  ", line), line
    assert ID not in line, "a long id stands where its short name should"


@pytest.mark.parametrize("event", ev.ALL_EVENTS, ids=[ev.kind(event) for event in ev.ALL_EVENTS])
def test_an_event_with_nothing_but_defaults_still_reads(event):
    assert annotate(event(), Context())


def test_the_line_about_waiting_says_what_how_much_and_when():
    line = dict(sentences())["request.waiting"]
    assert line == (
        "waits: needs 5 blocks, 2 free; 3 come back when req-3 ends (at most 41 steps); "
        "2 more behind it"
    )


@pytest.mark.parametrize("waits_for", ["budget", "preemption"])
def test_other_waits_give_the_recorded_reason(waits_for):
    event = ev.RequestWaiting(request_id="a", waits_for=waits_for, why="the step is full")
    assert annotate(event, Context()) == "waits: the step is full"


def test_freed_blocks_tell_who_still_reads_them():
    context = Context()
    lines = [
        annotate(event, context)
        for event in [
            ev.EngineKvSized(seq=1, num_blocks=8, block_size=16),
            ev.RequestQueued(seq=2, request_id="a", rank=[0, 1]),
            ev.BlockAllocated(seq=3, request_id="a", blocks=[0, 1, 2]),
            ev.BlockCached(seq=4, request_id="a", blocks=[0, 1], hashes=["x", "y"]),
            ev.BlockShared(seq=5, request_id="b", blocks=[0], num_tokens=16),
            ev.BlockFreed(seq=6, request_id="a", blocks=[2, 1, 0], why="finished"),
        ]
    ]
    assert lines[2] == "takes blocks 0–2 for tokens 0–47"
    assert lines[-1] == (
        "gives back blocks 2–0 (finished): 2 free now, 1 keep findable content, "
        "block 0 still read by others"
    )


def test_a_gap_in_the_record_costs_only_what_the_state_knew():
    context = Context()
    annotate(ev.EngineKvSized(seq=1, num_blocks=8, block_size=16), context)
    annotate(ev.BlockAllocated(seq=9, request_id="a", blocks=[5]), context)
    line = annotate(ev.BlockFreed(seq=10, request_id="a", blocks=[5], why="finished"), context)
    assert line == "gives back block 5 (finished)"


def test_names_are_short_stable_and_used_inside_of_reasons():
    context = Context()
    assert context.name("mine") == "mine"
    assert context.name(ID) == context.name(ID) == "req-1"
    assert context.name(f"{ID}.3") == "req-1.3"
    assert context.name("cmpl-5e5e5e5e5e5e") == "req-2"
    assert context.plain(f"{ID} needs one, {ID}.2 too.") == "req-1 needs one, req-1.2 too."


def test_what_is_not_named_is_counted():
    rows = [ev.StepRow("a", 0, 11, 1), ev.StepRow("b", 0, 12, 1)]
    line = annotate(ev.StepPlanned(rows=rows), Context())
    assert "a tokens 0–10, 1 more request 12 tokens" in line
    line = annotate(ev.StepPlanned(rows=[*rows, ev.StepRow("c", 0, 3, 1)]), Context())
    assert "2 more requests 15 tokens" in line


def test_numbers_read_well():
    assert [count(1, "block"), count(2048, "token")] == ["1 block", "2,048 tokens"]
    times = [0.4, 840, 999.9, 2_140, 48_000, 999_700, 1_300_000, 250_000_000]
    assert [duration(us) for us in times] == [
        "0.4 µs", "840 µs", "1.0 ms", "2.1 ms", "48 ms", "1.0 s", "1.3 s", "4 min 10 s"
    ]  # fmt: skip
    sizes = [512, 24_576, 1_300_000, 2**50]
    assert [size(n) for n in sizes] == ["512 bytes", "24 KiB", "1.2 MiB", "1024 TiB"]
    assert [amount(n) for n in (950, 5_200_000, 3.1e12)] == ["950", "5.2 million", "3.1 trillion"]
    assert ranges([4, 5, 6, 9]) == "4–6, 9"
    assert ranges([9, 8, 7, 3, 4]) == "9–7, 3–4"
    assert ranges([0, 2, 4, 6, 8, 10, 12]) == "0, 2, 4, 6, 8 and 2 more"
    assert [blocks([3]), blocks([3, 4]), blocks([])] == ["block 3", "blocks 3–4", "blocks none"]
    assert quoted("one\ntwo   three") == "“one two three”" and quoted(" \n") == "“ \\n”"
    assert len(quoted("word " * 50)) < 55 and len(quoted("x" * 500)) < 55


# -------------------------------------------------------------------------------------------- story


class Chat:
    """The events of requests that are prefilled in one step and then decode."""

    def __init__(self, loop: str = "plain"):
        self.seq = self.step = 0
        self.ns = 10**12
        self.loop = loop
        self.events: list[ev.Event] = []
        self.block = 0
        self.add(ev.EngineKvSized(num_blocks=200, block_size=16, bytes_per_block=1024))

    def add(self, event: ev.Event, after_us: float = 10) -> None:
        self.seq += 1
        self.ns += int(after_us * 1000)
        event.seq, event.ts_ns = self.seq, self.ns
        event.step = event.step or self.step
        self.events.append(event)

    def start(self, name: str, num_tokens: int) -> None:
        self.add(
            ev.RequestQueued(request_id=name, num_prompt_tokens=num_tokens, rank=[0, self.seq])
        )
        self.step += 1
        self.add(ev.RequestAdmitted(request_id=name, num_tokens=num_tokens, why="it fits"))
        self.run([ev.StepRow(name, 0, num_tokens, 1)], new_step=False)

    def run(self, rows: list[ev.StepRow], grow: str = "", us: float = 2000, new_step=True) -> None:
        self.step += new_step
        if grow:
            table = [e for e in self.events if isinstance(e, ev.BlockAllocated)]
            index = sum(len(e.blocks) for e in table if e.request_id == grow)
            event = ev.BlockAllocated(request_id=grow, blocks=[self.block], index=index, why="full")
            self.add(event)
            self.block += 1
        tokens = sum(row.num_tokens for row in rows)
        self.add(ev.StepPlanned(rows=rows, budget=512, budget_used=tokens, num_running=len(rows)))
        self.finish_step(rows, us)

    def finish_step(self, rows: list[ev.StepRow], us: float) -> None:
        tokens = sum(row.num_tokens for row in rows)
        self.add(
            ev.StepFinished(
                num_tokens=tokens,
                num_decode_tokens=sum(row.num_tokens == 1 for row in rows),
                num_sampled=len(rows),
                schedule_us=100,
                forward_us=us - 200,
                sample_us=60,
                total_us=us,
                loop=self.loop,
            ),
            after_us=us,
        )

    def lines(self, **options) -> list[Line]:
        story = Story(with_summaries=False, **options)
        return [*story.tell(self.events), *story.end()]


def test_sixty_decode_steps_are_one_line():
    chat = Chat()
    chat.start("a", 23)
    for n in range(59):
        chat.run([ev.StepRow("a", 23 + n, 1, 1)], grow="a" if n % 16 == 0 else "")
    chat.add(ev.RequestFinished(request_id="a", reason="length", why="enough"))
    lines = chat.lines()
    decode = [line for line in lines if line.kind == "steps" and line.first_step > 1]
    assert len(lines) <= 6 and len(decode) == 1
    assert (decode[0].first_step, decode[0].last_step, decode[0].name) == (2, 60, "a")
    assert decode[0].text == (
        "decodes 59 tokens, one a step; a step 2.00 ms = schedule 0.10 + execute 1.80 + "
        "sample 0.06 + other 0.04; takes blocks 0–3"
    )
    assert lines[-1].kind == "request.finished"


def test_what_a_step_brought_about_is_told_after_it():
    chat = Chat()
    chat.start("a", 23)
    chat.step += 1
    rows = [ev.StepRow("a", 23, 1, 1)]
    chat.add(ev.StepPlanned(rows=rows))
    chat.add(ev.RequestFinished(request_id="a", reason="stop", why="token 2 ends a sequence"))
    chat.finish_step(rows, 2000)
    assert [line.kind for line in chat.lines()][-2:] == ["steps", "request.finished"]


def test_a_run_ends_when_others_join_and_when_it_gets_long():
    chat = Chat()
    chat.start("a", 5)
    chat.start("b", 5)
    for n in range(10):
        chat.run([ev.StepRow("a", 5 + n, 1, 1), ev.StepRow("b", 5 + n, 1, 1)])
    for n in range(8):
        chat.run([ev.StepRow("a", 15 + n, 1, 1)], us=1_000_000)
    steps = [line for line in chat.lines() if line.kind == "steps"][2:]
    assert [(line.first_step, line.last_step) for line in steps] == [(3, 12), (13, 17), (18, 20)]
    assert steps[0].text.startswith("2 requests decode 20 tokens, one each a step")


def test_growth_of_the_next_step_is_not_told_with_this_one():
    """In the overlapped loop step k + 1 takes its blocks before step k is booked."""
    chat = Chat("overlapped")
    chat.start("a", 5)
    chat.step = 2
    first = [ev.StepRow("a", 5, 1, 1)]
    chat.add(ev.StepPlanned(step=2, rows=first))
    chat.step = 3
    chat.add(ev.BlockAllocated(request_id="b", blocks=[7], why="a prompt"))
    second = [ev.StepRow("a", 6, 1, 1), ev.StepRow("b", 0, 9, 1)]
    chat.add(ev.StepPlanned(step=3, rows=second))
    chat.step = 2
    chat.finish_step(first, 2000)
    chat.step = 3
    chat.finish_step(second, 2000)
    lines = chat.lines()
    assert [line.kind for line in lines][-3:] == ["steps", "block.allocated", "steps"]
    assert "takes" not in lines[-3].text


def test_a_lost_end_of_a_step_holds_nothing_back_for_long():
    chat = Chat()
    chat.start("a", 5)
    chat.step += 1
    chat.add(ev.StepPlanned(rows=[ev.StepRow("a", 5, 1, 1)]))
    chat.run([ev.StepRow("a", 6, 1, 1)])
    chat.add(ev.RequestAborted(request_id="a", why="the client left"))
    story = Story()
    assert [line.kind for line in story.tell(chat.events)][-2:] == ["steps", "request.aborted"]
    assert story.context.plans == {}


def test_a_failure_tells_what_was_held_back():
    chat = Chat()
    chat.start("a", 5)
    chat.step += 1
    chat.add(ev.StepPlanned(rows=[ev.StepRow("a", 5, 1, 1)]))
    chat.add(ev.RequestAborted(request_id="a", why="the engine failed"))
    chat.add(ev.EngineFailed(message="out of memory"))
    told = [line.kind for line in Story().tell(chat.events)]
    assert told[-2:] == ["request.aborted", "engine.failed"]


def test_evictions_for_one_reason_are_one_line():
    chat = Chat()
    chat.start("a", 5)
    for block in (4, 5, 9):
        chat.add(ev.BlockEvicted(block=block, hash="x", why="b needs one"))
    texts = [line.text for line in chat.lines()]
    assert texts[-1] == "blocks 4–5, 9 lose their cached content: b needs one"


def test_kernels_of_a_step_are_counted_in_one_line():
    chat = Chat()
    chat.start("a", 5)
    chat.step += 1
    rows = [ev.StepRow("a", 5, 1, 1)]
    chat.add(ev.StepPlanned(rows=rows))
    for name in ["linear"] * 5 + ["rms_norm"] * 2:
        chat.add(ev.KernelLaunched(name=name))
    chat.finish_step(rows, 2000)
    assert chat.lines()[-1].text == "launched 7 kernels: linear × 5, rms_norm × 2"


def test_unjoined_every_event_has_its_line():
    chat = Chat()
    chat.start("a", 5)
    assert [line.kind for line in chat.lines(joined=False)] == [ev.kind(e) for e in chat.events]


def test_the_story_loses_nobody():
    """Every event of a request is told, in any record: only steps and growth are joined."""
    for seed in range(8):
        engine = ModelEngine(16, 6, seed)
        for _ in range(200):
            engine.random_operation()
        story = Story()
        lines = [*story.tell(engine.events), *story.end()]
        told = [line.kind for line in lines if line.kind.startswith("request.")]
        happened = [ev.kind(e) for e in engine.events if ev.kind(e).startswith("request.")]
        assert sorted(told) == sorted(happened)
        steps = [line for line in lines if line.kind == "steps"]
        covered = [n for line in steps for n in range(line.first_step, line.last_step + 1)]
        assert sorted(covered) == list(range(1, engine.step + 1))


def test_the_summary_adds_up():
    chat = Chat()
    chat.start("a", 23)
    for n in range(30):
        chat.run([ev.StepRow("a", 23 + n, 1, 1)], us=500_000)
    story = Story()
    lines = [line.text for line in story.tell(chat.events) if line.kind == "summary"]
    assert lines == [
        "the last 9.5 s: 20 steps, 20 tokens drawn (2 a second)",
        "tokens    42 computed = 23 prefill + 19 decode; 0 more were in the cache",
        "requests  1 running, 0 waiting, 0 ended, 0 preemptions",
        "blocks    0 used (0%), 0 cached and free, 200 empty, of 200",
        "a step    475 ms = schedule 0.10 + execute 475 + sample 0.06 + other 0.04",
    ]


# ------------------------------------------------------------------------------------------ console


def test_on_a_page_of_100_columns_nothing_is_wider():
    engine = ModelEngine(16, 6, seed=3)
    for _ in range(300):
        engine.random_operation()
    out = io.StringIO()
    console = LogConsole("rich", out)
    console(stamped())
    console(engine.events)
    console.close()
    lines = out.getvalue().splitlines()
    assert len(lines) > 100
    assert max(map(len, lines)) <= 100
    assert "\x1b[" not in out.getvalue()  # no terminal, no colours


def test_json_lines_carry_the_full_id_and_the_steps():
    chat = Chat()
    chat.start(ID, 5)
    for n in range(4):
        chat.run([ev.StepRow(ID, 5 + n, 1, 1)])
    out = io.StringIO()
    console = LogConsole.auto(out)  # a StringIO is no terminal
    console(chat.events)
    console.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    decode = next(line for line in lines if line.get("step") == [2, 5])
    assert decode["request_id"] == ID and decode["name"] == "req-1"
    assert decode["kind"] == "steps" and decode["text"].startswith("decodes 4 tokens")
    assert all({"time", "kind", "text"} <= set(line) for line in lines)


def test_a_flood_is_counted_and_warnings_pass():
    throttle = Throttle(lines_a_second=10, burst=5)
    flood = [Line(n * MS, f"line {n}", "block.freed") for n in range(100)]
    flood.insert(50, Line(50 * MS, "careful", "engine.warning"))
    shown = [*throttle.pass_on(flood), *throttle.end()]
    assert [line.text for line in shown[:5]] == [f"line {n}" for n in range(5)]
    assert shown[5].text == "careful"
    assert shown[-1].text.startswith("… 95 more lines in") and "95 block.freed" in shown[-1].text
    later = list(throttle.pass_on([Line(5_000 * MS, "calm again", "block.freed")]))
    assert [line.text for line in later] == ["calm again"]


def test_a_request_keeps_its_colour_and_step_stands_once():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    RichPrinter(out)(
        [
            Line(1, "one", "block.freed", 3, 3, ID, "req-1"),
            Line(2, "two", "block.freed", 3, 3, ID, "req-1"),
            Line(3, "three", "block.freed", 3, 3, f"{ID}.1", "req-1.1"),
        ]
    )
    assert "\x1b[2mone" in out.getvalue()  # what happens to blocks is dim …
    RichPrinter(out)([Line(4, "takes blocks 4–5", "steps", 4, 4)])
    assert "takes \x1b[1mblocks 4–5\x1b[0m" in out.getvalue()  # … and a step is not
    plain = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert (
        plain.count("req-1 ") == 1 and plain.count("req-1.1") == 1 and plain.split().count("3") == 1
    )
    with pytest.raises(ValueError, match="'rich' or 'json'"):
        LogConsole("loud")
