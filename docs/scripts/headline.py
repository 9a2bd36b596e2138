"""Choose the few figures that a reader wants first: how fast, beside whom, on what, and how right.

They are of SmolLM2-135M in bf16, on the machine whose quiet comparison is the newest. Everything is
read from benchmarks/results/, so a new measurement becomes the headline by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import datasheet_share
from benchmarks.peers import chart
from benchmarks.peers.results import ENGINE

SHAPE, DTYPE = "smollm2-135m", "bfloat16"
QUIET = 0.1  # of a core: with more work beside the measurement, its figures are no headline
WORKLOADS = {
    "W1": "one request",
    "W2": "16 at once",
    "W3": "64 at once",
    "W4": "a prompt of 1,024",
}
WAYS = {"Glasshouse": "bf16, prompts", "transformers": "transformers bf16", "vLLM": "vLLM bf16"}
"""How the quality table calls what a system computes."""


class Headline:
    """Hold the comparison to print first. `lines`: of `benchmarks.peers.results.summary`."""

    def __init__(self, folder: Path, about: dict[str, Any], lines: list[dict]) -> None:
        self.folder, self.about, self.lines = folder, about, lines

    def chart(self) -> str:
        """Draw the lines."""
        named = {name: f"{name}: {words}" for name, words in WORKLOADS.items()}
        return chart.svg([{**li, "workload": named[li["workload"]]} for li in self.lines])

    def table(self, quality: dict[str, float]) -> list[str]:
        """Write a row for each system. quality: the share of greedy tokens changed, by system."""
        works = [name for name in WORKLOADS if any(li["workload"] == name for li in self.lines)]
        out = [
            f"| tokens/s | {' | '.join(WORKLOADS[name] for name in works)}"
            " | greedy tokens that differ from fp32 |",
            "|---|" + "---|" * (len(works) + 1),
        ]
        systems = dict.fromkeys((li["system"], li["transport"]) for li in self.lines)
        for system, transport in systems:
            cells = [self._cell(system, transport, name) for name in works]
            changed = f"{quality[system]:.2%}" if system in quality else "–"
            out.append(f"| {system}, {transport} | {' | '.join(cells)} | {changed} |")
        return out

    def _cell(self, system: str, transport: str, workload: str) -> str:
        line = self.line(system, transport, workload)
        if line is None:
            return "–"
        speed = f"{line['tokens_per_s']:,.0f}"
        return f"{speed} (we: {line['engine_is']:.2f}×)" if "engine_is" in line else speed

    def line(self, system: str, transport: str, workload: str) -> dict | None:
        """Return a system's line at a workload, or None if it wasn't measured."""
        wanted = (system, transport, workload)
        found = (
            li for li in self.lines if wanted == (li["system"], li["transport"], li["workload"])
        )
        return next(found, None)

    @property
    def weights(self) -> str:
        own = SHAPE in self.about.get("own_weights", ())
        return "its own weights" if own else "random weights"


def headline(results: Path) -> Headline | None:
    """Return the newest quiet comparison of SmolLM2 in bf16 beside peers, or None.

    A comparison may be made in pieces. Those of one day and of the same weights belong together:
    a machine that is rented is another one on another day.
    """
    found = []
    for path in results.glob("*/peers.json"):
        whole = json.loads(path.read_text(encoding="utf-8"))
        lines = [li for li in whole["summary"] if (li["shape"], li["dtype"]) == (SHAPE, DTYPE)]
        sessions = {number: whole["sessions"][number] for number in {li["session"] for li in lines}}
        quiet = {n for n, about in sessions.items() if about["idle_cores"] <= QUIET}
        lines = [li for li in lines if li["session"] in quiet]
        if lines:
            newest = max(quiet)
            same = {n for n in quiet if _kind(n, sessions[n]) == _kind(newest, sessions[newest])}
            lines = [li for li in lines if li["session"] in same]
            found.append((newest, path.parent, sessions[newest], lines))
    return Headline(*max(found, key=lambda it: it[0])[1:]) if found else None


def _kind(session: str, about: dict[str, Any]) -> tuple[str, bool]:
    """Return a session's day, and whether it had the model's own weights."""
    return session.split()[0], SHAPE in about.get("own_weights", ())


def quality(results: Path) -> dict[str, float]:
    """Return the share of greedy tokens that differ from fp32 in bf16, by system, on SmolLM2."""
    found: dict[str, float] = {}
    newest = ""
    for path in results.glob("*/quality.json"):
        whole = json.loads(path.read_text(encoding="utf-8"))
        if whole["machine"]["date"] > newest:
            newest = whole["machine"]["date"]
            rows = {
                row["way"]: row["changed"] for row in whole["rows"] if row["model"] == "smollm2"
            }
            found = {system: rows[way] for system, way in WAYS.items() if way in rows}
    return found


def gpu_lines(results: Path) -> list[str]:
    """Write what was found on each GPU: single streams and the largest batch."""
    out = []
    for path in sorted(results.glob("gpu-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        copy = record["limits"]["copy_gb_s"]
        for case in record["speed"]:
            if case["wanted"]:
                sheet = datasheet_share(record["device"], case["share_of_limit"], copy)
                many = "1 request" if case["requests"] == 1 else f"{case['requests']} requests"
                out.append(
                    f"- {record['device']}, {case['shape']} bf16, {many}:"
                    f" {case['tokens_per_s']:,.0f} tokens/s, {case['share_of_limit']:.0%} of what"
                    f" memory allows as measured{sheet}"
                )
    return out


def readme_lines(results: Path) -> str:
    """Write the two lines of figures for README."""
    top = headline(results)
    if top is None:
        return ""
    said = []
    for transport, peers in (("in process", ("vLLM", "transformers")), ("HTTP", ("llama.cpp",))):
        for peer in peers:
            line = top.line(peer, transport, "W2")
            if line is not None:
                said.append(f"{line['engine_is']:.1f} × {peer}")
    own = top.line(ENGINE, "in process", "W2")
    speed = f"**{own['tokens_per_s']:,.0f} tokens a second**, " if own else ""
    changed = quality(results)
    right = ", ".join(f"{changed[name]:.2%} ({name})" for name in WAYS if name in changed)
    return (
        f"16 chats at once with SmolLM2-135M in bf16 on {top.about['cores']} cores of an"
        f" {top.about['cpu']}: {speed}{', '.join(said)}"
        f" ([docs/PERFORMANCE.md](docs/PERFORMANCE.md)).\\\n"
        f"Greedy tokens that bf16 changes, beside fp32: {right}.\n"
    )
