"""The Engine Room: the live page at `/`. Its files in `web/` are sent as they are, none is built.

The page itself holds nothing of anybody, so it needs no key; what it shows comes from the routes of
the record, which do.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from engine.server.http.errors import ApiError

WEB = Path(__file__).resolve().parents[1] / "web"
# The wheel has the guides beside the page (setup.py), a checkout in docs/.
DOCS = WEB / "guide" if (WEB / "guide").is_dir() else WEB.parents[2] / "docs"
GUIDES = ("ARCHITECTURE_OVERVIEW.md", "LOG_GUIDE.md")  # the panels' explanations point there

HEADERS = {
    "Cache-Control": "no-cache",  # asks each time whether it changed: no page of an older server
    # Prompts are shown in the page: should any of it ever be taken for a script, it may not run.
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
    # Names, not paths: what is not in this list isn't served.
    files = {file.name: file for file in (WEB / "room").iterdir() if file.suffix in _TYPES}

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(WEB / "index.html")

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
