"""Write docs/GLOSSARY.md and its drawings: `python -m docs.scripts.glossary`.

The texts are the answers of pocket/corpus, the drawings come from docs/records. A question that the
corpus doesn't have, or a place that the code doesn't have, is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from docs.scripts.glossary_terms import PAPERS, TERMS, Paper, Term
from docs.scripts.reader import Record
from docs.scripts.server import ROOT
from engine.trace import events as ev
from engine.trace.command import run_command
from engine.trace.names import Names

PAGE = ROOT / "docs" / "GLOSSARY.md"
IMAGES = ROOT / "docs" / "images" / "glossary"
CORPUS = ROOT / "pocket" / "corpus"
GOLDEN_ANGLE = 137.508  # as the page colours its sequences
INK, QUIET, EMPTY, KEPT, SURFACE = "#1d2524", "#55605e", "#eceae3", "#c9cac2", "#fdfdfb"
ROW, STEP, LABELS = 18, 11, 62  # px of a timeline
NARROWEST = 520  # px, so that a note fits
MOST = 7  # proposals of a stroke that is as high as a prompt


class Drawing:
    """Collect the shapes of one SVG file."""

    def __init__(self, width: int, height: int, label: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">\n<title>{escape(label)}</title>\n'
            f'<rect width="{width}" height="{height}" fill="{SURFACE}"/>\n'
        )
        self.shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}"/>'
        )

    def text(self, x: float, y: float, text: str, size: int = 11) -> None:
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-family="monospace" font-size="{size}"'
            f' fill="{QUIET}">{escape(text)}</text>'
        )

    def svg(self) -> str:
        return self.head + "\n".join(self.shapes) + "\n</svg>\n"


def _colour(place: int, light: bool = False) -> str:
    hue = (place * GOLDEN_ANGLE + 205) % 360
    return f"hsl({hue:.0f} {45 if light else 55}% {88 if light else 60}%)"


def pool(record: Record, step: int) -> Drawing:
    """Draw the blocks at the end of a step: by owner, shared ones halved, findable ones grey."""
    state = record.replay.state_at(step)
    owners: dict[int, list[int]] = {}
    for place, name in enumerate(_sequences(record)):
        for block in state.tables.get(name, ()):
            owners.setdefault(block, []).append(place)
    count, columns, cell = len(state.references), 20, 22
    rows = -(-min(count, 60) // columns)
    label = f"The first {min(count, 60)} blocks of the pool at step {step} of {record.path.name}"
    drawing = Drawing(max(NARROWEST, columns * cell + 8), rows * cell + 26, label)
    for block in range(min(count, 60)):
        x, y = 4 + block % columns * cell, 4 + block // columns * cell
        mine = owners.get(block)
        findable = block in state.hashes
        drawing.box(x, y, 19, 19, _colour(mine[0]) if mine else KEPT if findable else EMPTY)
        if mine and len(mine) > 1:
            drawing.box(x, y + 10, 19, 9, _colour(mine[-1]))
    note = f"step {step}: each owner has a colour, shared blocks two; grey: free, still findable"
    drawing.text(4, rows * cell + 18, note, 10)
    return drawing


def timeline(record: Record, first: int, last: int) -> Drawing:
    """Draw what each sequence computed in these steps: prompts high, decoded tokens low."""
    names, seen = Names(), []
    for event in record.events:
        names.see(event)
    plans = [plan for plan in record.all(ev.StepPlanned) if first <= plan.step <= last]
    places = {name: place for place, name in enumerate(_sequences(record))}
    for plan in plans:
        seen += [row.request_id for row in plan.rows if row.request_id not in seen]
    seen = seen[:8]
    tried = {
        (event.step, event.request_id): (event.num_proposed, event.num_accepted)
        for event in record.all(ev.SpecVerified)
        if first <= event.step <= last
    }
    label = f"Steps {first} to {last} of {record.path.name}, a row for each sequence"
    width = LABELS + (last - first + 1) * STEP + 8
    drawing = Drawing(max(NARROWEST, width), len(seen) * ROW + 24, label)
    for row_at, name in enumerate(seen):
        drawing.text(4, row_at * ROW + 15, names.name(name))
    for plan in plans:
        x = LABELS + (plan.step - first) * STEP
        drawn = set()  # rows of proposals are a part of their sequence's stroke
        for row in plan.rows:
            if row.request_id not in seen or row.request_id in drawn:
                continue
            drawn.add(row.request_id)
            y = seen.index(row.request_id) * ROW + 4
            place = places[row.request_id]
            colour = _colour(place)
            if row.num_tokens == 1 and row.samples:
                checked, right = tried.get((plan.step, row.request_id), (0, 0))
                if checked > right:
                    high = 5 + 10 * checked / MOST
                    drawing.box(x, y + 7.5 - high / 2, STEP - 1, high, _colour(place, True))
                high = 5 + 10 * right / MOST
                drawing.box(x, y + 7.5 - high / 2, STEP - 1, high, colour)
            else:
                drawing.box(x, y, STEP - 1, 15, colour)
                if not row.samples:  # a part of a prompt: hollow
                    drawing.box(x + 2, y + 2, STEP - 5, 11, SURFACE)
    note = f"steps {first}–{last}: high is a prompt, hollow a part of one, low a decoded token"
    if tried:
        note += "; light: wrong proposals"
    drawing.text(4, len(seen) * ROW + 16, note, 10)
    return drawing


def _sequences(record: Record) -> list[str]:
    """Return the sequences in the order of their arrival."""
    kinds = (ev.RequestQueued, ev.RequestForked)
    return [event.request_id for event in record.events if isinstance(event, kinds)]


def _preempted(record: Record) -> Drawing:
    step = record.first(ev.RequestPreempted).step
    return timeline(record, step - 14, step + 22)


def _returned(record: Record) -> Drawing:
    step = record.first(ev.RequestResumed).step
    return timeline(record, step - 18, step + 18)


def _forked(record: Record) -> Drawing:
    return pool(record, record.first(ev.BlockCopied).step)


def _shared(record: Record) -> Drawing:
    return pool(record, record.all(ev.BlockShared)[-1].step)


DRAWINGS: dict[str, tuple[str, Callable[[Record], Drawing]]] = {
    "first-steps": ("seats", lambda record: timeline(record, 1, 24)),
    "seats": ("seats", lambda record: timeline(record, 1, 40)),
    "chunks": ("crowd", lambda record: timeline(record, 1, 16)),
    "pool": ("crowd", lambda record: pool(record, record.first(ev.RequestPreempted).step - 1)),
    "kept": ("crowd", lambda record: pool(record, record.replay.steps[-1])),
    "preempted": ("crowd", _preempted),
    "swapped": ("crowd", _returned),
    "recomputed": ("crowd-recompute", _returned),
    "shared": ("shared", _shared),
    "forked": ("forks", _forked),
    "proposed": ("repeats", lambda record: timeline(record, 1, 40)),
}
"""Name of a drawing → the record that it is made from, and how."""


def answers() -> dict[str, str]:
    """Read the corpus: question → answer."""
    found: dict[str, str] = {}
    for path in sorted(CORPUS.glob("*.md")):
        asked: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("Q: "):
                asked.append(line[3:])
            elif line.startswith("A: "):
                found.update((question, line[3:]) for question in asked)
                asked = []
    return found


def page() -> str:
    """Return the text of the glossary. Raises ValueError for a term that can't be written."""
    known = answers()
    lines = [
        "<!-- Written by `python -m docs.scripts.glossary`: change that, not this file. -->",
        "# Glossary",
        "",
        f"{len(TERMS)} terms of the field: what each means, where it is in the code, its paper.",
        "Most texts are answers of [pocket/corpus](../pocket/corpus), from which the embedded",
        "model learned; ask it the questions. The drawings are made from [docs/records](records).",
        "",
        " · ".join(f"[{term.name}](#{_anchor(term.name)})" for term in TERMS),
        "",
    ]
    for term in TERMS:
        lines += _entry(term, known)
    return "\n".join(lines)


