"""Word the events of KV blocks: allocated, shared, copied, freed, swapped."""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.sentences import words
from engine.trace.wording import blocks, count, joined, size, span


@words(ev.BlockAllocated)
def _allocated(event: ev.BlockAllocated, context: Context) -> str:
    why = f": {context.plain(event.why)}" if event.why else ""
    if not why and context.block_size:
        first, tokens = event.index * context.block_size, len(event.blocks) * context.block_size
        why = f" for tokens {span(first, tokens)}"
    return f"takes {blocks(event.blocks)}{why}"


@words(ev.BlockShared)
def _shared(event: ev.BlockShared, context: Context) -> str:
    shares = f"shares {blocks(event.blocks)} ({count(event.num_tokens, 'token')})"
    return joined([shares, context.plain(event.why)], ": ")


@words(ev.BlockCached)
def _cached(event: ev.BlockCached, context: Context) -> str:
    is_full = "is full" if len(event.blocks) == 1 else "are full"
    return f"{blocks(event.blocks)} {is_full}: an equal prefix finds the content from now on"


@words(ev.BlockCopied)
def _copied(event: ev.BlockCopied, context: Context) -> str:
    copies = f"copies block {event.src_block} into block {event.dst_block} before writing"
    return joined([copies, context.plain(event.why)], ": ")


@words(ev.BlockFreed)
def _freed(event: ev.BlockFreed, context: Context) -> str:
    if not event.blocks:
        return f"gives back host {blocks(event.host_blocks)}: {context.plain(event.why)}"
    why = f" ({context.plain(event.why)})" if event.why else ""
    gives = f"gives back {blocks(event.blocks)}{why}"
    if context.state is None:
        return gives
    references, hashes = context.state.references, context.state.hashes
    still_read = [block for block in event.blocks if references[block]]
    kept = sum(block in hashes for block in event.blocks if not references[block])
    now_free = len(event.blocks) - len(still_read)
    return joined(
        [
            f"{gives}: {now_free:,} free now",
            f"{kept:,} keep findable content" if kept else "",
            f"{blocks(still_read)} still read by others" if still_read else "",
        ]
    )


@words(ev.BlockEvicted)
def _evicted(event: ev.BlockEvicted, context: Context) -> str:
    return evictions([event.block], event.why, context)


def evictions(lost: list[int], why: str, context: Context) -> str:
    """Describe blocks that were evicted together, for the same reason."""
    verb = "loses its" if len(lost) == 1 else "lose their"
    return joined([f"{blocks(lost)} {verb} cached content", context.plain(why)], ": ")


@words(ev.BlockSwappedOut)
def _swapped_out(event: ev.BlockSwappedOut, context: Context) -> str:
    to = f"to host {blocks(event.host_blocks)}"
    return f"copies {blocks(event.blocks)} {to} ({size(event.num_bytes)})"


@words(ev.BlockSwappedIn)
def _swapped_in(event: ev.BlockSwappedIn, context: Context) -> str:
    to = f"back into {blocks(event.blocks)}"
    return f"copies host {blocks(event.host_blocks)} {to} ({size(event.num_bytes)})"
