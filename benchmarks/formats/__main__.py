"""Measure quantized checkpoints that other tools make: whether they load, are exact, good, fast.

    python -m benchmarks.peers.install auto-round llm-compressor
    python -m benchmarks.formats [--formats gptq …] [--out FOLDER]

Each tool makes a checkpoint of SmolLM2 and one of the pocket model. Exactness is held on SmolLM2's:
what its codes stand for, against the format's own library, bit by bit, and greedy tokens in fp32,
against transformers on the expanded weights. Quality is measured on the pocket model, which was
trained in higher precision: SmolLM2 is to be had here only as a file in Q4_1, so rounding it again
says nothing of a format. Speed is decoding by one request in bf16, in turns with the plain model.
`formats.json` and `formats.md` are written after each format.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from benchmarks.formats import checks
from benchmarks.formats.maker import AUTO_ROUND, BITSANDBYTES, COMPRESSOR
from benchmarks.machine_folder import machine_folder
from benchmarks.peers.install import LOGS, PEERS_DIR, Peers, last_words
from benchmarks.workloads import workloads
from engine.models.checkpoint import Checkpoint
from engine.models.errors import ModelError
from engine.models.hub import find_model
from engine.trace.command import run_command

MAKER = Path(__file__).with_name("maker.py")
MADE = PEERS_DIR / "models" / "formats"
TOOL = {
    **dict.fromkeys((*AUTO_ROUND, *BITSANDBYTES), "auto-round"),
    **dict.fromkeys(COMPRESSOR, "llm-compressor"),
}
"""Which environment makes a format."""
SAYS = {
    "gptq": "GPTQ, 4 bits, by auto-round",
    "awq": "AWQ, 4 bits, by auto-round",
    "w4a16": "compressed-tensors W4A16, by auto-round",
    "nf4": "bitsandbytes nf4",
    "nf4-nested": "bitsandbytes nf4, nested scales",
    "fp4": "bitsandbytes fp4",
    "int8": "bitsandbytes int8",
    "w8a8": "compressed-tensors W8A8, by llm-compressor",
    "fp8": "compressed-tensors FP8, by llm-compressor",
    "fp8-block": "compressed-tensors FP8 in blocks, by llm-compressor",
}
PATIENCE_S = 1200


class ToolFailed(RuntimeError):
    """Report that a tool made nothing; the message has the end of its log."""


def ask(peers: Peers, name: str, what: str, *paths: Path) -> None:
    """Run the maker in the environment of the format's tool. Raises `ToolFailed`."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"formats-{name}.log"
    command = [str(peers.tool_python(TOOL[name])), str(MAKER), what, name, *map(str, paths)]
    with log.open("ab") as file:
        try:
            ran = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**peers.plain_environment, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
                timeout=PATIENCE_S,
            )
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"{TOOL[name]} took longer than {PATIENCE_S} s") from None
    if ran.returncode:
        raise ToolFailed(f"{TOOL[name]} failed; {log} ends so:\n{last_words(log)}")


def made(peers: Peers, name: str, model: str) -> Path:
    """Return the checkpoint of a model in a format, made once. Raises `ToolFailed`."""
    target, source = MADE / f"{model}-{name}", find_model(model, None, None)
    if not (target / "config.json").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            ask(peers, name, "make", source, Path(work) / "made")
            found = next(path.parent for path in Path(work).rglob("config.json"))
            for path in source.glob("tokenizer*"):
                if not (found / path.name).exists():
                    (found / path.name).write_bytes(path.read_bytes())
            found.rename(target)
    return target


