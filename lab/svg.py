"""Draw as inline SVG: no script, no font, no file from elsewhere.

Text and lines take their colours from the page's style (`currentColor`, class "quiet"), so that
they are legible in light and dark.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from lab.axes import Axis
from lab.chapter import quantity
from lab.drawings import (
    EMPTY,
    PALETTE,
    Bars,
    Cells,
    Drawing,
    Lanes,
    Legend,
    Lines,
    Pieces,
    printable,
)

WIDTH = 760
LABEL = 190


def figure(drawing: Drawing) -> str:
    """Make an HTML figure: title, picture, legend."""
    if isinstance(drawing, Lines):
        legend: Legend = [(s.name, i % len(PALETTE)) for i, s in enumerate(drawing.series)]
    else:
        legend = getattr(drawing, "legend", [])
    key = "".join(
        f'<span><i style="background:{_fill(colour)}"></i>{escape(name)}</span>'
        for name, colour in legend
    )
    return (
        f'<figure tabindex="0"><figcaption>{escape(drawing.title)}</figcaption>'
        f"{_DRAW[type(drawing)](drawing)}"
        + (f'<div class="legend">{key}</div>' if key else "")
        + "</figure>"
    )


def _fill(colour: int) -> str:
    return "var(--empty)" if colour == EMPTY else PALETTE[colour]


def _svg(height: float, parts: list[str], name: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(name, True)}">'
        + "".join(parts)
        + "</svg>"
    )


def _rect(x: float, y: float, width: float, height: float, colour: int, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}"'
        f' rx="2" style="fill:{_fill(colour)}">{inner}</rect>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", quiet: bool = False) -> str:
    kind = ' class="quiet"' if quiet else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _bars(drawing: Bars) -> str:
    longest = max((bar.reach for bar in drawing.bars), default=0.0) or 1.0
    room, height, parts = WIDTH - LABEL - 170, 26, []
    for i, bar in enumerate(drawing.bars):
        x, y = float(LABEL), i * height + 4.0
        parts.append(_text(LABEL - 10, y + 14, bar.label, "end"))
        for value, colour in bar.parts:
            width = value / longest * room
            parts.append(_rect(x, y, width, 18, colour, quantity(value, drawing.unit)))
            x += width
        if bar.spread is not None:
            low, high = (LABEL + value / longest * room for value in bar.spread)
            parts.append(f'<path class="whisker" d="M{low:.1f} {y + 9} H{high:.1f}"/>')
            parts += [f'<path class="whisker" d="M{end:.1f} {y + 4} v10"/>' for end in (low, high)]
            x = max(x, high)
        parts.append(_text(x + 8, y + 14, bar.text or quantity(bar.total, drawing.unit)))
    return _svg(len(drawing.bars) * height + 6, parts, drawing.title)


def _cells(drawing: Cells) -> str:
    size, parts = 11.0, []
    widest = max((len(cells) for _, cells in drawing.rows), default=1)
    columns = min(widest, 64)
    y = 0.0
    for label, cells in drawing.rows:
        for start in range(0, len(cells), columns):
            if start == 0:
                parts.append(_text(48, y + 9, label, "end", quiet=True))
            for i, cell in enumerate(cells[start : start + columns]):
                parts.append(_rect(56 + i * size, y, size - 2, size - 2, cell))
            y += size
    return _svg(y + 2, parts, drawing.title)


def _lanes(drawing: Lanes) -> str:
    height, left = 26, 100.0
    room, end, parts = WIDTH - left - 10, drawing.end or 1.0, []
    for i, (label, spans) in enumerate(drawing.lanes):
        y = i * height + 4.0
        parts.append(_text(left - 10, y + 14, label, "end"))
        for start, stop, colour in spans:
            thin = 12 if colour == EMPTY else 0
            title = f"{drawing.x_name} {start:,.0f} to {stop:,.0f}"
            parts.append(
                _rect(left + start / end * room, y + thin / 2, (stop - start) / end * room - 1,
                      18 - thin, colour, title)
            )  # fmt: skip
    bottom = len(drawing.lanes) * height + 16
    parts.append(_text(left, bottom, "0", quiet=True))
    parts.append(_text(left + room, bottom, f"{drawing.x_name} {end:,.0f}", "end", quiet=True))
    return _svg(bottom + 6, parts, drawing.title)


def _lines(drawing: Lines) -> str:
    left, top, width, height = 80.0, 20.0, WIDTH - 100.0, 240.0
    x_axis = Axis(*drawing.range(0), drawing.log_x)
    y_axis = Axis(*drawing.range(1), drawing.log_y)
    unit = {"seconds": "s"}.get(drawing.y_name, "")
    parts = [_text(left, 12, drawing.y_name, quiet=True)]
    for mark in y_axis.ticks():
        y = top + height * (1 - y_axis.place(mark))
        parts.append(
            f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}"/>'
        )
        parts.append(_text(left - 8, y + 4, quantity(mark, unit), "end", True))
    x_unit = {"seconds": "s"}.get(drawing.x_name, "")
    for mark in x_axis.ticks(drawing.values(0)):
        x = left + width * x_axis.place(mark)
        shown = f"{mark:,.0f}" if mark >= 10 and not x_unit else quantity(mark, x_unit)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + height}"/>'
        )
        parts.append(_text(x, top + height + 18, shown, "middle", True))
    parts.append(_text(left + width / 2, top + height + 36, drawing.x_name, "middle", True))
    for i, series in enumerate(drawing.series):
        places = [
            (left + width * x_axis.place(x), top + height * (1 - y_axis.place(y)))
            for x, y in series.points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        stroke = PALETTE[i % len(PALETTE)]
        parts.append(f'<polyline class="line" style="stroke:{stroke}" points="{path}"/>')
        if len(places) <= 12:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:{stroke}"/>'
                for x, y in places
            ]
    return _svg(top + height + 44, parts, drawing.title)


def _pieces(drawing: Pieces) -> str:
    """Draw texts as HTML, because text flows."""
    lines = []
    for label, pieces in drawing.lines:
        spans = "".join(
            f'<b style="--tint:{PALETTE[i % 3]}">' + escape(printable(piece)) + "</b>"
            for i, piece in enumerate(pieces)
        )
        lines.append(
            f"<p><span>{escape(label)}</span><code>{spans}</code><em>{len(pieces)}</em></p>"
        )
    return f'<div class="pieces">{"".join(lines)}</div>'


_DRAW: dict[type, Callable[..., str]] = {
    Bars: _bars,
    Cells: _cells,
    Lanes: _lanes,
    Lines: _lines,
    Pieces: _pieces,
}
