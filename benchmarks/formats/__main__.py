"""Measure quantized checkpoints that other tools make: whether they load, are exact, good, fast.

    python -m benchmarks.peers.install llama.cpp auto-round llm-compressor
    python -m benchmarks.formats [--formats gptq …] [--parts exact speed …] [--out FOLDER]

Each tool makes a checkpoint of SmolLM2 and one of the pocket model, once. Exactness is held on
SmolLM2's: what its codes stand for, against the format's own library, bit by bit, and greedy tokens
in fp32, against transformers on the expanded weights. Quality is measured on the pocket model,
which was trained in higher precision: SmolLM2 is to be had here only as a file in Q4_1, so rounding
it again says nothing of a format. Speed is measured in bf16, in turns with the plain model. Formats
that end in -int8 are the others' checkpoints with --quantized-activations: of these there is no
library to be equal to.
`formats.json` and `formats.md` are written after each format; a later call replaces only the parts
that it measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.beside_transformers import machine
from benchmarks.formats import checks, made, speed
from benchmarks.formats.forms import FORMS, OURS
from benchmarks.formats.table import markdown
from benchmarks.machine_folder import machine_folder
from benchmarks.peers.install import Peers
from engine.models.errors import ModelError
from engine.models.hub import find_model
from engine.trace.command import run_command

PARTS = ("make", "exact", "quality", "speed")
REAL, SMALL = "smollm2", "pocket"
VOCABULARY = 49152  # SmolLM2's


def measure(peers: Peers, name: str, parts: list[str], row: dict[str, Any]) -> None:
    """Make and measure one format, into its row. Raises `ToolFailed`."""
    same_as = FORMS[name].same_as
    rounded = {"quantized_activations": True} if same_as else {}
    real, small = (made.checkpoint(peers, same_as or name, model) for model in (REAL, SMALL))
    plain = {model: find_model(model, None, None) for model in (REAL, SMALL)}
    row.pop("refused", None)
    try:
        row["bytes"], row["plain_bytes"] = (checks.num_bytes(of) for of in (real, plain[REAL]))
        if "exact" in parts and not rounded:
            row["exact"] = exact(peers, name, real)
        if "quality" in parts:
            row["quality"] = checks.quality(small, plain[SMALL], **rounded)
        if "speed" in parts:
            folders = {"quantized": str(real), "plain": str(plain[REAL])}
            row["paces"] = speed.paces(folders, VOCABULARY, **rounded).paces
    except ModelError as refused:
        row["refused"] = str(refused)


def exact(peers: Peers, name: str, folder: Path) -> dict[str, int]:
    """Compare numbers with the library's, and greedy tokens with transformers'."""
    ours = dict(checks.numbers_of(folder))
    with tempfile.TemporaryDirectory() as work:
        library, plain = Path(work) / "library.safetensors", Path(work) / "plain"
        made.read_by_library(peers, name, folder, library)
        compared = checks.compare_numbers(ours, library)
        library.unlink()
        checks.expand(folder, ours, plain)
        del ours
        equal = checks.greedy_equal(folder, plain, VOCABULARY)
    return {**compared._asdict(), "prompts": checks.PROMPTS, "equal": equal}


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for, and write the table; returns 1 where nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats")
    parser.add_argument("--formats", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=machine_folder(), help="folder for the results")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    path, peers, left_out = given.out / "formats.json", Peers(), []
    known = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = {row["format"]: row for row in known["rows"]}
    for name in given.formats:
        tool, says = FORMS[name].tool, FORMS[name].says
        if tool != OURS and not peers.has(tool):
            if name in rows:
                print(f"{says}: its row stays, as {tool} is not installed")
            else:
                left_out.append(f"{says}: python -m benchmarks.peers.install {tool}")
            continue
        started, row = time.monotonic(), {**rows.get(name, {}), "format": name}
        try:
            measure(peers, name, given.parts, row)
        except made.ToolFailed as error:
            print(error)
            left_out.append(f"{says}: {str(error).splitlines()[0]}")
            continue
        print(f"{name}: {time.monotonic() - started:.0f} s, {row}", flush=True)
        rows[name] = row
        results = {"machine": machine(), "rows": list(rows.values())}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(rows.values(), results["machine"], left_out))
    print("\n".join(left_out))
    return 0 if rows else 1


if __name__ == "__main__":
    run_command(main)