def measure(peers: Peers, name: str) -> dict[str, Any]:
    """Make and check one format. Raises `ToolFailed`."""
    row: dict[str, Any] = {"format": name, "says": SAYS[name], "loads": True}
    real, small = (made(peers, name, model) for model in ("smollm2", "pocket"))
    source = find_model("smollm2", None, None)
    row["bytes"] = Checkpoint.open(real).num_bytes
    row["plain_bytes"] = Checkpoint.open(source).num_bytes
    try:
        ours = dict(checks.numbers_of(real))
        with tempfile.TemporaryDirectory() as work:
            library, plain = Path(work) / "library.safetensors", Path(work) / "plain"
            ask(peers, name, "read", real, library)
            row["numbers"], row["different"] = checks.compare_numbers(ours, library)
            checks.expand(real, ours, plain)
            del ours
            row["prompts"] = checks.PROMPTS
            row["equal"] = checks.greedy_equal(real, plain, 49152)
        pocket = find_model("pocket", None, None)
        row["quality"] = checks.quality(small, pocket)
        folders = {"quantized": real, "plain": source}
        row["paces"] = checks.paces(folders, workloads(49152)["W1"])
    except ModelError as refused:
        row["loads"], row["refused"] = False, str(refused)
    return row


def markdown(rows: list[dict[str, Any]], where: dict[str, Any], left_out: list[str]) -> str:
    """Make the table of the page, the best quality first."""
    out = [
        f"Measured on {where['cpu']}, {where['threads']} threads, torch {where['torch']},"
        f" transformers {where['transformers']}, {where['date']}. Different: matrices of SmolLM2 as"
        " the format's own library reads them, beside what the engine reads, in the library's"
        " dtype. Greedy: prompts of SmolLM2 whose greedy tokens, computed from codes in fp32, are"
        " transformers' on the expanded weights. KL and changed: how far the answers on real text"
        " are from those of the unquantized model, in nats, and how often the most probable token"
        " is another, on the pocket model. Speed: decoding one request with SmolLM2, over that of"
        " its bf16 weights in turns.\n",
        "| checkpoint | loads | numbers different | greedy equal | KL | changed | bytes | speed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.get("quality", {}).get("kl", float("inf"))):
        if not row["loads"]:
            out.append(f"| {row['says']} | no: {row['refused']} | | | | | | |")
            continue
        paces, quality = row["paces"], row["quality"]
        speeds = {name: statistics.median(of) for name, of in paces.items()}
        pairs = [one / other for one, other in zip(paces["quantized"], paces["plain"])]
        out.append(
            f"| {row['says']} | yes | {row['different']:,} of {row['numbers']:,}"
            f" | {row['equal']} of {row['prompts']} | {quality['kl']:.5f}"
            f" | {quality['changed']:.1%} | {row['bytes'] / row['plain_bytes']:.0%}"
            f" | {speeds['quantized'] / speeds['plain']:.2f}× ({min(pairs):.2f}–{max(pairs):.2f}) |"
        )
    return "\n".join([*out, "", *(f"Left out: {why}" for why in left_out)]).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats")
    parser.add_argument("--formats", nargs="+", choices=list(TOOL), default=list(TOOL))
    parser.add_argument("--out", type=Path, default=machine_folder(), help="folder for the results")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    path, peers, left_out = given.out / "formats.json", Peers(), []
    known = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = {row["format"]: row for row in known["rows"]}
    for name in given.formats:
        if not peers.has(TOOL[name]):
            left_out.append(f"{SAYS[name]}: python -m benchmarks.peers.install {TOOL[name]}")
            continue
        started = time.monotonic()
        try:
            rows[name] = measure(peers, name)
        except ToolFailed as error:
            print(error)
            left_out.append(f"{SAYS[name]}: {str(error).splitlines()[0]}")
            continue
        print(f"{name}: {time.monotonic() - started:.0f} s, {rows[name]}", flush=True)
        results = {"machine": machine(), "rows": list(rows.values())}
        path.write_text(json.dumps(results, indent=1) + "\n")
        table = markdown(list(rows.values()), results["machine"], left_out)
        path.with_suffix(".md").write_text(table)
    print("\n".join(left_out))
    return 0 if rows else 1


if __name__ == "__main__":
    run_command(main)
