"""List the twelve steps of the course, in the order in which they build on each other."""

from __future__ import annotations

from course.exercise import Exercise

COURSE = (
    Exercise(
        "reading", "Read a record", 4,
        ("`waited_us` of `request.admitted` is the wait; count `request.preempted` by request.",
         "Both answers are a `max` with a key; `collections.Counter` counts."),
    ),
    Exercise(
        "slots", "Find a token's place in the cache", 6,
        ("Position p is in entry p // block_size of the table, p % block_size slots into it.",
         "slot = table[p // block_size] * block_size + p % block_size"),
    ),
    Exercise(
        "pool", "Build a block pool", 10,
        ("Keep the free blocks in one ordered queue, and a count of owners for each block.",
         "A freed block with a key joins the back of the queue, one without a key the front."),
    ),
    Exercise(
        "waste", "Measure what paging wastes", 8,
        ("`Replay.fold` gives the state after each event; look at it at each `step.planned`.",
         "Collect block → tokens in it over all tables, so that a shared block counts once."),
    ),
    Exercise(
        "planning", "Plan a step", 10,
        ("Running sequences first: each gets min(known − computed, budget left) tokens.",
         "Then the queue, in order, until the first that lacks budget, a seat or blocks."),
    ),
    Exercise(
        "scheduling", "Write a scheduling policy", 6,
        ("`request.rank` orders the queue, lowest first; set it before `super().add(request)`.",
         "Put `request.num_prompt_tokens` in place of the priority, and keep the other two."),
    ),
    Exercise(
        "prefix", "Find a prefix again", 8,
        ("A block's key hashes the key of the block before it, and its own tokens.",
         "The last token of a prompt must be computed, or there would be no logits to draw from."),
    ),
    Exercise(
        "eviction", "Write an eviction policy", 8,
        ("Count hits in `share`; the front of `free_queue` is what `allocate` takes.",
         "Before allocating, move free blocks to the end, the least hit of them first."),
    ),
    Exercise(
        "preemption", "Give preemption a cost of your own", 6,
        ("`auto` swaps if `swap_ms` is less than `recompute_ms`.",
         "Let `recompute_ms` be infinite for long sequences and 0 for short ones."),
    ),
    Exercise(
        "sampler", "Draw a token", 10,
        ("Temperature, then top-k, then probabilities, then top-p, then one draw.",
         "Subtract the greatest logit before exp; go through the kept ids in order and add up."),
    ),
    Exercise(
        "speculation", "Guess tokens, and verify the guesses", 12,
        ("Find the longest end of the text that has occurred before; what followed is the guess.",
         "Accept a guess with its probability; else draw from the rest, without the guess."),
    ),
    Exercise(
        "kernel", "Write paged attention in Triton", 12,
        ("For each block: load its keys, score, and update the running maximum, sum and result.",
         "When the maximum grows from m to n, the sum and the result so far shrink by exp(m − n)."),
        needs=("torch", "triton"),
    ),
)  # fmt: skip
"""Their points are 100 in all."""

BY_NAME = {exercise.name: exercise for exercise in COURSE}
