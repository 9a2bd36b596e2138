"""Write one HTML file that holds the Engine Room and a record. A browser opens it without a server.

A browser loads no modules from a folder (`file:` has no origin), and the page consists of modules.
So each module becomes a `data:` address in an import map inside the file. The style sheet, the
record and the log's lines about it are in the file, too. Nothing is fetched: the file's own
Content-Security-Policy forbids it, and forbids running any text of the record.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.trace.events import Event
from engine.trace.files import to_jsonl
from engine.trace.life import requests_of
from engine.trace.names import Names
from engine.trace.story import Story
from engine.trace.why import why_in_words, why_slow

WEB = Path(__file__).resolve().parents[1] / "server" / "web"  # the page that the server sends

MOST_READ = 2_000_000  # events, to tell of requests why they were slow: a second or two

_IMPORT = re.compile(r'(\bfrom|\bimport) "\./([\w-]+\.js)"')
_START = 'import "room/main.js";'


def room_with(events: Sequence[Event], name: str) -> bytes:
    """Return the page with this record in it. `name` is shown where a live page says "live".

    Raises OSError if this installation lacks the page's files.
    """
    page = (WEB / "index.html").read_text(encoding="utf-8")
    style = (WEB / "room" / "style.css").read_text(encoding="utf-8")
    icon = _data_url("image/svg+xml", (WEB / "room" / "icon.svg").read_text(encoding="utf-8"))
    modules = {
        f"room/{path.name}": _data_url(
            "text/javascript", _IMPORT.sub(r'\1 "room/\2"', path.read_text(encoding="utf-8"))
        )
        for path in sorted((WEB / "room").glob("*.js"))
    }
    imports = _in_script(msgspec.json.encode({"imports": modules}))
    policy = (
        f"default-src 'none'; script-src data: {hashed(imports)} {hashed(_START)};"
        " style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = [
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<style>\n{style}</style>",
        f'<script type="importmap">{imports}</script>',
        json_script("lines", msgspec.json.encode(_lines(events))),
        json_script("whys", msgspec.json.encode(_whys(events))),
        json_script("record", to_jsonl(list(events)), name),
        f'<script type="module">{_START}</script>',
    ]
    before, mark, behind = page.partition("</head>")
    kept = [line for line in before.splitlines() if "room/" not in line or "icon.svg" in line]
    whole = "\n".join([*kept, *head, mark + behind])
    return whole.replace('"room/icon.svg"', f'"{icon}"').encode()


def _lines(events: Sequence[Event]) -> list[tuple[int, object]]:
    """Return the log's lines, each with the number of events after which it was written."""
    story = Story(with_summaries=False)
    told: list[tuple[int, object]] = []
    for position, event in enumerate(events, start=1):
        told.extend((position, line) for line in story.tell([event]))
    told.extend((len(events), line) for line in story.end())
    return told


def _whys(events: Sequence[Event]) -> dict[str, object]:
    """Return why each request was slow; of a large record only for the first ones."""
    names = Names.of(events)
    told: dict[str, object] = {}
    for request in requests_of(events)[: MOST_READ // max(1, len(events))]:
        if (why := why_slow(events, request)) is not None:
            told[request] = {**why, "lines": why_in_words(why, names)}
    return told


def json_script(identity: str, json: bytes, name: str = "") -> str:
    """Return an element that holds data and is never run."""
    named = f' data-name="{html.escape(name, quote=True)}"' if name else ""
    return f'<script type="application/json" id="{identity}"{named}>{_in_script(json)}</script>'


def _in_script(json: bytes) -> str:
    """Escape JSON so that it can't end its element: in JSON "<" occurs only in strings."""
    return json.decode().replace("<", "\\u003c")


def _data_url(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def hashed(script: str) -> str:
    """Return what a Content-Security-Policy calls this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
