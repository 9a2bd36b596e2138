"""One event of every kind with every field set, as an engine would record it."""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.state import EngineState

ID = "chatcmpl-0f3a9c55d1e24b0a"

EXAMPLES: list[ev.Event] = [
    ev.EngineStarted(
        version="0.1.0",
        config={"model": "pocket"},
        versions={"python": "3.11.7", "torch": "2.13.0"},
        machine={"device": "cpu", "cores": 2},
    ),
    ev.EngineModelLoaded(
        model="pocket",
        architecture="LlamaForCausalLM",
        implementation="native",
        num_parameters=5_200_000,
        num_bytes=10_400_000,
        dtype="bfloat16",
        duration_s=0.41,
        kernels="native avx2",
        why="the only one for this CPU",
    ),
    ev.EngineKvSized(
        num_blocks=128,
        num_host_blocks=16,
        block_size=16,
        bytes_per_block=24_576,
        num_layers=4,
        num_kv_heads=2,
        head_dim=64,
        kv_dtype="float32",
        available_bytes=2**30,
        max_model_len=2048,
        swap_us_per_block=5.5,
        why="90 % of 1.2 GiB that are free",
    ),
    ev.RequestReceived(
        src="server",
        request_id=ID,
        route="POST /v1/chat/completions",
        params={"max_tokens": 60, "temperature": 0.7},
        client="127.0.0.1",
        ignored=["user"],
        text="What does a KV cache hold,\nand why does it make the next token cheaper?",
    ),
    ev.RequestTokenized(
        src="server",
        request_id=ID,
        num_tokens=23,
        duration_us=210.5,
        truncated=4,
        token_ids=list(range(100, 123)),
    ),
    ev.RequestQueued(
        request_id=ID,
        num_prompt_tokens=23,
        max_tokens=60,
        clamped_from=4000,
        priority=1,
        rank=[1, 7, 0],
        n=2,
        queue_length=3,
    ),
    ev.RequestWaiting(
        request_id=ID,
        waits_for="blocks",
        need=5,
        available=2,
        next_release="req-3",
        next_release_steps=41,
        next_release_amount=3,
        behind=2,
        why="its 66 tokens need 5 blocks, 2 are free",
    ),
    ev.RequestRefused(request_id=ID, why="it could need 900 KV blocks; the whole cache has 128"),
    ev.RequestAdmitted(
        request_id=ID, waited_us=212.0, num_tokens=23, num_cached_tokens=16, why="blocks are free"
    ),
    ev.BlockShared(request_id=ID, blocks=[4], num_tokens=16, why="in the prefix cache"),
    ev.BlockEvicted(block=9, hash="9f3ac0", why=f"{ID} needs one"),
    ev.BlockAllocated(request_id=ID, blocks=[9, 10], index=1, why="tokens 16 to 22 need 2 blocks"),
    ev.StepPlanned(
        step=3,
        rows=[ev.StepRow(ID, 16, 7, 1), ev.StepRow("req-3", 40, 1, 1)],
        budget=512,
        budget_used=8,
        num_running=2,
        num_waiting=1,
        blocks_used=12,
        blocks_cached_free=3,
        blocks_free=113,
        host_blocks_used=1,
        schedule_us=41.0,
    ),
    ev.KernelLaunched(
        name="paged_attention",
        backend="triton",
        grid=[32, 8],
        constexprs={"BLOCK_M": 16},
        num_warps=4,
        num_stages=2,
        registers=96,
        shared_bytes=32_768,
        num_bytes=1_250_000,
        flops=3_100_000,
        duration_us=12.5,
        share_of_limit=0.61,
        why="2 decode rows split 16 ways",
    ),
    ev.GraphCaptured(batch_size=8, num_tokens=512, num_kernels=120, duration_ms=80.5),
    ev.GraphReplayed(batch_size=8, num_rows=5, num_tokens=512, captured_seq=12),
    ev.SampleDrawn(
        request_id=ID,
        index=1,
        position=23,
        token_id=17,
        logprob=-0.89,
        rank=2,
        temperature=0.7,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        seed=5,
        uniform=0.3412,
        num_kept=12,
        candidates=[ev.Candidate(18, -0.5, 0.6), ev.Candidate(17, -0.89, 0.3)],
    ),
    ev.BlockCached(request_id=ID, blocks=[9], hashes=["aa11"]),
    ev.StepFinished(
        step=3,
        num_tokens=8,
        num_decode_tokens=1,
        num_sampled=2,
        schedule_us=41.0,
        prepare_us=60.0,
        forward_us=1900.0,
        sample_us=90.0,
        ready_us=5.0,
        update_us=20.0,
        total_us=2130.0,
        loop="plain",
    ),
    ev.RequestForked(
        request_id=f"{ID}.1", parent=ID, index=1, num_computed_tokens=23, why="sibling 2 of 2"
    ),
    ev.BlockCopied(
        request_id=ID, src_block=10, dst_block=11, index=2, sharers=1, why="token 23 goes there"
    ),
    ev.TextEmitted(src="server", request_id=ID, index=1, text=" It holds", num_tokens=2),
    ev.TextHeldBack(src="server", request_id=ID, index=1, num_chars=3, why="“###” may follow"),
    ev.StopMatched(src="server", request_id=ID, index=1, stop="###", num_output_tokens=12),
    ev.TextTokens(texts={17: " the", 18: "\n"}),
    ev.RequestPreempted(
        request_id=ID,
        mode="swap",
        num_blocks=3,
        num_computed_tokens=40,
        for_request="req-3",
        need=2,
        available=1,
        recompute_ms=8.95,
        swap_ms=0.08,
        mode_why="as configured",
        why="req-3 needs 2 blocks for tokens 64–90, 1 block is free; req-7 is the last",
    ),
    ev.BlockSwappedOut(request_id=ID, blocks=[4, 9, 11], host_blocks=[0, 1, 2], num_bytes=73_728),
    ev.BlockFreed(request_id=ID, blocks=[11, 9, 4], host_blocks=[0], why="swapped out"),
    ev.RequestResumed(
        request_id=ID,
        mode="swap",
        waited_us=60_000.0,
        num_tokens=41,
        num_cached_tokens=40,
        why="its blocks are copied back in",
    ),
    ev.BlockSwappedIn(request_id=ID, blocks=[5, 6, 7], host_blocks=[0, 1, 2], num_bytes=73_728),
    ev.RequestFinished(
        request_id=ID,
        reason="stop",
        stop_reason="###",
        num_prompt_tokens=23,
        num_output_tokens=12,
        num_cached_tokens=16,
        num_preemptions=1,
        queued_ms=0.2,
        running_ms=130.0,
        why="the stop string '###' matched",
    ),
    ev.RequestAborted(request_id=ID, num_output_tokens=12, why="the client left"),
    ev.EngineSnapshot(
        num_gone=12_345,
        state=EngineState(num_blocks=4, num_host_blocks=1).to_dict(),
        ranks={ID: [1, 7, 0]},
        planned=[ev.PlannedStep(4, [ev.StepRow(ID, 23, 1, 1)])],
        last_seq=12_000,
        names={ID: "req-7"},
        num_named=9,
        texts={17: " the"},
        standing=[ev.EngineKvSized(num_blocks=4, num_host_blocks=1, block_size=16)],
    ),
    ev.EngineWarning(message="the tokenizer has no chat template", events_lost=1),
    ev.EngineFailed(message="RuntimeError: out of memory\nin step 4"),
]


def stamped() -> list[ev.Event]:
    """Fresh copies, numbered, a millisecond apart."""
    import copy

    events = copy.deepcopy(EXAMPLES)
    for number, event in enumerate(events, start=1):
        event.seq = number
        event.ts_ns = 5_000_000_000 + number * 1_000_000
    return events
