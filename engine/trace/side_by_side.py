"""Write a page that shows two records beside each other, at the decision in which they part."""

from __future__ import annotations

import html
from collections.abc import Sequence

from engine.trace.diff import Difference
from engine.trace.events import Event
from engine.trace.html_page import room_with

STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 0; display: grid; grid-template: auto 1fr / 1fr 1fr; height: 100vh; gap: 8px; }
header { grid-column: 1 / 3; padding: 8px 16px; max-height: 34vh; overflow: auto; }
pre { margin: 0; white-space: pre-wrap; font: 13px/1.5 ui-monospace, monospace; }
iframe { width: 100%; height: 100%; border: 0; border-top: 1px solid #8888; }
"""


def side_by_side(
    one: tuple[Sequence[Event], str],
    other: tuple[Sequence[Event], str],
    found: Difference,
    lines: Sequence[str],
) -> dict[str, bytes]:
    """Return the files by name: index.html, and a room for each of two records with names."""
    frames = [
        f'<iframe src="{name}.html#step={step}" title="{html.escape(record[1])}"></iframe>'
        for name, record, step in (
            ("first", one, found.first_step), ("second", other, found.second_step)
        )
    ]  # fmt: skip
    told = html.escape("\n".join(lines))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Glasshouse: two records'
        f"</title><style>{STYLE}</style></head><body><header><pre>{told}</pre></header>"
        f"{frames[0]}{frames[1]}</body></html>\n"
    )
    return {
        "index.html": page.encode(),
        "first.html": room_with(*one),
        "second.html": room_with(*other),
    }
