"""Write docs/PERFORMANCE.md and docs/performance/ from benchmarks/results/.

`python -m docs.scripts.performance`. The first page has the headline (`headline.py`), each machine
a page of its own, each `*.md` beside the machines' folders too. Every `*.md` is a table that a
benchmark wrote. It is copied unchanged, below its chart if there is a `*.svg` of the same name. A
`*.json` holds the single runs behind a table, or a table without a page: it is named.
"""

# ruff: noqa: E501 - prose
from __future__ import annotations

import json
from pathlib import Path

from benchmarks.machine_folder import machine_folder
from docs.scripts.headline import gpu_lines, headline, quality
from docs.scripts.server import ROOT
from engine.trace.command import run_command

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
TARGET = DOCS / "PERFORMANCE.md"
CHART = "images/performance.svg"

TITLES = {
    "compare": "Beside transformers, on the same machine",
    "core_cost": "What the core and its record cost a step",
    "footprint": "Memory, and the time to be ready",
    "loading": "What loading a model takes",
    "growth": "What more work costs",
    "quality": "What a dtype keeps of the answers",
    "peers": "Beside vLLM and llama.cpp, on the same cores",
    "formats": "Quantized checkpoints that other tools make",
    "formats_shapes": "Quantized weights beside bf16, by shape",
    "gguf": "Beside llama.cpp, on the same quantized file",
    "quantized": "Beside vLLM, on the same quantized checkpoint",
    "speculation": "What proposed tokens gain, by kind of text",
    "ngram": "What proposals by look-up gain here and in vLLM",
    "structured": "What a grammar costs",
    "peers_structured": "What a JSON schema costs here and in vLLM",
    "step_budget": "Where the time of a decode step goes",
    "viewer_cost": "What a viewer costs",
    "token_cost": "What a streamed token costs the server",
    "api_cost": "What a streamed token costs it beside vLLM and llama.cpp",
    "transport": "What HTTP leaves of the engine's speed",
    "variants": "The variants of the kernels that it can run",
    "triton_aot": "Triton kernels, compiled ahead of time for six kinds of GPU",
}
CHARTS = {
    "peers": "Tokens a second of each system, by model shape and workload",
    "gguf": "Tokens a second of each system, by type of the file and workload",
    "quantized": "Tokens a second of each system, by format and workload",
}

WRITTEN = "<!-- Written by `python -m docs.scripts.performance`: change that, not this file. -->"
TITLE = f"{WRITTEN}\n# How fast is it?\n"

REST = """\
Speed is a ratio in one run: against a named peer with the same weights, the same numbers and the same threads, or
against what the machine was measured to reach at best. Figures from elsewhere are not repeated here.

- DeepSpeed is no row of its own: version 0.19.8 has a CPU accelerator, but neither generation of its inference
  kernels has a build for it ("This op had not been implemented on CPU backend"), and without them
  `deepspeed.init_inference` is transformers. nano-vllm asks for CUDA.

## When something else is the better choice

- One user, one answer at a time, on a CPU: nothing here batches then. Programs that are made for that, with
  weights of 4 bits, need less memory and less of its bandwidth; here such weights are served too, but most work
  went into many requests at once.
- One model on several GPUs: `--tensor-parallel-size` divides it, but that has never run on several GPUs
  ([why](ARCHITECTURE_OVERVIEW.md#fewer-bits-more-devices)). Several engines, each with its own GPU: [SCALING](SCALING.md).
- A model that is so small that it answers before a scheduler has thought: transformers in your own process has
  less between you and the model.

## Make the tables on your machine

<!-- check: long -->
```bash
make bench          # beside transformers
make bench-peers    # beside vLLM and llama.cpp too: gets them into .peers/ first, which takes a while
make quality        # what bf16 and an fp8 cache change in the answers of a real model
make bench-growth   # as requests, context and the pool grow; the record; HTTP; the core alone; memory
```

Quantized checkpoints, which other programs make and read, have commands of their own. Each says what is to be
installed first: `python -m benchmarks.formats`, `python -m benchmarks.peers.gguf` (beside llama.cpp, on the same
file), `python -m benchmarks.peers.quantized` (beside vLLM, on the same checkpoint). So has what a JSON schema costs:
`python -m benchmarks.structured`, and beside vLLM with xgrammar `python -m benchmarks.peers.structured`.

What was predicted before each change, and what then came out, also where it missed, stands in
[docs/archive/NOTES.md](archive/NOTES.md).
"""


def pages(results: Path = RESULTS) -> dict[str, str]:
    """Write every page, by its path below docs/; without results the first one says so."""
    made, links = {}, []
    for folder in sorted({path.parent for path in results.glob("*/*.md")}):
        name = f"performance/{folder.name}.md"
        title = f"On {_name(folder)}"
        tables = _tables([*folder.glob("*.md")], folder, results)
        made[name] = _page(title, tables)
        links.append(f"- [{title}]({name})")
    for path in sorted(results.glob("*.md")):
        name = f"performance/{path.stem.replace('_', '-')}.md"
        title = TITLES.get(path.stem) or _title(path.stem)
        made[name] = _page(title, _tables([path], results, results))
        links.append(f"- [{title}]({name})")
    return {TARGET.name: first_page(results, links), **made}


def first_page(results: Path, links: list[str]) -> str:
    """Write the page that has the headline, and links to all others."""
    parts = [TITLE]
    top = headline(results)
    if top is not None:
        about = top.about
        parts += [
            f"SmolLM2-135M in bf16 with {top.weights}, on {about['cores']} cores of an {_name(top.folder)},"
            f" beside the programs that people use, in turns on the same cores:\n",
            f"![Tokens a second of each system and workload]({CHART})\n",
            *top.table(quality(results)),
            "",
            "*Prompts and answers of 32 to 256 tokens; one request: 32 in, 128 out. (we: n×): Glasshouse's speed over"
            " theirs in the same session, the same transport. Quality is measured on real text, by `make quality`;"
            " –: not measured while the machine was quiet.*\n",
        ]
    parts += [*gpu_lines(results), ""]
    if links:
        parts += ["## Every figure, one page a machine\n", *links, ""]
    else:
        parts += ["No table has been measured on this checkout yet.\n"]
    return "\n".join([*parts, REST])


def _page(title: str, tables: list[str]) -> str:
    return "\n".join([WRITTEN, f"# {title}\n", "[How fast is it?](../PERFORMANCE.md)\n", *tables])


def _tables(tables: list[Path], folder: Path, results: Path) -> list[str]:
    """Write tables of one folder, each below a heading and its chart, and name the single runs."""
    place = f"../../benchmarks/results/{folder.relative_to(results).as_posix()}/"
    place = place.replace("/./", "/")
    parts = []
    for path in sorted(tables):
        title = TITLES.get(path.stem) or _title(path.stem)
        parts += [f"## {title}\n"]
        if path.with_suffix(".svg").exists():
            parts += [f"![{CHARTS.get(path.stem, title)}]({place}{path.stem}.svg)\n"]
        parts += [path.read_text(encoding="utf-8").strip(), ""]
    own = folder == results  # several pages share the folder: each names its own runs only
    stems = {path.stem for path in tables}
    raw = [p for p in sorted(folder.glob("*.json")) if not own or p.stem in stems]
    if raw:
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
    """Write the pages and the picture."""
    (DOCS / "performance").mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name}: {len(text.encode()):,} bytes")
    top = headline(RESULTS)
    if top is not None:
        (DOCS / CHART).write_text(top.chart(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
