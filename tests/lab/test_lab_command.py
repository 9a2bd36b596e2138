"""The command, what it shows on a terminal, and the report."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lab import limits, svg, terminal_drawings
from lab.axes import Axis
from lab.chapter import Expectation, Outcome, quantity
from lab.chapters import CHAPTERS
from lab.command import main
from lab.drawings import EMPTY, Bar, Bars, Cells, Lanes, Lines, Pieces, Series, printable
from lab.operations import operations_of
from lab.report import Section, report
from lab.spread import compared, shown
from lab.terminal import Terminal
from lab.whole import percentile

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
DRAWINGS = [
    Bars("bars <&>", "s", [Bar("a", [(1.0, 0), (2.0, 1)]), Bar("none", [(0.0, 2)])], [("x", 0)]),
    Bars("whiskers", "s", [Bar("a", [(2.0, 0)], spread=(1.5, 9.0)), Bar("b", [(3.0, 1)])]),
    Bars("rates", "tokens/s", [Bar("a", [(2e3, 0)], spread=(1e3, 2e3))]),
    Lines("lines", "x", "seconds", [Series("a", [(1, 2.0), (10, 3.0)])], log_x=True, log_y=True),
    Lines("flat", "x", "y", [Series("one point", [(1, 2.0)]), Series("two", [(0, 0), (2, 4)])]),
    Cells("cells", [("0", [0, 1, EMPTY] * 30)], [("free", EMPTY)]),
    Lanes("lanes", "step", [("seat", [(0, 3, 1), (3, 4, EMPTY)])], [("waits", EMPTY)]),
    Pieces("pieces", [("text", ["a", " b", "\n", "\x1b", "bytes:\\xe2"] * 40)]),
]
VOID = {"meta", "br", "rect", "line", "circle", "polyline", "path"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed wrongly; collects ids and what would be loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.loads = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.loads += [values[name] for name in ("src", "href") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Balanced:
    reader = Balanced()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def test_a_report_has_every_chapter_and_loads_nothing():
    sections = [
        Section(
            chapter,
            [Expectation("k", "what <b>", 2.0, "s", "why & how")],
            Outcome({"k": 4.0}, ["found <i>"], DRAWINGS, ["no GPU"], {"k": [4.0, 3.0, 5.0]}),
        )
        for chapter in CHAPTERS
    ]
    page = report(["Model: <x>"], sections)
    reader = parsed(page)
    names = [chapter.name for chapter in CHAPTERS]
    assert reader.ids == names
    sources = [chapter.read_next for chapter in CHAPTERS]
    assert reader.loads == [f"#{name}" for name in names] + sources
    assert all((ROOT / source).is_file() for source in sources)
    assert "http" not in page and "<script" not in page and "url(" not in page
    assert page.count("what &lt;b&gt;") == len(names)  # one table a chapter
    assert page.count(">2.00</td>") == len(names)  # 4 s is twice 2 s
    assert page.count("<small>3 s – 5 s</small>") == len(names)
    elsewhere = report(["Model"], sections[:1], ROOT / "docs" / "images")
    assert parsed(elsewhere).loads[-1] == f"../../{CHAPTERS[0].read_next}"


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.title)
def test_a_drawing_is_well_formed_and_fits_a_terminal(drawing):
    figure = svg.figure(drawing)
    ET.fromstring(figure)
    assert "nan" not in figure and "inf" not in figure
    for width in (76, 96):
        out = StringIO()
        Console(file=out, width=200).print(terminal_drawings.draw(drawing, width))
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        assert lines[0] == drawing.title and "\x1b" not in out.getvalue()
        assert len(lines) > 1 and max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_chapter_fits_the_terminal(width):
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    terminal, chapter = Terminal(console), CHAPTERS[0]
    expected = [
        Expectation(
            "k",
            "model.layers.0.mlp.up_proj.weight, which is long",
            18295.0,
            "tokens/s",
            "why " * 30,
        )
    ]
    outcome = Outcome({"k": 4.0}, ["found " * 30], DRAWINGS, ["no GPU"], {"k": [4.0, 3.0, 1145.0]})
    terminal.title("pocket", True, 3, ["a machine"])
    terminal.open(1, chapter)
    terminal.expect(expected)
    terminal.close(chapter, expected, outcome, 3.0)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= min(width, 100)
    assert len(lines[3]) == min(width, 100)  # the box of the idea: all that there is
    assert "…" not in out.getvalue().split("pieces")[0]  # nothing is cut off but a long text
    assert any("18,295 tokens/s" in line for line in lines)  # a figure and its unit, unbroken


def test_only_runs_the_chapters_named_and_writes_them(folder, tmp_path, capsys):
    target = tmp_path / "lab.html"
    main(["--model", str(folder), "--quick", "--only", "prefix,tokens", "--report", str(target)])
    shown = capsys.readouterr().out
    assert "Tokens, the unit of everything" in shown and "Prefix caching" in shown
    assert shown.index("Tokens, the unit") < shown.index("Prefix caching")  # the lab's order
    assert "Sampling" not in shown
    assert max(map(len, shown.splitlines())) <= 100 + len(str(target))
    assert shown.index("the prediction") < shown.index("measured on this machine")
    assert parsed(target.read_text(encoding="utf-8")).ids == ["tokens", "prefix"]


def test_a_chapter_that_the_model_can_not_show_says_so(folder, capsys, monkeypatch):
    monkeypatch.setattr("lab.prefix._shared", _too_short)
    main(["--model", str(folder), "--quick", "--only", "prefix"])
    assert "not shown here: a context of 3 tokens" in capsys.readouterr().out


def _too_short(bench):
    from lab.chapter import CannotShow

    raise CannotShow("a context of 3 tokens")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "paging", "magic"], ["'magic'", "machine, loading, tokens"]),
        (["--model", "/no/such/model"], ["/no/such/model is not a folder"]),
        (["--report", "/no/such/folder/lab.html"], ["can't be written"]),
        (["--scheduler-cls", "no_such_module:Mine"], ["no_such_module:Mine can't be imported"]),
        (["--scheduler-cls", "lab.policy:SEATS"], ["no subclass of engine.core.scheduler"]),
    ],
)
def test_what_can_not_be_done_is_refused_in_one_line(arguments, words, capsys):
    assert main(arguments, "glasshouse lab") == 2
    out, message = capsys.readouterr()
    assert out == "" and message.startswith("glasshouse lab: ")
    assert message.count("\n") == 1 and all(word in message for word in words)


def test_the_script_exits_with_2_and_one_line():
    done = subprocess.run(
        [sys.executable, str(ROOT / "koyeb_vllm_setup.py"), "--only", "magic"],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("koyeb_vllm_setup: there is no chapter 'magic'")
    assert done.stderr.count("\n") == 1


def test_a_range_has_its_unit_once():
    assert shown([1145.0, 5767.0], "tokens/s") == "1,145 – 5,767 tokens/s"
    assert shown([0.002, 2.0], "s") == "2 ms – 2 s"
    assert shown([2.0, 3.5], "×") == "2× – 3.50×" and shown([1.0], "s") == ""


def test_quantities_are_written_for_readers():
    assert quantity(0.00123, "s") == "1.23 ms"
    assert quantity(2e-7, "s") == "0.20 µs"
    assert quantity(3 * 2**20, "B") == "3 MiB"
    assert quantity(17, "B") == "17 B"
    assert quantity(0.881, "share") == "88.1 %"
    assert quantity(2.5, "×") == "2.50×"
    assert quantity(1234567, "") == "1,234,567"
    assert quantity(12.34, "tokens/s") == "12.3 tokens/s"


def test_tokens_are_shown_on_one_line_whatever_they_hold():
    assert printable(" a\n") == " a⏎"
    assert printable("bytes:\\xe2") == "▯"
    assert printable("\x00\x1b[2J") == "▯▯[2J"  # a terminal must not obey a token


def test_threads_leave_the_cores_of_others_alone(monkeypatch):
    monkeypatch.setattr(limits.host, "physical_cores", lambda: 4)
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 4)
    for busy, wanted in ((0.0, 4), (0.3, 4), (1.1, 3), (2.0, 2), (4.0, 1), (9.0, 1)):
        assert limits.threads(busy) == wanted
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 8)  # two processors a core: four are free
    assert limits.threads(3.0) == 4
    assert not any(line.startswith("busy") for line in limits.describe_machine(CPU, 0.1))
    assert any(line.startswith("busy: other programs use 1.5") for line in
               limits.describe_machine(CPU, 1.5))  # fmt: skip


def test_a_program_that_computes_is_seen_at_once():
    """The system's average of a minute would not show it yet."""
    spin = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(spin) as process:
        try:
            assert limits.cores_of_others() > 0.2  # of a core, which others may want, too
        finally:
            process.kill()


