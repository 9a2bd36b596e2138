"""Draw with characters: blocks for bars and cells, braille dots for lines."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text

from lab.axes import Axis
from lab.chapter import quantity
from lab.drawings import (
    EMPTY,
    PALETTE,
    Bar,
    Bars,
    Cells,
    Drawing,
    Lanes,
    Legend,
    Lines,
    Pieces,
    printable,
)
from lab.spread import shown

WIDTH = 96  # columns of a drawing, where there are so many
LABEL = 26  # columns of a label
BAR = 46  # columns of the longest bar, where they are left
ROWS = 13  # of a line plot; odd, so that one row is the middle
EIGHTHS = " ▏▎▍▌▋▊▉"
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille cell, [x][y]


def draw(drawing: Drawing, width: int = WIDTH) -> RenderableType:
    """Draw any drawing, with its title and legend, at most `width` columns wide (76 or more)."""
    lines = [Text(drawing.title, style="bold")]
    lines += _DRAW[type(drawing)](drawing, width)
    legend = getattr(drawing, "legend", [])
    if legend:
        lines.append(_legend(legend, "─" if isinstance(drawing, Lanes) else "·"))
    return Group(*lines)


def _style(colour: int) -> str:
    return "dim" if colour == EMPTY else PALETTE[colour]


def _legend(legend: Legend, empty: str = "·") -> Text:
    text = Text()
    for name, colour in legend:
        text.append(f"{empty if colour == EMPTY else '■'} ", _style(colour))
        text.append(f"{name}   ", "dim")
    return text


def _label(text: str) -> Text:
    label = Text(text[: LABEL - 1] if len(text) < LABEL else text[: LABEL - 2] + "…")
    label.pad_right(LABEL - len(label))
    return label


def _bars(drawing: Bars, width: int) -> list[Text]:
    longest = max((bar.reach for bar in drawing.bars), default=0.0) or 1.0
    behind = [_behind(bar, drawing.unit) for bar in drawing.bars]
    longest_bar = max(10, min(BAR, width - LABEL - max(map(len, behind), default=0)))
    lines = []
    for bar, text in zip(drawing.bars, behind, strict=True):
        line, end, drawn = _label(bar.label), 0.0, 0
        for value, colour in bar.parts:
            end += value / longest * longest_bar
            whole, eighth = int(end), int((end - int(end)) * 8)
            last = colour == bar.parts[-1][1]
            line.append("█" * (whole - drawn), _style(colour))
            if last and eighth:
                line.append(EIGHTHS[eighth], _style(colour))
            drawn = whole
        lines.append(line.append_text(text))
    return lines


def _behind(bar: Bar, unit: str) -> Text:
    text = Text(f" {bar.text or quantity(bar.total, unit)}")
    if bar.spread is not None:
        text.append(f" ({shown(bar.spread, unit)})", "dim")
    return text


def _cells(drawing: Cells, width: int) -> list[Text]:
    label_width = max((len(label) for label, _ in drawing.rows), default=0)
    room = width - label_width - 1
    lines = []
    for label, cells in drawing.rows:
        for begin in range(0, len(cells), room):  # a row that is too long goes on below
            line = Text.assemble((f"{label if not begin else '':>{label_width}} ", "dim"))
            for cell in cells[begin : begin + room]:
                line.append("·" if cell == EMPTY else "■", _style(cell))
            lines.append(line)
    return lines


def _lanes(drawing: Lanes, width: int) -> list[Text]:
    width, end = width - 18, drawing.end or 1.0
    lines = []
    for label, spans in drawing.lanes:
        columns: list[int | None] = [None] * width
        # the shortest last, so that a single step stays visible
        for start, stop, colour in sorted(spans, key=lambda span: span[0] - span[1]):
            first = int(start / end * width)
            for column in range(first, max(first + 1, int(stop / end * width))):
                if column < width:
                    columns[column] = colour
        line = Text(f"{label:<12.12} ")
        for owner in columns:
            if owner is None:
                line.append(" ")
            else:
                line.append("─" if owner == EMPTY else "█", _style(owner))
        lines.append(line)
    scale = f"{0:<{width - 12}}{drawing.x_name + ' ' + format(drawing.end, ',.0f'):>12}"
    lines.append(Text(" " * 13 + scale, "dim"))
    return lines


def _lines(drawing: Lines, width: int) -> list[Text]:
    columns, rows = width - 24, ROWS
    x_axis = Axis(*drawing.range(0), drawing.log_x)
    y_axis = Axis(*drawing.range(1), drawing.log_y)
    dots = [[0] * columns for _ in range(rows)]
    colours = [[0] * columns for _ in range(rows)]
    for number, series in enumerate(drawing.series):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in series.points]
        for (x1, y1), (x2, y2) in zip(places, places[1:] or places):
            count = 2 * max(int(abs(x2 - x1) * 2 * columns), int(abs(y2 - y1) * 4 * rows), 1)
            for i in range(count + 1):
                x = min(int((x1 + (x2 - x1) * i / count) * 2 * columns), 2 * columns - 1)
                y = min(int((y1 + (y2 - y1) * i / count) * 4 * rows), 4 * rows - 1)
                row, column = rows - 1 - y // 4, x // 2
                dots[row][column] |= DOTS[x % 2][3 - y % 4]
                colours[row][column] = number
    unit = {"seconds": "s"}.get(drawing.y_name, "")
    lines = []
    for row in range(rows):
        mark = ""
        if row in (0, rows - 1, rows // 2):
            mark = quantity(y_axis.value(1 - row / (rows - 1)), unit)
        line = Text.assemble((f"{mark:>11} ", "dim"))
        line.append("│", "dim")
        for dot, owner in zip(dots[row], colours[row], strict=True):
            line.append(chr(0x2800 + dot) if dot else " ", PALETTE[owner % len(PALETTE)])
        lines.append(line)
    low, high = drawing.range(0)
    left, right = quantity(low, ""), f"{quantity(high, '')} {drawing.x_name}"
    lines.append(Text(" " * 13 + left + " " * (columns - len(left) - len(right)) + right, "dim"))
    legend = [(series.name, i % len(PALETTE)) for i, series in enumerate(drawing.series)]
    return [Text(" " * 12 + drawing.y_name, "dim"), *lines, _legend(legend)]


def _pieces(drawing: Pieces, width: int) -> list[Text]:
    lines = []
    for label, pieces in drawing.lines:
        line = Text.assemble((f"{label:<9.9} ", "dim"))
        for i, piece in enumerate(pieces):
            line.append(printable(piece), f"{PALETTE[i % 3]} reverse")
        line.truncate(width - 6, overflow="ellipsis")
        line.append(f"  {len(pieces)}", "dim")
        lines.append(line)
    return lines


_DRAW: dict[type, Callable[..., list[Text]]] = {
    Bars: _bars,
    Cells: _cells,
    Lanes: _lanes,
    Lines: _lines,
    Pieces: _pieces,
}
