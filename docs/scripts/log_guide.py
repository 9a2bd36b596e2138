"""Write docs/LOG_GUIDE.md: `python -m docs.scripts.log_guide`.

The excerpts are lines of docs/records/, written by the console's own code; the kinds and fields are
read from engine/trace/events.py. The words between them are here.
"""

# ruff: noqa: E501 - prose
from __future__ import annotations

import sys

from docs.scripts.declarations import Declaration, Field, common_fields, declarations
from docs.scripts.questions import QUESTIONS, Question
from docs.scripts.reader import RECORDS, Record, printed
from docs.scripts.server import ROOT
from engine.trace import events as ev
from engine.trace.command import run_command
from engine.trace.events import Event
from engine.trace.files import to_json

TARGET = ROOT / "docs" / "LOG_GUIDE.md"
LONGEST_JSON = 400  # characters of an example; the rest is cut

READING = {
    "request.received": "`ignored` lists fields of the body that have no effect here, so a typo is seen.",
    "request.tokenized": "`truncated` above 0 means that the model never saw the beginning.",
    "grammar.compiled": "From now on each token of its text is one that the grammar allows.",
    "request.queued": "`clamped_from` is the number that was asked for, if the context can't hold it.",
    "request.waiting": "Compare `need` with `available`; `next_release` will end first. It is emitted"
    " when the reason changes, not in every step.",
    "request.refused": "The message is also the error that the client got.",
    "request.admitted": "`waited_us` is the whole time in the queue; `num_cached_tokens` were not"
    " computed again.",
    "request.forked": "From now on it has its own table, with its parent's blocks.",
    "request.preempted": "Compare `recompute_ms` with `swap_ms`: `auto` takes the smaller one.",
    "request.resumed": "`num_cached_tokens` needn't be computed again in spite of the preemption.",
    "request.finished": "`queued_ms` + `running_ms` is its whole time in the core.",
    "request.aborted": "It is no error of the engine: the client left, or the server was told to end.",
    "request.answered": "What lies between `request.finished` and it, less `sending_us`, made text of the last"
    " token.",
    "step.planned": "`budget_used` of `budget` tokens; the blocks add up to the whole pool.",
    "spec.verified": "More right ones mean fewer steps; with many requests in a step none are proposed.",
    "step.finished": "The parts add up to `total_us`, except for bookkeeping, shown as “other”."
    " `joined_us` is a part of `forward_us`, where ranks share the model.",
    "block.allocated": "`index` × block size is the first token that goes into these blocks.",
    "block.shared": "Nothing was computed and nothing copied: the table points to them.",
    "block.cached": "The hash covers all tokens before it, so equal hashes mean equal beginnings.",
    "block.copied": "It follows a fork: two sequences would have written into one block.",
    "block.freed": "The order matters: the last block is freed first, so it is evicted first.",
    "block.evicted": "Many of these mean that the pool is too small for all content worth keeping.",
    "block.swapped_out": "Its `num_bytes` cross the bus to the host.",
    "block.swapped_in": "The block numbers differ from those before; only the table knows them.",
    "kernel.launched": "`num_bytes` and `flops` are counted from shapes; times need a profile.",
    "graph.captured": "It happens once for each size: on CUDA at the start, on a CPU at the first use.",
    "graph.replayed": "`batch_size` − `num_rows` rows are padding; with prompts, tokens up to `num_tokens`.",
    "sample.drawn": "`rank` 1 is the most probable token; `num_kept` tokens were left by the cuts."
    " With a grammar, `instead_of` is what the same draw gives without it.",
    "text.emitted": "It is one chunk of the stream.",
    "text.held_back": "It is sent with a later `text.emitted`, or never, if it was a stop string.",
    "tool.called": "The client gets it as a call, whose result comes with its next request.",
    "tool.unreadable": "The client gets it as text. A model that often does this needs another"
    " --tool-call-parser, or tool_choice “required”.",
    "engine.formats_found": "--tool-call-parser and --reasoning-parser say it otherwise.",
    "stop.matched": "The core is told, and ends the sequence.",
    "text.tokens": "Tools put the text in place of an id: `draws “·cache” (token 1288)`.",
    "engine.snapshot": "Replay continues from `state` and `planned`; `standing` holds events as they"
    " were written.",
    "engine.started": "`config` holds every option as it was understood.",
    "engine.model_loaded": "`implementation` tells whether our own code computes it.",
    "engine.divided": "The shares of `--tensor-parallel-size` are nearly equal. Norms are not"
    " divided: each rank holds all of them.",
    "engine.kv_sized": "`why` is the whole arithmetic from memory to blocks.",
    "engine.warning": "Nothing stops, but something is not as you would expect.",
    "engine.failed": "Every open request got an error; the process ends with code 1.",
}

NO_EXAMPLE = {
    "graph.replayed": "It needs a CUDA device: on a CPU, steps that are recorded in full are computed"
    " launch by launch. The records here are from a CPU.",
    "tool.called": "No record here has one: no request brought tools.",
    "tool.unreadable": "No record here has one: no request brought tools.",
    "engine.divided": "No record here has one: one process computed their model.",
    "engine.failed": "No record here has one: these engines did not fail.",
}

