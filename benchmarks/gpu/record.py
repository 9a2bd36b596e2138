"""Keep the record of a card: results by part, in one file that grows as they come.

It can be joined with others of the same card.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.gpu import report

LISTS = {
    "parity": ("parity", "bf16_logits"),
}
"""Part → the lists that its results are in, where it isn't the one of its own name."""
CARD = ("device", "torch", "triton", "cuda", "python", "date")
RATES = ("copy_gb_s", "matrix_tflop_s")


def begin(limits: dict, dry: bool) -> dict:
    """Begin a record without results. limits: what the part `limits` found."""
    record: dict = {name: limits[name] for name in CARD}
    record["limits"] = {name: limits[name] for name in RATES}
    record["dry_run"] = dry
    record["parts"] = {}  # part → how it ended, when, on which versions, against which limits
    return record


def forget(record: dict, part: str) -> None:
    """Drop the results of a part, which runs again."""
    for name in (*LISTS.get(part, (part,)), "parts"):
        if name == "parts":
            record["parts"].pop(part, None)
        else:
            record.pop(name, None)


def joined(records: list[dict]) -> dict:
    """Join several records of the same card: each part is taken from the last one that has it.

    Raises ValueError where they are of different cards.
    """
    devices = {record["device"] for record in records}
    if len(devices) > 1:
        raise ValueError(f"these are of different cards: {', '.join(sorted(devices))}")
    whole = {**records[-1], "parts": {}}
    for lists in (LISTS.get(part, (part,)) for record in records for part in record["parts"]):
        for name in lists:
            whole.pop(name, None)
    for record in records:
        for part, ended in record["parts"].items():
            forget(whole, part)
            whole["parts"][part] = ended
            for name in LISTS.get(part, (part,)):
                if name in record:
                    whole[name] = record[name]
    return whole


def path_of(record: dict, folder: Path) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    return folder / f"gpu-{slug}.json"


def write(record: dict, folder: Path) -> Path:
    """Write the record and its page. A reader never sees half of either."""
    path = path_of(record, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for to, text in (
        (path, json.dumps(record, indent=1) + "\n"),
        (path.with_suffix(".md"), report.markdown(record)),
    ):
        unfinished = to.with_suffix(f"{to.suffix}.part")
        unfinished.write_text(text)
        unfinished.replace(to)
    return path
