"""Hold the questions of a learner: where each is answered, how many clicks from README."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import NamedTuple

from docs.scripts.server import ROOT

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "QUESTIONS.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")
_HOW = "ARCHITECTURE_OVERVIEW.md"


class Question(NamedTuple):
    """Hold a question, the section that answers it, and words that stand in the answer."""

    asked: str
    section: str  # page#heading, from docs/
    words: tuple[str, ...]


QUESTIONS = (
    Question("What is a token?", "GLOSSARY.md#token", ("vocabulary",)),
    Question(
        "What are prefill and decode, and what does each of them wait for?",
        f"{_HOW}#prefill-and-decode", ("arithmetic", "waits for memory"),
    ),
    Question("Why are keys and values kept?", f"{_HOW}#prefill-and-decode", ("every later token",)),
    Question(
        "Where do a token's keys and values lie? What is the slot mapping?",
        f"{_HOW}#blocks-tables-and-slots", ("slot mapping", "images/slots.svg"),
    ),
    Question(
        "Why pages, and what do they waste?", f"{_HOW}#blocks-tables-and-slots", ("partly empty",)
    ),
    Question(
        "How can several answers share memory?", f"{_HOW}#blocks-tables-and-slots",
        ("copy-on-write",),
    ),
    Question(
        "What is continuous batching, and what does it gain?", f"{_HOW}#batching",
        ("static batch", "images/seats.svg"),
    ),
    Question(
        "What does somebody's long prompt do to me?", f"{_HOW}#chunks", ("budget", "chunk"),
    ),
    Question(
        "Why does my first token take so long when others are there?",
        f"{_HOW}#load-the-first-token-and-all-of-them", ("time to first token", "queue"),
    ),
    Question(
        "What does throughput cost in latency?", f"{_HOW}#load-the-first-token-and-all-of-them",
        ("throughput", "gap"),
    ),
    Question(
        "What happens when memory runs out?", f"{_HOW}#preemption", ("preempted", "computed again"),
    ),
    Question(
        "When is the beginning of a prompt found again, and when evicted?", f"{_HOW}#prefix-cache",
        ("hash", "freed longest ago"),
    ),
    Question("How is a token drawn?", f"{_HOW}#sampling", ("temperature", "top-k")),
    Question(
        "Do other people's requests change my answer?", f"{_HOW}#the-rules",
        ("logits depend on the request alone",),
    ),
    Question(
        "How can a step give several tokens? What is speculation?", f"{_HOW}#several-tokens-a-step",
        ("proposed",),
    ),
    Question(
        "How is a text made to follow a schema?", f"{_HOW}#a-text-that-follows-a-form",
        ("grammar",),
    ),
    Question(
        "What does quantization save, and what does it cost?",
        f"{_HOW}#fewer-bits-more-devices", ("8 or 4 bits",),
    ),
    Question(
        "What is tensor parallelism?", f"{_HOW}#fewer-bits-more-devices", ("part of every layer",)
    ),
    Question(
        "Why is my request waiting, and for whom?",
        "LOG_GUIDE.md#why-is-my-request-waiting-for-what-and-how-long", ("request.waiting",),
    ),
    Question(
        "Which GPU does a model need?", "KOYEB_DEPLOYMENT_GUIDE.md#which-gpu", ("weights", "KV"),
    ),
)  # fmt: skip


def links(page: Path) -> list[tuple[Path, str]]:
    """Return what a page links to in this repository: (file, heading or "")."""
    found = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        if path.endswith(".md") and "://" not in path:
            found.append(((page.parent / path).resolve(), heading))
    return found


def clicks(section: str, start: Path = README) -> int | None:
    """Return how many links lead from a page to that section; None if none do.

    Scrolling doesn't count as a way: the last link must name the heading.
    """
    name, _, heading = section.partition("#")
    wanted = (PAGE.parent / name).resolve()
    seen, queue = {start}, deque([(start, 0)])
    while queue:
        page, distance = queue.popleft()
        for file, named in links(page):
            if (file, named) == (wanted, heading):
                return distance + 1
            if file not in seen and file.exists():
                seen.add(file)
                queue.append((file, distance + 1))
    return None


def _told(question: Question) -> str:
    """Return the clicks; this page may not be filled yet, so it counts as linking to all."""
    number = clicks(question.section)
    return str(2 if number is None else min(number, 2))


def table() -> str:
    """List the questions, each with its answer's place and the clicks from README to it."""
    lines = ["| question | is answered in | clicks |", "|---|---|---|"]
    for question in QUESTIONS:
        page = question.section.partition(".md")[0]
        lines.append(f"| {question.asked} | [{page}]({question.section}) | {_told(question)} |")
    return "\n".join(lines)
