"""Make the pictures of the first screen: `python -m docs.scripts.picture [demo] [rooms]`.

docs/images/demo.svg is what `make demo` prints for its first question, as a terminal shows it;
engine-room-light.png and -dark.png are the live page on a record, as Chromium shows it.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from rich.console import Console
from rich.text import Text

from docs.scripts.reader import Record
from docs.scripts.server import ROOT, environment
from docs.scripts.site import crowd
from engine.trace.command import run_command
from engine.trace.html_page import room_with

IMAGES = ROOT / "docs" / "images"
TARGET = IMAGES / "demo.svg"
ROOM_WIDTH, ROOM_HEIGHT = 1280, 900
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
    from playwright.sync_api import sync_playwright

    record = Record("crowd")
    moment = crowd(record)
    where = urlencode({"step": moment.step, "request": moment.request_id})
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        room = Path(folder) / "room.html"
        room.write_bytes(room_with(record.events, "crowd.jsonl"))
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": ROOM_WIDTH, "height": ROOM_HEIGHT})
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.goto(f"{room.as_uri()}#{where}")
            page.wait_for_selector("#selection dl")
            page.wait_for_timeout(800)  # panels of text are drawn a moment later
            page.screenshot(path=IMAGES / f"engine-room-{theme}.png")
        browser.close()


PICTURES = {"demo": demo, "rooms": rooms}


def main() -> int:
    """Make the named pictures, or all."""
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
    return 0


if __name__ == "__main__":
    run_command(main)
