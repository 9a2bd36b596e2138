"""Write docs/PERFORMANCE.md from benchmarks/results/: `python -m docs.scripts.performance`.

Every `*.md` there is a table that a benchmark wrote. It is copied to the page unchanged, below its
chart if there is a `*.svg` of the same name. A `*.json` holds the single runs behind a table, or a
table that has no page of its own yet: it is named. Tables of one machine are in a folder of their
own.
"""

# ruff: noqa: E501 - prose
from __future__ import annotations

import json
from pathlib import Path

from benchmarks.machine_folder import machine_folder
from docs.scripts.server import ROOT
from engine.trace.command import run_command

RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "docs" / "PERFORMANCE.md"

TITLES = {
    "compare": "Beside transformers, on the same machine",
    "core_cost": "What the core and its record cost a step",
    "footprint": "Memory, and the time to be ready",
    "growth": "What more work costs",
    "quality": "What a dtype keeps of the answers",
    "peers": "Beside vLLM and llama.cpp, on the same cores",
    "step_budget": "Where the time of a decode step goes",
    "viewer_cost": "What a viewer costs",
    "triton_aot": "Triton kernels, compiled ahead of time for six kinds of GPU",
}
CHARTS = {"peers": "Tokens a second of each system, by model shape and workload"}

INTRO = """\
<!-- Written by `python -m docs.scripts.performance`: change that, not this file. -->
# How fast is it?

Speed is a ratio in one run: against a named peer with the same weights, the same numbers and the same
threads, or against what the machine was measured to reach at best. Figures from elsewhere, and figures
of GPUs that were not at hand, are not repeated here.

Make the tables on your machine:

<!-- check: long -->
```bash
make bench          # beside transformers
make bench-peers    # beside vLLM and llama.cpp too: gets them into .peers/ first, which takes a while
make quality        # what bf16 and an fp8 cache change in the answers of a real model
make bench-growth   # as requests, context and the pool grow; the record; HTTP; the core alone; memory
```

What was predicted before each change, and what then came out, also where it missed, stands in
[docs/archive/NOTES.md](archive/NOTES.md).
"""

OUTRO = """\
## When something else is the better choice

- One user, one answer at a time, on a CPU: nothing here batches then. Programs that are made for that, with
  weights of 4 bits, need less memory and less of its bandwidth; this version refuses quantized checkpoints.
- Several GPUs for one model: this version uses one.
- A model that is so small that it answers before a scheduler has thought: transformers in your own process has
  less between you and the model.
"""


def page(results: Path = RESULTS) -> str:
    """Write the whole page; without results it says so."""
    machines = sorted({path.parent for path in results.glob("*/*.md")})
    parts = [INTRO]
    for machine in machines:
        parts += [f"## On {_name(machine)}\n", *_tables(machine, results, "###")]
    parts += _tables(results, results, "##")
    if len(parts) == 1:
        parts += ["No table has been measured on this checkout yet.\n"]
    return "\n".join([*parts, OUTRO])


def _tables(folder: Path, results: Path, level: str) -> list[str]:
    """Write the contents of one folder: its tables, each below a heading and its chart.

    The names of the files with single runs follow.
    """
    place = f"../benchmarks/results/{folder.relative_to(results).as_posix()}/".replace("/./", "/")
    parts = []
    for path in sorted(folder.glob("*.md")):
        title = TITLES.get(path.stem) or _title(path.stem)
        parts += [f"{level} {title}\n"]
        if path.with_suffix(".svg").exists():
            parts += [f"![{CHARTS.get(path.stem, title)}]({place}{path.stem}.svg)\n"]
        parts += [path.read_text(encoding="utf-8").strip(), ""]
    if raw := sorted(folder.glob("*.json")):
        names = [f"[{path.name}]({place}{path.name})" for path in raw]
        parts += [f"Every single run: {', '.join(names)}.\n"]
    return parts


def _title(stem: str) -> str:
    """Make a title for a table without one: gpu-nvidia-h200 is what `make gpu` found on that
    card."""
    if stem.startswith("gpu-"):
        return f"On a GPU: {stem.removeprefix('gpu-').replace('-', ' ').upper()}"
    return stem.replace("_", " ").capitalize()


def _name(machine: Path) -> str:
    """Name the processor as its own results do, with the instructions that the kernels use."""
    for path in sorted(machine.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for about in (result.get("machine"), *result.get("sessions", {}).values()):
            if about and "cpu" in about:
                processor = machine_folder(about["cpu"], " ").name  # without instructions
                used = machine.name.removeprefix(f"{processor}-").replace("-", "_").upper()
                return f"{about['cpu']} ({used})"
    return machine.name


def main() -> int:
    """Write the page."""
    TARGET.write_text(page(), encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    run_command(main)