def test_where_no_ticks_are_counted_the_average_of_a_minute_is_taken(monkeypatch):
    def missing(seconds):
        raise FileNotFoundError("/proc/stat")

    monkeypatch.setattr(limits, "busy_cores", missing)
    monkeypatch.setattr(limits.os, "getloadavg", lambda: (2.5, 0.0, 0.0))
    assert limits.cores_of_others() == 2.5


def test_an_axis_goes_there_and_back():
    for axis in (Axis(1, 1000, log=True), Axis(-2, 6)):
        for place in (0.0, 0.25, 1.0):
            assert axis.place(axis.value(place)) == pytest.approx(place)
    assert Axis(5, 5).place(5) == 0.0


def test_an_axis_is_marked_at_values_that_exist():
    counts = Axis(1, 64, log=True)
    assert counts.ticks([64, 1, 2, 4, 16, 4]) == [1, 2, 4, 16, 64]
    assert counts.ticks([60, 61, 64]) == counts.ticks()  # they would touch
    assert counts.ticks() == [1, 2, 5, 10, 20, 50]
    assert Axis(0.00002, 3, log=True).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert Axis(0, 9_600).ticks([0.5, 9_600]) == [0, 2000, 4000, 6000, 8000]
    assert Axis(-0.3, 0.9).ticks() == pytest.approx([-0.2, 0, 0.2, 0.4, 0.6, 0.8])
    assert Axis(2, 2).ticks() and len(Axis(3.1, 3.2, log=True).ticks()) == 2
    for low, high in ((1e-6, 3e-6), (0.7, 12), (5, 5.5), (1, 1e9)):
        for log in (True, False):
            marks = Axis(low, high, log).ticks()
            assert 2 <= len(marks) <= 12 and marks == sorted(marks)


def test_noise_that_exceeds_the_effect_is_said():
    clear = compared("a", [1.0, 1.1, 1.2], "b", [2.0, 2.4, 2.2])
    assert "a takes less, in every try, b 2× as much" in clear
    assert "b takes less" in compared("a", [3.0, 3.0], "b", [1.0, 2.0])
    noisy = compared("a", [1.0, 1.1, 2.1], "b", [2.0, 2.4, 2.2])
    assert "exceeds the effect" in noisy and "1 s – 2.10 s" in noisy and "takes less" not in noisy
    assert "in one try each" in compared("a", [1.0], "b", [2.0])


def test_percentiles_are_nearest_ranks():
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, q) for q in (50, 95, 99)] == [50, 95, 99]
    assert percentile([3.0, 1.0], 50) == 1.0 and percentile([3.0, 1.0], 99) == 3.0


def test_operations_are_counted_and_views_are_not():
    x = torch.ones(8, 4)
    seen = operations_of(lambda: (x + x).view(32)[:3] * 2)
    assert seen.number == 2
    assert seen.largest_bytes == 8 * 4 * 4
    assert seen.touched_bytes == 3 * 128 + 2 * 12
