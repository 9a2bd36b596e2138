"""Join the grammars that an answer is held to: behind its reasoning, calls or another form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from engine.text.messages.formats import ReasoningFormat
from engine.text.tag_grammar import marks


def held_grammar(
    grammars: Sequence[str],
    reasoning: ReasoningFormat | None,
    inside: bool,
    added: Mapping[str, int],
) -> str:
    """Join grammars of llguidance as alternatives, behind free reasoning.

    `inside`: the prompt ends within the reasoning. `added`: ids of the added tokens, by text.
    """
    if len(grammars) == 1 and reasoning is None:
        return grammars[0]
    parts = []
    for place, grammar in enumerate(grammars):
        (part,) = json.loads(grammar)["grammars"]
        parts.append({**part, "name": f"form_{place}"})
    ways = " | ".join(f"@form_{place}" for place in range(len(parts)))
    rules = [f"start: ({ways})"]
    if reasoning is not None:
        own = (reasoning.begin, reasoning.end, *reasoning.around, *reasoning.inner)
        special = {mark: added[mark] for mark in own if mark in added}
        begin, end = marks(reasoning.begin, special), marks(reasoning.end, special)
        lazy = "" if "<[" in end else "[lazy]"
        thinks = "thinks" if inside else f"(GAP? {begin} thinks)?"
        restart, lead = [
            f"({marks(text, special)})? " if text else ""
            for text in (reasoning.restart, reasoning.lead)
        ]
        rules = [
            f"start: {thinks} {lead}({ways})",
            f"thinks: thought {restart}GAP?",
            f"thought{lazy}: TEXT {end}",
            r"TEXT: /(.|\n)*/",
            r"GAP: /[ \n]{1,4}/",
        ]
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}, *parts]})
