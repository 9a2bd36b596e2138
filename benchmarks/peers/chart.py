"""Draw the table as a picture: an SVG file, written by hand.

One row of panels for each shape and dtype, one panel for each workload, one bar for each system;
within a panel bars are to scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

LEFT, PANEL, GAP = 150, 250, 14
BAR, STEP = 13, 18
NAME, VALUE = 112, 52
HEAD, ROW_GAP = 44, 22
COLOURS = {"Glasshouse": "#0f766e"}
PEER = "#a8b3bd"


def svg(lines: list[dict]) -> str:
    """Draw the lines of `results.summary`."""
    workloads = _in_order(line["workload"] for line in lines)
    rows = _in_order((line["shape"], line["dtype"]) for line in lines)
    body, top = [], HEAD
    for column, workload in enumerate(sorted(workloads)):
        x = LEFT + column * (PANEL + GAP)
        body.append(_text(x + NAME, 26, workload, "b"))
    for shape, dtype in rows:
        body.append(_text(8, top + BAR, shape, "b"))
        body.append(_text(8, top + BAR + STEP, dtype, "s"))
        tallest = 2
        for column, workload in enumerate(sorted(workloads)):
            here = [
                line
                for line in lines
                if (line["shape"], line["dtype"], line["workload"]) == (shape, dtype, workload)
            ]
            tallest = max(tallest, len(here))
            body += _panel(LEFT + column * (PANEL + GAP), top, here)
        top += tallest * STEP + ROW_GAP
    width = LEFT + len(workloads) * (PANEL + GAP)
    return _frame(width, top, body)


def _panel(x: int, top: int, lines: list[dict]) -> list[str]:
    """Draw the bars of one workload, with the least and the most of the repeats as a thin line."""
    if not lines:
        return []
    scale = (PANEL - NAME - VALUE) / max(line["spread"][1] for line in lines)
    out = []
    for number, line in enumerate(lines):
        y, zero = top + number * STEP, x + NAME
        length = line["tokens_per_s"] * scale
        low, high = (zero + value * scale for value in line["spread"])
        transport = "HTTP" if line["transport"] == "HTTP" else ""
        colour = COLOURS.get(line["system"], PEER)
        out += [
            _text(zero - 5, y + 11, f"{line['system']} {transport}".strip(), "n"),
            f'<rect x="{zero}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<path d="M{low:.1f} {y + BAR / 2}H{high:.1f}" stroke="#1f2933"/>',
            _text(round(high) + 5, y + 11, f"{line['tokens_per_s']:,.0f}", "v"),
        ]
    return out


def _frame(width: int, height: int, body: list[str]) -> str:
    style = (
        "text{font:11px system-ui,sans-serif;fill:#1f2933}.b{font-weight:600;font-size:13px}"
        ".s{fill:#52606d}.n{text-anchor:end}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img"'
            ' aria-label="Tokens a second of each system, by model shape and workload">',
            f"<style>{style}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            _text(8, 26, "tokens/s", "s"),
            *body,
            "</svg>",
            "",
        ]
    )


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def _in_order(items: Iterable) -> list:
    return list(dict.fromkeys(items))