def _entry(term: Term, known: dict[str, str]) -> list[str]:
    if not term.text and term.question not in known:
        raise ValueError(f"{term.name}: pocket/corpus has no question {term.question!r}")
    facts = [] if term.text else [f"Ask: “{term.question}”"]
    if term.place:
        facts.append(f"in the code: {_place(term)}")
    if term.paper:
        facts.append(f"paper: {cited(PAPERS[term.paper])}")
    lines = [f"## {term.name}", "", term.text or known[term.question], ""]
    if term.drawing:
        source = DRAWINGS[term.drawing][0]
        lines += [f"![{term.name}, from {source}.jsonl](images/glossary/{term.drawing}.svg)", ""]
    return [*lines, " · ".join(facts), ""]


def _place(term: Term) -> str:
    path, _, name = term.place.partition(" ")
    text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
    if not text or name not in text:
        raise ValueError(f"{term.name}: there is no {name!r} in {path}")
    return f"[{path}](../{path})" + (f", `{name}`" if name else "")


def cited(paper: Paper) -> str:
    """Write a paper as pages cite it."""
    cited = f"{paper.authors}, *{paper.title}*, {paper.year}"
    if paper.where.startswith("https://"):
        return f"{cited}, [arXiv:{paper.where.rsplit('/', 1)[1]}]({paper.where})"
    return cited if str(paper.year) in paper.where else f"{cited}, {paper.where}"


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum() or c in "- ").replace(" ", "-")


def drawings() -> dict[Path, str]:
    """Return every drawing: where it is kept, and its SVG."""
    records = {source: Record(source) for source, _ in DRAWINGS.values()}
    return {
        IMAGES / f"{name}.svg": draw(records[source]).svg()
        for name, (source, draw) in DRAWINGS.items()
    }


def main() -> int:
    """Write the page and its drawings."""
    PAGE.write_text(page(), encoding="utf-8")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for path, svg in drawings().items():
        path.write_text(svg, encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
