"""Serve the Engine Room, the live page at `/`. Its files in `web/` are sent unchanged.

The page itself contains nobody's text, so it needs no key. The routes of the record, from which it
gets its contents, need the key.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

from engine.server import guide
from engine.server.http.errors import ApiError
from engine.server.lessons import read_lessons

WEB = Path(__file__).resolve().parents[1] / "web"

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

    @routes.get("/guide/{name:path}", include_in_schema=False)
    def document(name: str) -> Response:
        """Serve a guide, a drawing of one, or a file of source. Only names of the lists do."""
        if name in guide.pages():
            return HTMLResponse(guide.page(name), headers=HEADERS)
        if name in guide.pictures():
            return _file(guide.DOCS / name)
        file = name.removeprefix("source/")
        if file != name and file in guide.sources():
            return HTMLResponse(guide.source(file), headers=HEADERS)
        raise ApiError(404, f"This installation has no guide {name!r}; see docs/ of the source.")

    return routes


def _file(path: Path) -> Response:
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=HEADERS)
