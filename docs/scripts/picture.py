"""docs/images/demo.svg: what `make demo` prints for its first question, as a terminal shows it.

python -m docs.scripts.picture
"""

from __future__ import annotations

import io
import re
import subprocess
import sys

from rich.console import Console
from rich.text import Text

from docs.scripts.server import ROOT, environment
from engine.trace.command import run_command

TARGET = ROOT / "docs" / "images" / "demo.svg"
WIDTH = 102
BEGIN, END = "1. One question, streamed", "2. Six questions at once"
FONT_FACE = re.compile(r"@font-face \{.*?\}", re.DOTALL)  # they would be fetched from elsewhere


def main() -> int:
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
    return 0


if __name__ == "__main__":
    run_command(main)