INTRO = """\
<!-- Written by `python -m docs.scripts.log_guide`: change that, not this file. -->
# Reading the log

While the engine runs, it writes down what it decides, and why. This page answers the questions that
people ask about an engine with excerpts of such records, and then lists every kind of event.

No excerpt is typed by hand: each comes from a file in [docs/records](records), which a server wrote
while it answered real requests ([record.py](scripts/record.py) has the requests). You can ask these
files the same questions. The model was {model}.

## Where the log is

| you want | do this |
|---|---|
| to see it live | start the server in a terminal (`--log-format rich`); in a container it is JSON lines |
| a file | start the server with `--trace-file run.jsonl` |
| the latest events of a running server | `GET /trace` |
| one request in full (tokens, kernels) | send `"trace": "full"` in its body, or start with `--trace full` |
| each kernel's time and share of the limit | start with `--trace profile` |
| to watch it | open the page at `/`: the Engine Room |
| the page without a server | `python -m engine.trace page FILE -o room.html`, and open that file |
| two records side by side | `python -m engine.trace diff FILE OTHER -o FOLDER`: a step in one moves the other, too |
| a running server's record beside a file | *compare with…* on its page |

Offline, without torch and without a GPU:

<!-- check: run -->
```bash
python -m engine.trace annotate docs/records/tour.jsonl
python -m engine.trace annotate docs/records/tour.jsonl --all
python -m engine.trace replay docs/records/crowd.jsonl --step 20
python -m engine.trace page docs/records/crowd.jsonl -o /tmp/room.html
python -m engine.trace diff docs/records/crowd.jsonl docs/records/crowd-recompute.jsonl || true
```

The columns are: seconds since the first line · step · request · what happened, how much, and why.
Time, step and name are left out where they equal those of the line above. Consecutive decode steps are
one line; `--all` prints every event.
"""


def guide(records: dict[str, Record]) -> str:
    """Write the whole page."""
    loaded = records["tour"].first(ev.EngineModelLoaded)
    model = f"`{loaded.model}` ({loaded.num_parameters:,} parameters, {loaded.dtype})"
    parts = [INTRO.replace("{model}", model), "## Questions\n"]
    parts += [f"- [{q.title}](#{anchor(q.title)})" for q in QUESTIONS]
    parts += ["", *(_answer(question, records) for question in QUESTIONS)]
    parts += [kinds_section(records)]
    return "\n".join(parts)


def anchor(title: str) -> str:
    """Return the fragment that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _answer(question: Question, records: dict[str, Record]) -> str:
    text, excerpts = question.answer(records)
    lines = [f"## {question.title}\n", text, ""]
    for caption, excerpt in excerpts:
        lines += [f"{caption}\n", "```text", excerpt, "```", ""]
    return "\n".join(lines)


# ----------------------------------------------------------------------------- every kind of event


def kinds_section(records: dict[str, Record]) -> str:
    """Write the reference: the declarations of events.py, with an example of each kind."""
    parts = [
        "## Every kind of event\n",
        "Declared in [engine/trace/events.py](../engine/trace/events.py). Every event also has:\n",
        _table(common_fields()),
        "",
    ]
    return "\n".join(parts + [_kind(declaration, records) for declaration in declarations()])


def _kind(declaration: Declaration, records: dict[str, Record]) -> str:
    made_in = " · ".join(f"[{path}](../{path})" for path in declaration.emitters)
    level = "level `full` only" if declaration.full_only else "levels `steps` and `full`"
    return "\n".join(
        [
            f"### `{declaration.kind}`\n",
            f"{declaration.doc}\n",
            f"Emitted by {made_in or 'no code of this version'}; {level}.\n",
            _table(declaration.fields),
            "",
            _example(declaration, records),
            "",
            f"{READING[declaration.kind]}\n",
        ]
    )


def _table(fields: list[Field]) -> str:
    rows = [f"| `{f.name}` | `{_cell(f.type)}` | {_cell(f.meaning)} |" for f in fields]
    return "\n".join(["| field | type | meaning, unit |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _example(declaration: Declaration, records: dict[str, Record]) -> str:
    event_class = next(e for e in ev.ALL_EVENTS if ev.kind(e) == declaration.kind)
    for record in records.values():
        examples: list[Event] = record.all(event_class)
        if not examples:
            continue
        example = min(examples, key=lambda e: abs(len(to_json(e)) - 250))  # telling, and not long
        raw = to_json(example).decode()
        raw = raw if len(raw) <= LONGEST_JSON else raw[:LONGEST_JSON] + " …"
        line = printed([record.line_of(example)])
        return f"```json\n{raw}\n```\n\n```text\n{line}\n```"
    return NO_EXAMPLE[declaration.kind]


def read_records() -> dict[str, Record]:
    """Read all of docs/records, by name."""
    return {path.stem: Record(path.stem) for path in sorted(RECORDS.glob("*.jsonl"), reverse=True)}


def main() -> int:
    """Write the page."""
    try:
        TARGET.write_text(guide(read_records()), encoding="utf-8")
    except LookupError as problem:
        print(f"log_guide: {problem}", file=sys.stderr)
        return 1
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    run_command(main)
