"""Serve the Engine Room, the live page at `/`. Its files in `web/` are sent unchanged.

The page itself contains nobody's text, so it needs no key. The routes of the record, from which it
gets its contents, need the key.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from engine.server.http.errors import ApiError
from engine.server.lessons import read_lessons

WEB = Path(__file__).resolve().parents[1] / "web"
# The wheel has the guides beside the page (setup.py), a checkout in docs/.
DOCS = WEB / "guide" if (WEB / "guide").is_dir() else WEB.parents[2] / "docs"
GUIDES = ("ARCHITECTURE_OVERVIEW.md", "LOG_GUIDE.md")  # the panels' explanations link to them

HEADERS = {
    "Cache-Control": "no-cache",  # ask each time: the page may be an older server's
    # The page shows prompts: if one were ever taken for a script, it must not run.
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' http: https:; img-src 'self' data:;"
        " frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".md": "text/plain; charset=utf-8",
}


def router(_service: object) -> APIRouter:
    routes = APIRouter()
    # Names, not paths: only files in this list are served.
    files = {file.name: file for file in (WEB / "room").iterdir() if file.suffix in _TYPES}

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(WEB / "index.html")

    lessons = msgspec.json.encode(read_lessons())

    @routes.get("/room/lessons.json", include_in_schema=False)
    async def all_lessons() -> Response:
        return Response(lessons, media_type="application/json", headers=HEADERS)

    @routes.get("/room/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in files:
            raise ApiError(404, f"The page has no file {name!r}.")
        return _file(files[name])

    @routes.get("/guide/{name}", include_in_schema=False)
    async def guide(name: str) -> Response:
        if name not in GUIDES or not (DOCS / name).is_file():
            raise ApiError(
                404, f"This installation has no guide {name!r}; see docs/ of the source."
            )
        return _file(DOCS / name)

    return routes


def _file(path: Path) -> Response:
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=HEADERS)
