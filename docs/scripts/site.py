"""Build the site of rooms: `make site`, or `python -m docs.scripts.site [FOLDER]`.

One page links to the rooms: records of docs/records/ as single files that open without a server.
Each opens at its decisive step, with the important things selected. Nothing is fetched from
elsewhere; the numbers in its sentences come from the records.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from docs.scripts import browser_core
from docs.scripts.reader import Record
from docs.scripts.server import ROOT
from engine.trace import events as ev
from engine.trace.command import run_command
from engine.trace.diff import where_they_part
from engine.trace.html_page import WEB, room_with
from engine.trace.names import Names
from engine.trace.outcome import outcome, what_followed
from engine.trace.side_by_side import comparison
from engine.trace.state import EngineState

MOST_BYTES = 5_000_000  # of a room, so that a phone opens it
CELL, GAP, COLUMNS = 16, 3, 16  # of a thumbnail
GOLDEN_ANGLE = 137.508  # as the page colours its sequences


class Moment(NamedTuple):
    """State at which step a room opens, and what is selected there."""

    step: int
    request_id: str
    sentences: str  # three, with figures from the record


class Room(NamedTuple):
    """Hold a room of the site: a record, and how to find its moment in it."""

    record: str
    title: str
    find: Callable[[Record], Moment]


def crowd(record: Record) -> Moment:
    """Find the first preemption of one request for another."""
    event = record.first(ev.RequestPreempted, lambda e: e.for_request != e.request_id)
    name, other = _names(record, event.request_id, event.for_request)
    size = record.first(ev.EngineKvSized)
    wanted = sum(e.num_prompt_tokens + e.max_tokens for e in record.all(ev.RequestQueued))
    return Moment(
        event.step,
        event.request_id,
        f"{len(record.all(ev.RequestQueued))} requests want {wanted} tokens in all, the pool holds"
        f" {size.num_blocks * size.block_size}. In step {event.step}, {other} needs a block and"
        f" none is free, so {name}, the last by rank, gives {event.num_blocks} back. Its row in the"
        " timeline stops here, and goes on where the others have ended: not one of its tokens is"
        " lost.",
    )


def shared(record: Record) -> Moment:
    """Find the step in which the most blocks have more than one owner."""
    best, most = 0, -1
    for plan in record.all(ev.StepPlanned):
        both = sum(count > 1 for count in record.replay.state_at(plan.step).references)
        if both > most:
            best, most = plan.step, both
    state = record.replay.state_at(best)
    owners = Counter(block for table in state.tables.values() for block in table)
    found = record.all(ev.RequestAdmitted)[1:]
    cached, total = sum(e.num_cached_tokens for e in found), sum(e.num_tokens for e in found)
    request = state.running[-1][1]
    return Moment(
        best,
        request,
        "Six requests begin with the same instruction; the first one computed it. The others find"
        f" {cached} of their {total} prompt tokens in the prefix cache: the {most} hatched blocks"
        f" are stored once and read by up to {max(owners.values())}. Select any of them: its table"
        " names the same blocks.",
    )


def forks(record: Record) -> Moment:
    """Find the first copy of a shared block before a sequence writes into it."""
    event = record.first(ev.BlockCopied)
    copies, made = len(record.all(ev.BlockCopied)), record.all(ev.RequestForked)
    (name,) = _names(record, event.request_id)
    return Moment(
        event.step,
        event.request_id,
        f"Four answers each to two prompts: {len(made)} sequences fork when their prompt is"
        f" computed, and share all of its blocks. In step {event.step}, {name} writes into one that"
        f" others read, so block {event.src_block} is copied into {event.dst_block} first. Only"
        f" {copies} blocks were copied in all; in the token lens the siblings part at the first"
        " draw.",
    )


def swapped(record: Record) -> Moment:
    """Find a preempted request that comes back by a copy from the host."""
    event = record.first(ev.RequestResumed, lambda e: e.mode == "swap")
    lost = record.first(ev.RequestPreempted, lambda e: e.request_id == event.request_id)
    (name,) = _names(record, event.request_id)
    return Moment(
        event.step,
        event.request_id,
        f"{name} was preempted in step {lost.step}, and its {lost.num_computed_tokens} tokens went"
        f" to the host. In step {event.step} they are copied back, and it decodes on at once. The"
        f" engine chose this way by its own measure: {lost.mode_why}.",
    )


def recomputed(record: Record) -> Moment:
    """Find a preempted request that comes back by computing its tokens again."""
    event = record.first(ev.RequestResumed, lambda e: e.mode == "recompute")
    (name,) = _names(record, event.request_id)
    again = event.num_tokens - event.num_cached_tokens
    return Moment(
        event.step,
        event.request_id,
        "The same requests as in the first room, on a server that may not swap."
        f" {name} comes back in step {event.step}: {again} of its {event.num_tokens} tokens are"
        f" computed again, {event.num_cached_tokens} were still in the prefix cache. In its row"
        " a block of prompt stands here, where in the room before it goes on at once.",
    )


ROOMS = (
    Room("crowd", "Too many for the memory", crowd),
    Room("shared", "One beginning, stored once", shared),
    Room("forks", "Four answers to one prompt", forks),
    Room("crowd", "Back from the host", swapped),
    Room("crowd-recompute", "Computed again", recomputed),
)


CORE_CARD = """<article>
<a href="core/core.html"><h2>Run the core yourself</h2></a>
<p>The engine's own scheduler and block pool in your browser, in Python: pool, seats, budget and
arrivals are sliders, and a policy that you write there decides who runs. Its record opens as a
room. Some 6 MB are loaded first.</p>
</article>"""


COMPARED = ("crowd", "crowd-recompute")
COMPARISON_CARD = """<article>
<a href="compare.html"><h2>Both ways, side by side</h2></a>
<p>The last two rooms beside each other: a step in one moves the other, too. The decision in which
they part stands in the middle, with what followed from it. Best on a wide screen.</p>
</article>"""


def build(folder: Path) -> list[Path]:
    """Write the site into a folder, which is emptied first; return its files.

    Raises ValueError if a room is too large.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    records = {room.record: Record(room.record) for room in ROOMS}
    written = []
    for name, record in records.items():
        page = room_with(record.events, f"{name}.jsonl")
        if len(page) > MOST_BYTES:
            raise ValueError(f"the room of {record.name} has {len(page):,} bytes: too many")
        written.append(folder / f"{name}.html")
        written[-1].write_bytes(page)
    written.append(folder / "compare.html")
    written[-1].write_bytes(_comparison(*(records[name] for name in COMPARED)))
    index = folder / "index.html"
    index.write_text(_index([(room, records[room.record]) for room in ROOMS]), encoding="utf-8")
    return [index, *written]


