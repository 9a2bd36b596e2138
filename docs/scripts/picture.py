"""Make the documents' pictures of pages: `python -m docs.scripts.picture [NAME …]`.

docs/images/demo.svg is what `make demo` prints for its first question, as a terminal shows it. The
others are what Chromium shows: the live page on a record (rooms, one in each theme; present), a
class (lesson, phone), the first page of the site (site).
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from rich.console import Console
from rich.text import Text

from docs.scripts.reader import Record
from docs.scripts.server import ROOT, LocalServer, environment
from docs.scripts.site import build, crowd
from engine.server.lessons import read_lessons
from engine.trace.command import run_command
from engine.trace.html_page import room_with
from glasshouse.command import CLASS_FLAGS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = ROOT / "docs" / "images"
TARGET = IMAGES / "demo.svg"
ROOM = (1280, 900)
SCREEN = (1280, 720)  # a projector's
PHONE = (390, 844)
LESSON = "preemption"  # where it pauses, its own page explains itself
DRAWN_MS = 800  # panels of text are drawn a moment later
WIDTH = 102
BEGIN, END = "1. One question, streamed", "2. Six questions at once"
FONT_FACE = re.compile(r"@font-face \{.*?\}", re.DOTALL)  # they would be fetched from elsewhere


def demo() -> None:
    """Run the demo, keep its first scene, draw it."""
    run = subprocess.run(
        [sys.executable, "examples/demo.py", "--once"],
        cwd=ROOT,
        env={**environment(), "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = run.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if BEGIN in line)
    last = next(i for i, line in enumerate(lines) if END in line)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(lines[first:last]).rstrip()))
    svg = FONT_FACE.sub("", console.export_svg(title="make demo"))
    svg = "\n".join(line.rstrip() for line in svg.replace("Fira Code", "ui-monospace").splitlines())
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(svg + "\n", encoding="utf-8")


def rooms() -> None:
    """Photograph the Engine Room in both themes, at the step of the crowd that the site shows."""
    with _room_file() as (room, where), _browser() as browser:
        for theme in ("light", "dark"):
            page = _page(browser, ROOM, theme)
            page.goto(f"{room.as_uri()}#{where}")
            page.wait_for_selector("#selection dl")
            _keep(page, f"engine-room-{theme}")


def present() -> None:
    """Photograph the presentation where a record opens, its first preemption: grid, timeline and
    reason."""
    with _room_file() as (room, _where), _browser() as browser:
        page = _page(browser, SCREEN)
        page.goto(f"{room.as_uri()}?present")
        page.wait_for_selector("#reason:not([hidden])")
        _keep(page, "class-screen")


def lesson() -> None:
    """Photograph a lesson at its pause, on the teacher's screen."""
    lessons = read_lessons()
    number = next(i for i, one in enumerate(lessons) if one.pause.at == LESSON)
    with LocalServer(*CLASS_FLAGS) as server, _browser() as browser:
        page = _page(browser, SCREEN)
        page.goto(f"{server.url}/?present")
        page.wait_for_selector(".lesson-list li")
        page.evaluate(f"room.lessons.open({number})")
        page.click(f".choice >> nth={lessons[number].prediction.answer - 1}")
        page.click(".lesson-go")
        page.wait_for_selector(".verdict")
        _keep(page, "class-lesson")


def phone() -> None:
    """Photograph a phone of the class whose question was answered."""
    with LocalServer(*CLASS_FLAGS) as server, _browser() as browser:
        teacher = _page(browser, SCREEN)
        teacher.goto(server.url)
        code = teacher.inner_text("#class .code")
        page = _page(browser, PHONE)
        page.goto(f"{server.url}/class#{code}")
        page.fill("[name=name]", "Ada")
        page.click("button")
        page.get_by_text("finished").first.wait_for()
        _keep(page, "class-phone", whole=True)


def site() -> None:
    """Photograph the first page of the site."""
    with tempfile.TemporaryDirectory() as folder, _browser() as browser:
        index, *_rooms = build(Path(folder) / "site")
        page = _page(browser, SCREEN)
        page.goto(index.as_uri())
        _keep(page, "site", whole=True)


@contextmanager
def _room_file() -> Iterator[tuple[Path, str]]:
    """Yield the crowd's room as a file, and the part of an address that leads to its moment."""
    record = Record("crowd")
    moment = crowd(record)
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder) / "room.html"
        room.write_bytes(room_with(record.events, "crowd.jsonl"))
        yield room, urlencode({"step": moment.step, "request": moment.request_id})


@contextmanager
def _browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def _page(browser: Browser, size: tuple[int, int], theme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(120_000)
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
    return page


def _keep(page: Page, name: str, whole: bool = False) -> None:
    """Write what the page shows; `whole`: also what lies below the window."""
    page.wait_for_timeout(DRAWN_MS)
    page.screenshot(path=IMAGES / f"{name}.png", full_page=whole)
    page.close()


PICTURES = {
    "demo": demo, "rooms": rooms, "present": present, "lesson": lesson, "phone": phone,
    "site": site,
}  # fmt: skip


def main() -> int:
    """Make the named pictures, or all."""
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
    return 0


if __name__ == "__main__":
    run_command(main)
