"""Write the figures of the pocket model's card from its report and its corpus."""

# ruff: noqa: E501 - table rows
from __future__ import annotations

import json

from docs.scripts.server import ROOT
from pocket.corpus import read_corpus

REPORT = ROOT / "pocket" / "model" / "report.json"
ROWS = (  # what is counted; the report's count and share
    (
        "taught questions, greedy in fp32, answered word for word",
        "taught_questions",
        "taught_exact",
    ),
    (
        "of them in a wording that was never trained on, answered word for word",
        "reworded_questions",
        "reworded_exact",
    ),
    (
        "questions for the test client's clock or calculator, the right call with the right"
        " arguments",
        "tool_questions",
        "tool_calls_exact",
    ),
    (
        "the same where the tools are described in other words",
        "tool_questions",
        "other_tool_calls_exact",
    ),
    ("the answers behind their results, word for word", "tool_questions", "tool_answers_exact"),
    (
        "taught questions where tools stand in the prompt, answered word for word",
        "tool_questions",
        "taught_beside_tools_exact",
    ),
    (
        'out-of-scope questions of held-out topics, an honest "I don\'t know"',
        "unknown_questions",
        "unknown_honest",
    ),
    (
        "taught questions at temperature 1.5, answers that differ from greedy",
        100,
        "temperature_1.5_differs",
    ),
    ("of them, words of the greedy answer kept there", 100, "temperature_1.5_words_kept"),
)


def _report() -> dict:
    return json.loads(REPORT.read_text(encoding="utf-8"))


def measured() -> str:
    """List what the model can do, as `python -m pocket.evaluate` measured it."""
    found = _report()["evaluation"]
    lines = ["| | | |", "|---|---|---|"]
    for what, count, share in ROWS:
        number = found[count] if isinstance(count, str) else count
        lines.append(f"| {number} | {what} | {100 * found[share]:.1f} % |")
    return "\n".join(lines)


def trained() -> str:
    """List the phases of its training."""
    lines = [
        "| phase | steps | tokens seen | learned | minutes | loss at first | in the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, phase in enumerate(_report()["phases"], 1):
        curve = phase["loss"]
        lines.append(
            f"| {number} | {phase['steps']:,} | {phase['tokens_seen']:,} | {phase['tokens_learned']:,}"
            f" | {phase['training_seconds'] / 60:.0f} | {curve[0]['loss']:.2f} | {curve[-1]['loss']:.2f} |"
        )
    return "\n".join(lines)


def corpus() -> str:
    """Count the answers, questions and topics of the corpus."""
    entries = read_corpus()
    questions = sum(len(entry.questions) for entry in entries)
    topics = len({entry.topic for entry in entries})
    return (
        f"- `corpus/*.md`: {len(entries)} answers to {questions} questions in {topics} topics, from"
        " tokens to deployment, with some small talk."
    )