def _comparison(one: Record, other: Record) -> bytes:
    """Return the page that shows two of the rooms beside each other."""
    found = where_they_part(one.events, other.events)
    if found is None:
        raise ValueError(f"{one.name} and {other.name} make the same decisions")
    followed = what_followed(outcome(one.events), outcome(other.events))
    rooms = (f"{COMPARED[0]}.html", f"{COMPARED[1]}.html")
    return comparison(rooms, (f"{COMPARED[0]}.jsonl", f"{COMPARED[1]}.jsonl"), found, followed)


def add_core(folder: Path) -> list[Path]:
    """Add the page that runs the core in the browser, and a card that leads to it.

    Raises RuntimeError if npm or pip can't fetch what it needs.
    """
    files = browser_core.build(folder / "core")
    index = folder / "index.html"
    page = index.read_text(encoding="utf-8")
    index.write_text(page.replace("</main>", f"{CORE_CARD}\n</main>"), encoding="utf-8")
    return files


def _names(record: Record, *ids: str) -> list[str]:
    names = Names.of(record.events)
    return [names.name(request_id) for request_id in ids]


def _index(rooms: list[tuple[Room, Record]]) -> str:
    cards = "\n".join([*(_card(room, record) for room, record in rooms), COMPARISON_CARD])
    icon = (WEB / "room" / "icon.svg").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Glasshouse · rooms to look into</title>
