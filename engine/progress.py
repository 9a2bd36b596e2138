"""Show the progress of a batch of requests: finished ones, and tokens a second."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """Show finished requests and tokens a second; show nothing without a `Progress`."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress = progress
        self._num_tokens = 0
        if progress is not None:
            self._task = progress.add_task("generating", total=total, rate="")

    def advance(self, num_tokens: int, request_finished: bool) -> None:
        """Count new tokens, and their request if it has finished."""
        if self._progress is None:
            return
        self._num_tokens += num_tokens
        elapsed = self._progress.tasks[0].elapsed or 0.0
        rate = f"{self._num_tokens / elapsed:,.0f} tokens/s" if elapsed else ""
        self._progress.update(self._task, advance=int(request_finished), rate=rate)


@contextlib.contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Bar]:
    """Make a bar for `total` requests; one that shows nothing unless `shown`."""
    if not shown:
        yield Bar(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        yield Bar(progress, total)
