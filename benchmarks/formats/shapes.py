"""Measure quantized weights of a model's shape beside the engine's own bf16, in turns.

    python -m benchmarks.formats.shapes [--shapes qwen3-0.6b …] [--formats gptq …] [--out FOLDER]

`python -m engine.quantize` makes the checkpoints: speed depends on the layout of weights, not on
their values. Formats that end in -head have a quantized head beside the embeddings, which stay in
bf16. The table says also what part of the memory's bandwidth one request used: bytes that one token
reads, over the time of a token, against the speed at which all threads read memory just before and
after that run, whichever is greater; the median of the turns, because other users of the machine
change its memory's speed from second to second. The bytes are the checkpoint's, but for embeddings
that aren't the head, too: of them a token reads one row. `formats_shapes.json` and `.md` are
written after each format; a later call replaces only the rows that it measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.beside_transformers import machine
from benchmarks.formats import checks, speed
from benchmarks.formats.table import ratio
from benchmarks.machine_folder import machine_folder
from benchmarks.peers.install import PEERS_DIR
from benchmarks.shape_names import LARGE_SHAPES, SHAPES
from benchmarks.shapes import shape, weights_for
from engine.models.hub import find_model
from engine.trace.command import run_command

FORMATS = {
    "gptq": ["gptq"],
    "gptq-32": ["gptq", "--group-size", "32"],
    "gptq-head": ["gptq", "--head"],
    "awq-like": ["awq-like"],
    "awq-like-head": ["awq-like", "--head"],
    "w4a16": ["w4a16"],
    "int8": ["int8"],
    "q4_0": ["q4_0"],
    "q8_0": ["q8_0"],
}
"""Options of `python -m engine.quantize`, by the format's name in the table."""
GGUF = ("q4_0", "q8_0")
"""Those that need a tokenizer, which a shape with random weights hasn't."""
ROUNDED = "-int8-activations"
"""Ends the name of a format that is also measured with --quantized-activations."""
KEPT = PEERS_DIR / "models" / "shapes"


def checkpoint(name: str, plain: str, form: str) -> Path:
    """Return the folder of these weights in a format, made once."""
    weights = (Path(find_model(plain, None, None)) / "model.safetensors").read_bytes()
    folder = KEPT / f"{name}-{hashlib.sha256(weights).hexdigest()[:8]}-{form}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            made = Path(work) / "made"
            command = [sys.executable, "-m", "engine.quantize", plain, "--weights-only"]
            subprocess.run([*command, "--format", *FORMATS[form], "--out", str(made)], check=True)
            made.rename(folder)
    return folder


def measure(name: str, plain: str, form: str) -> dict[str, Any]:
    """Measure one format of one shape; returns its row."""
    stored = form.removesuffix(ROUNDED)
    options = {"quantized_activations": True} if form != stored else {}
    quantized = checkpoint(name, plain, stored)
    folders = {"quantized": str(quantized), "plain": plain}
    found = speed.paces(folders, shape(name).vocab_size, **options)
    return {
        "shape": name,
        "format": form,
        "bytes": {of: checks.num_bytes(Path(folder)) for of, folder in folders.items()},
        "read": {of: checks.bytes_read(Path(folder)) for of, folder in folders.items()},
        "read_gb_s": found.read_gb_s,
        "paces": found.paces,
    }


def bytes_read(row: dict[str, Any], of: str) -> int:
    """Return the bytes that one token reads; rows of before were of models with tied heads only."""
    return row.get("read", row["bytes"])[of]


def share(row: dict[str, Any], of: str) -> float:
    """Return the part of the bandwidth that one request used.

    Rows of before have two figures of bandwidth, of the moments before and after all runs.
    """
    paces = row["paces"][speed.BOUND][of]
    if "read_gb_s" not in row:
        return bytes_read(row, of) * statistics.median(paces) / max(row["bandwidth"])
    limits = row["read_gb_s"][of]
    parts = [pace / limit for pace, limit in zip(paces, limits, strict=True)]
    return bytes_read(row, of) * statistics.median(parts) / 1e9


def markdown(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """Make the table of the page."""
    out = [
        f"Measured on {where['cpu']}, {where['threads']} threads, torch {where['torch']},"
        f" {where['date']}, by `python -m benchmarks.formats.shapes`: tokens a second with"
        " weights quantized by `python -m engine.quantize`, over those of the same weights in bf16,"
        " in turns. Bytes: of the checkpoint. Read: of these, what one token reads; embeddings that"
        " aren't the head, too, are not. Bandwidth: bytes that are read times tokens a second, over"
        " the speed at which the same threads read memory beside that run. Activations are in bf16,"
        " but where it says int8.\n",
        "| shape | format | bytes | read | one request | 16 requests | prompt of 1,024"
        " | of the bandwidth, one request | in bf16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["shape"], row["format"])):
        cells = [row["shape"], row["format"].replace(ROUNDED, ", int8 activations")]
        cells.append(f"{row['bytes']['quantized'] / row['bytes']['plain']:.0%}")
        cells.append(f"{bytes_read(row, 'quantized') / bytes_read(row, 'plain'):.0%}")
        cells += [ratio(row["paces"][name]) for name in speed.TURNS]
        cells += [f"{share(row, 'quantized'):.0%}", f"{share(row, 'plain'):.0%}"]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats.shapes")
    rounded = [f"{form}{ROUNDED}" for form in FORMATS]
    parser.add_argument(
        "--shapes", nargs="+", choices=[*SHAPES, *LARGE_SHAPES], default=["qwen3-0.6b"]
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=[*FORMATS, *rounded],
        default=[form for form in FORMATS if form not in GGUF],
    )
    parser.add_argument("--out", type=Path, default=machine_folder(), help="folder for the results")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "formats_shapes.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {(row["shape"], row["format"]): row for row in known}
    with tempfile.TemporaryDirectory() as work:
        for name in given.shapes:
            plain = weights_for(name, Path(work), torch.bfloat16)
            for form in given.formats:
                row = rows[name, form] = measure(name, plain, form)
                print(f"{name} {form}: {row['paces']}", flush=True)
                made = {"machine": machine(), "rows": list(rows.values())}
                path.write_text(json.dumps(made, indent=1) + "\n")
                path.with_suffix(".md").write_text(markdown(made["rows"], made["machine"]))
    return 0


if __name__ == "__main__":
    run_command(main)