<style>{STYLE}</style>
</head>
<body>
<header>{icon}<h1>Glasshouse</h1>
<p>An LLM server that writes down what it decides, and why. Each room below is a real record of it,
at the step that decides: step back and forth, select a request, read the reasons. No server answers
here, and nothing is fetched: a room is one file.</p></header>
<main>
{cards}
</main>
<footer>In a room: ← → go through the steps, space plays, ? lists the keys.</footer>
</body>
</html>
"""


def _card(room: Room, record: Record) -> str:
    moment = room.find(record)
    where = urlencode({"step": moment.step, "request": moment.request_id})
    state = record.replay.state_at(moment.step)
    return f"""<article>
<a href="{room.record}.html#{escape(where)}">
<h2>{escape(room.title)}</h2>{_picture(state, record)}</a>
<p>{escape(moment.sentences)}</p>
<p class="quiet">step {moment.step} of {record.replay.steps[-1]}</p>
</article>"""


def _picture(state: EngineState, record: Record) -> str:
    """Draw the pool at that step: blocks in their owners' colours, shared ones with a line
    across."""
    order: dict[str, int] = {}
    for event in record.events:
        if event.request_id:
            order.setdefault(event.request_id, len(order))
    owner = {block: name for name, table in state.tables.items() for block in table}
    squares = []
    for block, references in enumerate(state.references):
        x, y = block % COLUMNS * CELL, block // COLUMNS * CELL
        side = CELL - GAP
        style = ""
        kind = "kept" if block in state.hashes else "empty"
        if block in owner:
            hue = (order.get(owner[block], 0) * GOLDEN_ANGLE + 205) % 360
            kind, style = "used", f' style="fill:oklch(68% 0.12 {hue:.0f})"'
        squares.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}"{style}/>'
        )
        if references > 1:
            squares.append(f'<path d="M{x} {y + side}L{x + side} {y}"/>')
    rows = -(-len(state.references) // COLUMNS)
    width, height = COLUMNS * CELL - GAP, rows * CELL - GAP
    used = sum(count > 0 for count in state.references)
    label = f"{used} of {len(state.references)} blocks are used"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"{''.join(squares)}</svg>"
    )


STYLE = """
:root{color-scheme:light dark;--ground:#f3f2ee;--card:#fdfdfb;--ink:#1d2524;--quiet:#55605e;
--line:#e0dfd8;--accent:#1b6d64;--empty:#eceae3;--kept:#c9cac2}
@media(prefers-color-scheme:dark){:root{--ground:#0f1413;--card:#171d1c;--ink:#e6ebe8;
--quiet:#a3aeaa;--line:#2d3634;--accent:#58b9ab;--empty:#212927;--kept:#45504c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:40px 20px 60px;background:var(--ground);
color:var(--ink);font:16px/1.55 system-ui,sans-serif}
header{display:grid;grid-template-columns:52px 1fr;gap:2px 16px;align-items:center;
margin-bottom:28px}
header svg{width:52px;height:52px}h1{margin:0;font-size:1.9rem;letter-spacing:-.02em}
header p{grid-column:1/-1;max-width:70ch;margin:.5em 0 0;color:var(--quiet)}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:18px}
article{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:18px 20px}
article a{color:var(--accent);text-decoration:none;display:block}
article a:hover h2{text-decoration:underline}
h2{font-size:1.1rem;margin:0 0 12px}article svg{display:block;width:100%;height:auto}
article p{margin:14px 0 0;font-size:.95rem}.quiet,footer{color:var(--quiet)}
article .quiet{font-size:.85rem;margin-top:8px}footer{margin-top:28px;font-size:.9rem}
.empty{fill:var(--empty)}.kept{fill:var(--kept)}
article path{stroke:var(--card);stroke-width:2.5}
"""


def main() -> int:
    """Build the site, and say what it contains."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site"
    for file in build(folder):
        print(f"{file}: {file.stat().st_size:,} bytes")
    try:
        files = add_core(folder)
    except RuntimeError as problem:
        print(f"without the page that runs the core in the browser: {problem}")
    else:
        print(f"{folder / 'core'}: {sum(file.stat().st_size for file in files):,} bytes")
    return 0


if __name__ == "__main__":
    run_command(main)
