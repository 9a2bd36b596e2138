"""Word the events of kernels and of captured steps."""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.sentences import words
from engine.trace.wording import amount, count, duration, joined, size


@words(ev.KernelLaunched)
def _kernel(event: ev.KernelLaunched, context: Context) -> str:
    return joined(
        [
            f"kernel {event.name} ({event.backend})",
            f"grid {' × '.join(map(str, event.grid))}" if event.grid else "",
            f"{event.num_warps} warps" if event.num_warps else "",
            f"{event.num_stages} stages" if event.num_stages else "",
            f"moves {size(event.num_bytes)}" if event.num_bytes else "",
            f"{amount(event.flops)} operations" if event.flops else "",
            duration(event.duration_us) if event.duration_us else "",
            f"{event.share_of_limit:.0%} of the machine's limit" if event.share_of_limit else "",
            context.plain(event.why),
        ]
    )


@words(ev.GraphCaptured)
def _captured(event: ev.GraphCaptured, context: Context) -> str:
    kernels = count(event.num_kernels, "kernel")
    took = duration(event.duration_ms * 1e3)
    what = f"the decode step of {count(event.batch_size, 'row')}"
    if event.num_tokens:
        what = f"the step of up to {count(event.num_tokens, 'token')}, prompts too"
    return f"captured {what}: {kernels} that later steps replay in one go (took {took})"


@words(ev.GraphReplayed)
def _replayed(event: ev.GraphReplayed, context: Context) -> str:
    if event.num_tokens:
        rows = count(event.num_rows, "row")
        return f"replays the captured step of up to {count(event.num_tokens, 'token')}: {rows}"
    padding = event.batch_size - event.num_rows
    rows = count(event.num_rows, "row") + (f" and {padding} of padding" if padding else "")
    return f"replays the captured step of {event.batch_size}: {rows}"
