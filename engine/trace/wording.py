"""Word numbers, blocks and times for the log. Units stand beside every number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def count(number: int, noun: str) -> str:
    """Count a noun: `count(1, "block")` is "1 block", `count(2048, "block")` "2,048 blocks"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def free(number: int, noun: str) -> str:
    """Say how many of `noun` are free: "no block is free", "1 block is free", "3 blocks are
    free"."""
    if not number:
        return f"no {noun} is free"
    return f"{count(number, noun)} {'is' if number == 1 else 'are'} free"


def duration(us: float) -> str:
    """Write microseconds in a suitable unit: "840 µs", "2.1 ms", "1.3 s", "4 min 10 s"."""
    if us < 0.95:
        return f"{us:.1f} µs"
    if us < 999.5:
        return f"{us:.0f} µs"
    if us < 9_950:
        return f"{us / 1e3:.1f} ms"
    if us < 999_500:
        return f"{us / 1e3:.0f} ms"
    if us < 60e6:
        return f"{us / 1e6:.1f} s"
    return f"{us // 60e6:.0f} min {us % 60e6 / 1e6:.0f} s"


def milliseconds(us: float) -> str:
    """Write microseconds as a bare number of ms, for sums whose unit stands once at their end."""
    ms = us / 1e3
    return f"{ms:.2f}" if ms < 9.95 else f"{ms:.1f}" if ms < 99.5 else f"{ms:.0f}"


def size(num_bytes: float) -> str:
    """Write bytes in binary units: "24 KiB", "1.2 GiB"."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        units.pop(0)
    exact = num_bytes >= 10 or units[0] == "bytes"
    return f"{num_bytes:.0f} {units[0]}" if exact else f"{num_bytes:.1f} {units[0]}"


def amount(number: float) -> str:
    """Write a large count: "5.2 million"."""
    for limit, unit in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:,.0f}"


def ranges(numbers: Sequence[int], most: int = 5) -> str:
    """Join runs of numbers, up or down: "4–6, 9". After `most` runs, say that more were left
    out."""
    runs: list[list[int]] = []
    for number in numbers:
        step = number - runs[-1][-1] if runs else 0
        if runs and abs(step) == 1 and (len(runs[-1]) == 1 or step == runs[-1][-1] - runs[-1][-2]):
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs[:most]]
    left = sum(map(len, runs[most:]))
    return ", ".join(shown) + (f" and {left} more" if left else "")


def span(first: int, length: int) -> str:
    """Write `length` positions from `first` on: "16–22", or "16" alone."""
    return f"{first:,}" if length <= 1 else f"{first:,}–{first + length - 1:,}"


def blocks(numbers: Sequence[int]) -> str:
    """Name blocks: "block 9" or "blocks 4–6, 9"."""
    return f"block{'s' if len(numbers) != 1 else ''} {ranges(numbers) or 'none'}"


def quoted(text: str, limit: int = 48) -> str:
    """Put people's text on one line, cut after a word."""
    text = " ".join(text.split()) if text.strip() else repr(text)[1:-1]
    if len(text) > limit:
        text = text[:limit].rpartition(" ")[0] or text[: limit - 1]
        text += " …"
    return f"“{text}”"


def token_text(text: str) -> str:
    """Show a token so that its spaces and line ends can be seen: “·the”, “↵”."""
    shown = text.removeprefix("bytes:").replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")
    return f"“{shown}”"


def one_line(text: str, limit: int = 300) -> str:
    """Put any text on one line, cut at `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def joined(parts: Iterable[str], between: str = ", ") -> str:
    """Join the parts that are not empty."""
    return between.join(part for part in parts if part)
