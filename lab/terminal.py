"""Show the lab on a terminal: chapters as rich text, at most 100 columns wide."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lab.chapter import Chapter, Expectation, Outcome, quantity
from lab.spread import shown
from lab.terminal_drawings import draw

WIDTH = 100  # columns, on a terminal that has so many; in a file always


class Terminal:
    """Show a chapter in the order in which it happens."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        terminal = self.console.is_terminal
        self.width = min(WIDTH, self.console.width) if terminal else WIDTH
        self.console.width = self.width

    def title(self, model: str, quick: bool, number: int, machine: list[str]) -> None:
        chapters = "1 chapter" if number == 1 else f"{number} chapters"
        text = Text.assemble(
            ("The lab", "bold"), f"   {chapters}{', quick' if quick else ''}   model ", model
        )
        self.console.print(text, overflow="fold")
        for line in machine:
            self.console.print(Text(line, style="dim"))

    def open(self, number: int, chapter: Chapter) -> None:
        """Show the idea, before anything is measured."""
        self.console.print()
        heading = Text.assemble((f" {number} ", "bold reverse"), (f" {chapter.title} ", "bold"))
        body = Text(chapter.idea)
        self.console.print(
            Panel(body, title=heading, title_align="left", width=self.width, border_style="dim")
        )

    def expect(self, expectations: list[Expectation]) -> None:
        """Show the prediction, before the run."""
        table = _table(self.width, "the prediction", "expected", "because")
        for item in expectations:
            table.add_row(item.what, quantity(item.value, item.unit), Text(item.why, style="dim"))
        self.console.print(table)

    def working(self, what: str):
        """Show a line on a terminal while something runs."""
        return self.console.status(f"[dim]{what} …[/]")

    def close(
        self,
        chapter: Chapter,
        expectations: list[Expectation],
        outcome: Outcome,
        seconds: float,
    ) -> None:
        """Show the outcome beside what was expected."""
        console = self.console
        if any(item.key in outcome.measured for item in expectations):
            names = ("measured on this machine, now", "expected", "measured", "÷")
            table = _table(self.width, *names)
            for what, expected, measured, ratio, tries in comparison(expectations, outcome):
                table.add_row(what, expected, measured, ratio)
                if tries:
                    table.add_row("", "", Text(tries, style="dim"), "")
            console.print()
            console.print(table)
        console.print()
        for finding in outcome.findings:
            console.print(self._item("•", finding))
        for missing in outcome.not_shown:
            console.print(self._item("!", f"not shown here: {missing}", "yellow"))
        for drawing in outcome.drawings:
            console.print()
            console.print(_indented(draw(drawing, self.width - 4)))
        console.print()
        console.print(
            Text.assemble(
                "Read next: ", (chapter.read_next, "bold cyan"), f"  {chapter.read_for}",
                (f"   ({quantity(seconds, 's')})", "dim"),
            )
        )  # fmt: skip

    def cannot(self, reason: str) -> None:
        self.console.print(self._item("!", f"not shown here: {reason}", "yellow"))

    def _item(self, mark: str, text: str, style: str = "") -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=2, justify="right")
        grid.add_column(width=self.width - 5)
        grid.add_row(Text(mark, style=style or "dim"), Text(text, style=style))
        return grid

    def end(self, seconds: float, report: str) -> None:
        self.console.print()
        where = f", the report is in {report}" if report else ""
        self.console.print(f"[dim]Done in {quantity(seconds, 's')}{where}.[/]", soft_wrap=True)


def comparison(expectations: list[Expectation], outcome: Outcome) -> list[list[str]]:
    """Return [what, expected, measured, ratio, range of tries] of each measured figure."""
    rows = []
    for item in expectations:
        if item.key in outcome.measured:
            value = outcome.measured[item.key]
            ratio = f"{value / item.value:.2f}" if item.value else ""
            exact = "=" if value == item.value else ratio
            tries = shown(outcome.tries.get(item.key, ()), item.unit)
            rows.append(
                [item.what, quantity(item.value, item.unit), quantity(value, item.unit), exact,
                 tries]
            )  # fmt: skip
    return rows


def _table(width: int, first: str, *others: str) -> Table:
    table = Table(
        box=None, width=width - 1, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim italic"
    )
    if "because" in others:
        table.add_column(first, width=36 if width == WIDTH else 28, overflow="fold")
    else:
        table.add_column(first, ratio=1, overflow="fold")
    for name in others:
        if name == "because":
            table.add_column(name, ratio=1)
        else:
            style = "bold" if name == "measured" else ""
            table.add_column(
                name,
                justify="right",
                width={"expected": 16, "measured": 24 if width == WIDTH else 18}.get(name, 6),
                style=style,
            )
    return table


def _indented(content: RenderableType) -> RenderableType:
    grid = Table.grid(padding=(0, 0, 0, 2))
    grid.add_row(Group(content))
    return grid
