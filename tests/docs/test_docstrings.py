"""Docstrings of `engine/` begin with a verb and say what in at most 20 words: CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "engine"
MOST_WORDS = 20
NO_VERB = re.compile(
    "a|all|an|any|as|at|beside|both|by|each|every|everything|fewer|for|from|half|how|i|if|in|it|its"
    "|like|many|no|nobody|nothing|of|on|one|only|our|that|the|their|these|they|this|those|to|two"
    "|what|when|where|whether|which|who|why|with|without"
    "|.*[^s]s"  # not imperative: returns, makes
)
STATED = ENGINE / "trace" / "events.py"  # an event states what happened
ROOMS = sorted(path.name for path in ENGINE.iterdir() if (path / "__init__.py").exists())


def first_sentence(docstring: str) -> str:
    """Return the first paragraph up to its first full stop, colon or semicolon."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.:;?!])\s", paragraph, maxsplit=1)[0]


def complaint(docstring: str, is_statement: bool = False) -> str:
    """Say what is wrong with a docstring's first sentence; "" if nothing is."""
    sentence = first_sentence(docstring)
    words = sentence.split()
    if len(words) > MOST_WORDS:
        return f"{len(words)} words, at most {MOST_WORDS}"
    if is_statement:
        return ""
    if not words or not re.fullmatch(r"[A-Z][a-z]+[,.:]?", words[0]):
        return "the first word is no verb"
    verb = words[0].lower().rstrip(",.:")
    if NO_VERB.fullmatch(verb):
        return f"{words[0]!r} is no imperative verb"
    if words[0].endswith(":") and len(words) == 1:
        return "a name, no sentence"
    return ""


def complaints(files: list[Path]) -> list[str]:
    """List the complaints about every docstring of some files."""
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(
                node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            ):
                continue
            docstring = ast.get_docstring(node)
            if docstring is not None and (wrong := complaint(docstring, path == STATED)):
                name = getattr(node, "name", "the file")
                place = f"{path.relative_to(ROOT)}, {name}"
                found.append(f"{place}: {wrong}: {first_sentence(docstring)}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room(room):
    assert not (found := complaints(sorted((ENGINE / room).rglob("*.py")))), "\n".join(found)


def test_the_files_beside_the_rooms():
    assert not (found := complaints(sorted(ENGINE.glob("*.py")))), "\n".join(found)


@pytest.mark.parametrize("folder", ["benchmarks", "clients", "course", "examples", "lab", "pocket"])
def test_a_folder_beside_the_engine(folder):
    assert not (found := complaints(sorted((ROOT / folder).rglob("*.py")))), "\n".join(found)


@pytest.mark.parametrize(
    ("docstring", "said"),
    [
        ("Freeze existing objects out of GC.", ""),
        ("Return (blocks, where the number comes from).", ""),
        ("Normalise, alone or fused. Without weights too: " + "word " * 30, ""),
        ("What exists now is never walked through.", "no imperative"),
        ("Returns the blocks.", "no imperative"),
        ("`fits` says whether a step can be replayed.", "no verb"),
        ("x: [tokens, K] → [tokens, N].", "no verb"),
        ("AsyncLLM: the engine inside a program.", "no verb"),
        ("Cores: each thread stays on a core of its own.", "no imperative"),
        ("Drawing: how a token is drawn.", "a name"),
        ("Return " + "word " * 20, "21 words"),
        ("", "no verb"),
    ],
)
def test_what_is_said_of_a_sentence(docstring, said):
    found = complaint(docstring)
    assert said in found if said else not found
