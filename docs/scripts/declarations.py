"""Read what the source says about events: docstrings, fields with units, and who emits them.

It is read from the text of the files, so that the guide needs no second list.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from docs.scripts.server import ROOT
from engine.trace import events as ev
from engine.trace.together import TOGETHER

EVENTS_FILE = ROOT / "engine" / "trace" / "events.py"

PLAIN = {  # fields without a comment, whose name says nearly everything
    "seq": "counts the events of its process, without gaps unless some were dropped",
    "ts_ns": "nanoseconds of CLOCK_MONOTONIC",
    "step": "the step during which it happened; 0 before the first",
    "request_id": "a sibling of `n` > 1 has `.1`, `.2`, … behind it",
    "why": "the reason, in plain words",
    "message": "what a person should read",
    "blocks": "block numbers",
    "host_blocks": "numbers of blocks in the host pool",
    "block": "block number",
    "src_block": "block number",
    "hash": "hex",
    "texts": "token id → its text",
    "index": "position in the block table; of text: which of the n sequences",
    "src": 'the process: "core" or "server"',
    "text": "people's text; empty with --trace-text off",
    "stop": "people's text; empty with --trace-text off",
    "max_tokens": "tokens that it may draw at most",
    "max_model_len": "tokens of the longest sequence",
    "priority": "lower runs first; 0 under fcfs",
    "available": "in the same units as `need`",
    "parent": "the sequence that it forks from",
    "mode": '"recompute" or "swap"',
    "rows": "see `StepRow`: request, start, tokens, samples",
    "budget_used": "tokens",
    "host_blocks_used": "blocks",
    "name": "of the kernel",
    "grid": "pieces that the work was cut into, by axis",
    "constexprs": "what was fixed when the kernel was compiled",
    "registers": "a thread",
    "flops": "as counted from the shapes",
    "batch_size": "rows of the graph",
    "token_id": "−1 with --trace-text off",
    "logprob": "natural logarithm, before any parameter",
    "greedy": "temperature 0: the most probable token",
    "temperature": "as asked for",
    "top_k": "as asked for; 0 or less: off",
    "top_p": "as asked for; 1: off",
    "min_p": "as asked for; 0: off",
    "seed": "of the request, or drawn for it",
    "candidates": "see `Candidate`: token id, log-probability, probability",
    "version": "of Glasshouse",
    "config": "all options, secrets blanked",
    "model": "as it was named",
    "architecture": "as config.json names it",
    "dtype": "of the weights",
    "kv_dtype": "of keys and values",
    "head_dim": "values of one head",
}

UNITS = {  # by the ending of a field's name, for fields without a comment
    "_us": "microseconds",
    "_ms": "milliseconds",
    "_s": "seconds",
    "_bytes": "bytes",
}


@dataclass(frozen=True)
class Field:
    """Describe one field of an event."""

    name: str
    type: str
    default: str
    meaning: str  # its comment, or its unit


@dataclass(frozen=True)
class Declaration:
    """Describe one kind of event."""

    kind: str
    class_name: str
    doc: str
    fields: list[Field]
    emitters: list[str]  # files, relative to the repository
    full_only: bool


def declarations() -> list[Declaration]:
    """Return all kinds, in the order of `ALL_EVENTS`."""
    text = EVENTS_FILE.read_text(encoding="utf-8")
    classes = {n.name: n for n in ast.parse(text).body if isinstance(n, ast.ClassDef)}
    emitted = _emitters()
    return [
        Declaration(
            kind=ev.kind(event),
            class_name=event.__name__,
            doc=" ".join((ast.get_docstring(classes[event.__name__]) or "").split()),
            fields=_fields(classes[event.__name__], text.splitlines()),
            emitters=emitted.get(event.__name__, []),
            full_only=event in ev.FULL_ONLY,
        )
        for event in ev.ALL_EVENTS
    ]


def common_fields() -> list[Field]:
    """Return the fields of `Event`, which every kind has."""
    text = EVENTS_FILE.read_text(encoding="utf-8")
    node = next(n for n in ast.parse(text).body if getattr(n, "name", "") == "Event")
    assert isinstance(node, ast.ClassDef)
    return _fields(node, text.splitlines())


def _fields(node: ast.ClassDef, lines: list[str]) -> list[Field]:
    fields = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" in ast.unparse(item.annotation):
                continue  # of the kind, not of an event
            name = item.target.id
            meaning = _comment(lines, item.lineno) or PLAIN.get(name) or _unit(name)
            default = ast.unparse(item.value) if item.value else ""
            kind = ast.unparse(item.annotation).replace("dict[str, Any]", "dict")
            fields.append(Field(name, kind, default, meaning))
    return fields


def _comment(lines: list[str], lineno: int) -> str:
    """Return the comment after a field, or above it."""
    _code, mark, behind = lines[lineno - 1].partition("  # ")
    if mark:
        return behind.strip()
    above: list[str] = []
    index = lineno - 2
    while lines[index].strip().startswith("# "):
        above.insert(0, lines[index].strip()[2:])
        index -= 1
    return " ".join(above)


def _unit(name: str) -> str:
    for ending, unit in UNITS.items():
        if name.endswith(ending):
            return unit
    if name.startswith("bytes_"):
        return "bytes"
    return "a number" if name.startswith("num_") else ""


def _emitters() -> dict[str, list[str]]:
    """Map each class of event to the files that make one, without those that declare or read it."""
    named = {event.__name__: [event.__name__] for event in ev.ALL_EVENTS}
    named |= {t.__name__: [event.__name__ for event in t.stands_for] for t in TOGETHER}
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "engine").rglob("*.py")):
        if path.parent.name == "trace" and path.name != "recorder.py":
            continue  # the others declare events, or read them
        made = {
            call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name)
        }
        for name in {name for one in made & named.keys() for name in named[one]}:
            found.setdefault(name, []).append(_relative(path))
    return found


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
