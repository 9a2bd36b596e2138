"""Hold one sequence and its state.

It goes WAITING → RUNNING → FINISHED, and from RUNNING back to WAITING each time it is preempted.
There are no other phases (rule 2): prefill, chunked prefill, decode and resumption are all "compute
the tokens that are not computed".
"""

from __future__ import annotations

import enum
from typing import Any

from engine.core.messages import CoreRequest, TokenLogprobs
from engine.trace.sequences import sequence_name

Rank = tuple[int, int, int]
"""(priority, arrival number, index among siblings): lowest first, in the queue and among the
running.
"""


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """Hold one sequence. A request with n > 1 starts as one and forks when its prompt is
    computed."""

    def __init__(
        self,
        core: CoreRequest,
        rank: Rank,
        seed: int,
        max_tokens: int,
        index: int = 0,
        grammar: Any = None,
    ):
        self.core = core
        self.index = index
        self.id = sequence_name(core.request_id, index)  # its name in plans and in the record
        self.rank = rank
        self.seed = seed
        self.grammar = grammar  # compiled; its own place in the text is kept by the worker
        self.forced_tokens: list[int] = []  # the only ones that it allows after all of token_ids
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
        # Both as they will be once every step in flight has returned: at most one step of the plain
        # loop, two of the overlapped one.
        self.num_planned_tokens = 0  # computed
        self.num_expected_tokens = self.num_prompt_tokens  # known: drawn tokens count
        # Planned beyond these: proposals, of which the step in flight says how many were right.
        self.num_proposed_tokens = 0
        self.most_tokens = self.num_prompt_tokens + max(1, max_tokens)  # no more are drawn

        self.block_table: list[int] = []
        self.host_blocks: list[int] = []  # where its K/V are while it is swapped out
        self.block_hashes: list[bytes] = []  # chain over its full blocks, computed as needed
        # Leading blocks of the table that were offered to the prefix cache.
        self.num_cached_blocks = 0
        # Entries of the table that the worker knows; −1 = the worker has no row.
        self.table_sent = 0

        self.prompt_logprobs: list[TokenLogprobs] = []  # from its second token on
        self.preempted_as = ""  # "recompute" or "swap" while it waits to resume
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
        """Return how many tokens the steps in flight compute for it."""
        return self.num_planned_tokens - self.num_computed_tokens

    @property
    def num_tokens_to_plan(self) -> int:
        """Return how many tokens could be planned now.

        They are known, or will be once every step in flight has returned, and no step computes
        them.
        """
        if self.num_expected_tokens == self.most_tokens:
            return 0  # the token in flight is its last
        if self.siblings_to_fork and self.num_expected_tokens > len(self.token_ids):
            return 0  # its siblings must fork first
        if self.num_proposed_tokens:
            return 0  # how many tokens it has depends on the step in flight
        return self.num_expected_tokens - self.num_planned_tokens

    def set_computed(self, num_tokens: int) -> None:
        """Set how many tokens have their K/V in the cache. No step may be in flight."""
        self.num_computed_tokens = self.num_planned_tokens = num_tokens

    @property
    def seats(self) -> int:
        """Return the seats that it takes: a request that will fork reserves its siblings' seats."""
        return 1 + self.siblings_to_fork

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED
