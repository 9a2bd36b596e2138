"""Render the guides of docs/ and the engine's source as pages, for the dialog of the live page.

Only files that are listed here are served. A link that leads out of them becomes plain text, so no
link of a rendered page is dead.
"""

from __future__ import annotations

import html
import posixpath
import re
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

WEB = Path(__file__).parent / "web"
# The wheel has the guides beside the page (setup.py), a checkout in docs/.
DOCS = WEB / "guide" if (WEB / "guide").is_dir() else WEB.parents[2] / "docs"
ENGINE = Path(__file__).parents[1]

_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_NOT_IN_AN_ID = re.compile(r"[^\w\- ]")


@cache
def pages() -> frozenset[str]:
    """Name the guides: ARCHITECTURE_OVERVIEW.md, …"""
    return frozenset(path.name for path in DOCS.glob("*.md"))


@cache
def pictures() -> frozenset[str]:
    """Name the guides' drawings, as they are linked: images/blocks.svg, …"""
    return frozenset(path.relative_to(DOCS).as_posix() for path in DOCS.glob("images/**/*.svg"))


@cache
def sources() -> frozenset[str]:
    """Name the files of source that can be read: engine/core/scheduler.py, …"""
    paths = ENGINE.rglob("*.py")
    return frozenset(path.relative_to(ENGINE.parent).as_posix() for path in paths)


@lru_cache(maxsize=32)
def page(name: str) -> str:
    """Render a guide as a whole page. `name` is one of `pages()`."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    text = _COMMENT.sub("", (DOCS / name).read_text(encoding="utf-8"))
    tokens = markdown.parse(text)
    _name_headings(tokens)
    for token in tokens:
        _mend_links(token.children or [])
    title = next((t.content for t in tokens if t.type == "inline"), name)
    body = markdown.renderer.render(tokens, markdown.options, {})
    return _whole(title, f"<article>{body}</article>", up="")


@lru_cache(maxsize=32)
def source(name: str) -> str:
    """Render a file of source as a whole page, its lines numbered. `name` is in `sources()`."""
    lines = (ENGINE.parent / name).read_text(encoding="utf-8").splitlines()
    numbered = "".join(
        f'<li id="L{i}"><code>{html.escape(line) or " "}</code></li>'
        for i, line in enumerate(lines, start=1)
    )
    body = f"<h1>{html.escape(name)}</h1><ol class='source'>{numbered}</ol>"
    return _whole(name, body, up="../" * (name.count("/") + 1))


def anchor(heading: str) -> str:
    """Return the id of a heading, as GitHub makes it."""
    return _NOT_IN_AN_ID.sub("", heading.lower()).replace(" ", "-")


def _whole(title: str, body: str, up: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>"
        f'<link rel="icon" href="{up}../room/icon.svg">'
        f'<link rel="stylesheet" href="{up}../room/guide.css"></head><body>'
        f'<nav><a href="{up}START_HERE.md">all guides</a> · <a href="{up}GLOSSARY.md">glossary</a>'
        f"</nav><main>{body}</main></body></html>"
    )


def _name_headings(tokens: list[Token]) -> None:
    seen: dict[str, int] = {}
    for token, inside in pairwise(tokens):
        if token.type != "heading_open":
            continue
        text = "".join(part.content for part in inside.children or [])
        name = anchor(text)
        seen[name] = seen.get(name, -1) + 1
        token.attrSet("id", f"{name}-{seen[name]}" if seen[name] else name)


def _mend_links(parts: list[Token]) -> None:
    """Point each link to what is served, and take away those to what isn't."""
    closing: list[bool] = []  # of the open links, whether they stay
    for part in parts:
        if part.type == "link_open":
            target = _served(str(part.attrGet("href") or ""))
            closing.append(bool(target))
            if target:
                part.attrSet("href", target)
                if "://" in target:
                    part.attrSet("target", "_blank")
                    part.attrSet("rel", "noopener")
            else:
                part.type, part.tag, part.attrs = "text", "", {}
        elif part.type == "link_close" and not closing.pop():
            part.type, part.tag = "text", ""
        elif part.type == "image" and part.attrGet("src") not in pictures():
            part.type, part.content = "text", part.content


def _served(target: str) -> str:
    """Return where a guide's link leads here; "" if it leads out of what is served."""
    if target.startswith("#") or re.match(r"[a-z]+://", target):
        return target
    path, mark, fragment = target.partition("#")
    path = posixpath.normpath(posixpath.join("docs", unquote(path)))
    if path.removeprefix("docs/") in pages() | pictures():
        return path.removeprefix("docs/") + mark + fragment
    return f"source/{path}" + mark + fragment if path in sources() else ""
