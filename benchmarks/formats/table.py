"""Write the table of formats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.formats.forms import FORMS
from benchmarks.formats.speed import TURNS


def markdown(rows: Iterable[dict[str, Any]], where: dict[str, Any], left_out: list[str]) -> str:
    """Make the table of the page, the best quality first."""
    out = [
        f"Measured on {where['cpu']}, {where['threads']} threads, torch {where['torch']},"
        f" transformers {where['transformers']}, {where['date']}. Different: numbers of SmolLM2's"
        " matrices that the format's own library reads otherwise than the engine, in the library's"
        " dtype. Greedy: prompts of SmolLM2 whose greedy tokens, computed from codes in fp32, are"
        " transformers' on the expanded weights. KL and changed: how far the answers on real text"
        " are from those of the unquantized model, in nats, and how often the most probable token"
        " is another, on the pocket model. Bytes: of SmolLM2's checkpoint, beside that in bf16."
        " Speed: tokens a second with SmolLM2, over those of its bf16 weights in turns. Int8"
        " activations: the same checkpoint with --quantized-activations. K types:"
        " llama-quantize stores rows that are no whole blocks of 256 weights in other types, which"
        " are all of the pocket model's, so KL and changed are those of Q5_0, Q5_1 and Q8_0 there,"
        " and two thirds of SmolLM2's matrices.\n",
        "| checkpoint | numbers different | greedy equal | KL | changed | bytes"
        " | one request | 16 requests | prompt of 1,024 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.get("quality", {}).get("kl", float("inf"))):
        says = FORMS[row["format"]].says
        if "refused" in row:
            out.append(f"| {says} | refused: {row['refused']} | | | | | | | |")
            continue
        cells = [says, *_exact(row.get("exact")), *_quality(row.get("quality"))]
        cells.append(f"{row['bytes'] / row['plain_bytes']:.0%}")
        cells += [ratio(row.get("paces", {}).get(name)) for name in TURNS]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join([*out, "", *(f"Left out: {why}" for why in left_out)]).rstrip() + "\n"


def _exact(found: dict[str, int] | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    different = f"{found['different']:,} of {found['numbers']:,}"
    return [different, f"{found['equal']} of {found['prompts']}"]


def _quality(found: dict[str, float] | None) -> list[str]:
    return ["–", "–"] if found is None else [f"{found['kl']:.5f}", f"{found['changed']:.1%}"]


def ratio(paces: dict[str, list[float]] | None) -> str:
    """Return the ratio of the medians, and the least and the greatest of the turns'."""
    if paces is None:
        return "–"
    median = statistics.median(paces["quantized"]) / statistics.median(paces["plain"])
    ratios = [one / other for one, other in zip(paces["quantized"], paces["plain"], strict=True)]
    return f"{median:.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
