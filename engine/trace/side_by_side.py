"""Write a page that shows two records beside each other, at the decision in which they part.

A step in one of the two rooms moves the other one, too: `web/compare` has the page, and
`web/room/beside.js` the rooms' part.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import msgspec

from engine.trace.diff import Difference
from engine.trace.events import Event
from engine.trace.html_page import WEB, hashed, json_script, room_with


def side_by_side(
    one: tuple[Sequence[Event], str],
    other: tuple[Sequence[Event], str],
    found: Difference,
    followed: Sequence[str],
) -> dict[str, bytes]:
    """Return the files by name: index.html, and a room for each of two records with names.

    `followed` has a title and then lines. Raises OSError if this installation lacks the page.
    """
    index = comparison(("first.html", "second.html"), (one[1], other[1]), found, followed)
    return {"index.html": index, "first.html": room_with(*one), "second.html": room_with(*other)}


def comparison(
    rooms: tuple[str, str], names: tuple[str, str], found: Difference, followed: Sequence[str]
) -> bytes:
    """Return the page over two rooms, which lie beside it as files of these names.

    `names` are those of the records, `followed` as in `side_by_side`. Raises OSError.
    """
    decisions = (found.first, found.second)
    difference = {
        "names": names,
        "texts": [decision.words for decision in decisions],
        "seqs": [decision.seq for decision in decisions],
        "requests": [decision.request_id for decision in decisions],
        "followed": [line.strip() for line in followed[1:]],
    }
    page, style, script = (
        (WEB / "compare" / name).read_text(encoding="utf-8")
        for name in ("index.html", "compare.css", "compare.js")
    )
    policy = (
        f"default-src 'none'; frame-src *; script-src {hashed(script)}; style-src 'unsafe-inline';"
        " base-uri 'none'; form-action 'none'"
    )
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>\n{style}</style>'
    )
    body = (
        json_script("difference", msgspec.json.encode(difference))
        + f'\n<script type="module">{script}</script>'
    )
    for source, room in zip(("first.html", "second.html"), rooms, strict=True):
        page = page.replace(f'src="{source}"', f'src="{html.escape(room)}"')
    return (
        page.replace("</head>", f"{head}\n</head>").replace("</body>", f"{body}\n</body>").encode()
    )
