"""Word the events of the engine itself: its start, its sizes, its failures."""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.sentences import words
from engine.trace.wording import amount, count, duration, joined, size


@words(ev.EngineStarted)
def _started(event: ev.EngineStarted, context: Context) -> str:
    machine = joined(f"{key} {value}" for key, value in event.machine.items())
    versions = joined(f"{key} {value}" for key, value in event.versions.items())
    return joined([f"engine {event.version} starts", machine, versions], "; ")


@words(ev.EngineModelLoaded)
def _model_loaded(event: ev.EngineModelLoaded, context: Context) -> str:
    kind = joined([event.architecture, event.implementation])
    weights = event.dtype
    if event.num_parameters:
        held = f"{size(event.num_bytes)} of {event.dtype}"
        weights = f"{amount(event.num_parameters)} parameters, {held}"
    if event.quantization:
        weights = f"{weights}, quantized ({event.quantization})"
    took = f" in {duration(event.duration_s * 1e6)}" if event.duration_s else ""
    loaded = f"loaded {event.model} ({kind}){took}: {weights}"
    computes = joined([f"{event.kernels} kernels compute", event.why], ": ")
    return f"{loaded}; {computes}" if event.kernels else loaded


@words(ev.EngineDivided)
def _divided(event: ev.EngineDivided, context: Context) -> str:
    held = joined(
        f"rank {rank} (process {share.pid}) {size(share.num_bytes)}"
        for rank, share in enumerate(event.ranks)
    )
    heads = count(event.num_heads, "query head"), count(event.num_kv_heads, "key and value head")
    return joined(
        [
            f"the model is divided among {count(len(event.ranks), 'rank')}: {held}",
            f"{' and '.join(heads)} each",
            context.plain(event.why),
        ],
        "; ",
    )


@words(ev.EngineKvSized)
def _kv_sized(event: ev.EngineKvSized, context: Context) -> str:
    slots = event.num_blocks * event.block_size
    in_all = size(event.num_blocks * event.bytes_per_block)
    sizes = f"{size(event.bytes_per_block)} each, {in_all} in all"
    host = (
        f"{count(event.num_host_blocks, 'host block')} for swapping"
        if event.num_host_blocks
        else ""
    )
    room = f"{count(event.num_blocks, 'KV block')} of {event.block_size} tokens = {slots:,} tokens"
    return joined([room, sizes, host, context.plain(event.why)], "; ")


@words(ev.EngineSnapshot)
def _snapshot(event: ev.EngineSnapshot, context: Context) -> str:
    gone = f"the record begins here: the {event.num_gone:,} events before are gone"
    told = event.state
    if told is None:
        return f"{gone}, and with them the state of the blocks"
    used = len(told["references"]) - len(told["free_queue"])
    return (
        f"{gone}; they came to: {len(told['running']):,} running, {len(told['waiting']):,} "
        f"waiting, {used:,} of {count(len(told['references']), 'block')} used"
    )


@words(ev.EngineFormatsFound)
def _formats_found(event: ev.EngineFormatsFound, context: Context) -> str:
    return f"answers are taken apart: {context.plain(event.why)}"


@words(ev.EngineWarning)
def _warning(event: ev.EngineWarning, context: Context) -> str:
    return f"warning: {context.plain(event.message)}"


@words(ev.EngineFailed)
def _failed(event: ev.EngineFailed, context: Context) -> str:
    return f"FAILED: {context.plain(event.message)}"
