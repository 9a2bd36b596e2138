"""Request: one sequence and where it stands.

Its life: WAITING → RUNNING → FINISHED, and back from RUNNING to WAITING each time it is preempted.
There are no phases beyond that (rule 2): prefill, chunked prefill, decode and resumption are all
"compute the tokens that are not computed".
"""

from __future__ import annotations

import enum

from engine.core.messages import CoreRequest, TokenLogprobs

Rank = tuple[int, int, int]
"""(priority, arrival number, index among siblings): lowest first, in the queue and among the
running.
"""


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """One sequence. A request with n > 1 starts as one of these and forks when its prompt is
    computed.
    """

    def __init__(self, core: CoreRequest, rank: Rank, seed: int, max_tokens: int, index: int = 0):
        self.core = core
        self.index = index
        self.id = core.request_id if index == 0 else f"{core.request_id}.{index}"
        self.rank = rank
        self.seed = seed
        self.max_tokens = max_tokens
        self.status = Status.WAITING
        self.token_ids = list(core.prompt_token_ids)  # prompt, then output
        self.num_prompt_tokens = len(self.token_ids)
        self.siblings_to_fork = core.params.n - 1 if index == 0 else 0
        self.has_siblings = core.params.n > 1
        eos = [] if core.params.ignore_eos else core.eos_token_ids
        self.eos_ids = frozenset(eos)
        self.end_ids = self.eos_ids.union(core.params.stop_token_ids or ())

        # Rule 1: the tokens whose K/V are in the cache. The last sampled token is in token_ids and
        # has no K/V yet, so a decoding request is simply one token behind.
        self.num_computed_tokens = 0
        # Both as they will be once everything in flight has come back: at most one step of the
        # plain loop, two of the overlapped one.
        self.num_planned_tokens = 0  # computed
        self.num_expected_tokens = self.num_prompt_tokens  # known: the drawn ones count
        self.most_tokens = self.num_prompt_tokens + max(1, max_tokens)  # more aren't drawn

        self.block_table: list[int] = []
        self.host_blocks: list[int] = []  # where its K/V wait while it is swapped out
        self.block_hashes: list[bytes] = []  # chain over its full blocks, as far as it was needed
        self.num_cached_blocks = (
            0  # leading blocks of the table that were offered to the prefix cache
        )
        self.table_sent = (
            0  # entries of the table that the worker knows; −1 = the worker has no row
        )

        self.prompt_logprobs: list[TokenLogprobs] = []  # of its second token and on
        self.preempted_as = ""  # "recompute" or "swap" while it waits to be resumed
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # prompt tokens found in the prefix cache at its first admission
        self.queued_ns = 0
        self.waiting_since_ns = 0
        self.first_admitted_ns = 0
        self.forget_worker_row()

    def forget_worker_row(self) -> None:
        self.table_sent = -1

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def tokens_in_flight(self) -> int:
        """Tokens that a step computes which hasn't come back yet."""
        return self.num_planned_tokens - self.num_computed_tokens

    @property
    def num_tokens_to_plan(self) -> int:
        """Tokens that are known, or will be once everything in flight has come back, and that no
        step computes yet.
        """
        if self.num_expected_tokens == self.most_tokens:
            return 0  # the token in flight is its last
        if self.siblings_to_fork and self.num_expected_tokens > len(self.token_ids):
            return 0  # they have to be forked first
        return self.num_expected_tokens - self.num_planned_tokens

    def set_computed(self, num_tokens: int) -> None:
        """The K/V of its first tokens are in the cache, and no step is in flight."""
        self.num_computed_tokens = self.num_planned_tokens = num_tokens

    @property
    def seats(self) -> int:
        """A request that will fork keeps its siblings' seats from the start."""
        return 1 + self.siblings_to_fork

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED
