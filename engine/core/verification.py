"""Compare proposed tokens with the drawn ones, and undo what was computed for wrong ones.

Row j of a sequence drew the token after its proposal j. A proposal is right if the row before it
drew it and all proposals before it were right. So each token that counts was drawn from the logits,
with the seed and at the position that it would have had without proposals (rule 11).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.messages import StepOutput, StepPlan, StepStats
from engine.core.request import Request, Status
from engine.core.scheduler import Scheduler
from engine.trace.together import ProposalsVerified


def num_right(proposed: Sequence[int], drawn: Sequence[int]) -> int:
    """Return how many of the proposals were drawn, up to the first that wasn't.

    drawn: by the row before the proposals, then by each of theirs.
    """
    for count, (proposal, token) in enumerate(zip(proposed, drawn)):
        if proposal != token:
            return count
    return len(proposed)


def accepted_by_place(drafts: Sequence[tuple[int, int]]) -> list[int]:
    """Count, for each place in a draft, how often its token was right: `StepStats.accepted`.

    drafts: (tokens proposed, right ones) of each.
    """
    longest = max((proposed for proposed, _ in drafts), default=0)
    return [sum(right > place for _, right in drafts) for place in range(longest)]


class Verification:
    """Verify the proposals of one step after another, and keep the counts of the last one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.record = scheduler.record.record
        self.step = 0  # the last one that had proposals
        self.num_drafts = 0
        self.num_proposed = 0
        self.accepted: list[int] = []  # see `StepStats.accepted`

    def verify(
        self, plan: StepPlan, requests: list[Request], output: StepOutput
    ) -> dict[Request, list[int]]:
        """Return the tokens that count, of each living sequence with proposals.

        Afterwards its counts are as if the wrong proposals had never been planned. Nothing may be
        cached before that: their keys and values are in its last blocks (rule 5).
        """
        self.step, self.num_proposed = plan.step, 0
        drafts: list[tuple[int, int]] = []  # of each draft: tokens proposed, right ones
        rows = []
        speculator, give_back = self.scheduler.speculator, self.scheduler.kv.give_back
        later = len(requests)  # the row of the next sequence's first proposal
        counted = {}
        places = {request.id: place for place, request in enumerate(requests)}
        for request_id, proposed in plan.proposed.items():
            place, count = places[request_id], len(proposed)
            request, begin, later = requests[place], later, later + count
            request.num_proposed_tokens = 0
            if request.status is Status.FINISHED:
                request.num_planned_tokens -= count
                continue
            tokens = [output.tokens[place][0], *[one for (one,) in output.tokens[begin:later]]]
            made = output.drafted.get(request_id, proposed)
            right = num_right(made, tokens)
            request.num_planned_tokens -= count - right
            request.num_computed_tokens += right
            request.num_expected_tokens += right
            counted[request] = tokens[: right + 1]
            source = -1
            if request.grammar is None and speculator is not None:
                source = speculator.verified(request, len(made), right)
            blocks = give_back(request) if right < count else []
            self.num_proposed += len(made)
            if made:
                drafts.append((len(made), right))
            rows.append((request_id, plan.rows[place].start + 1, len(made), right, source, blocks))
        self.num_drafts = len(drafts)
        self.accepted = accepted_by_place(drafts)
        if rows:
            self.record(ProposalsVerified(step=plan.step, rows=rows))
        return counted

    def count(self, stats: StepStats) -> None:
        """Add the counts of the told step."""
        if self.step and self.step == stats.told_step:
            stats.num_drafts, stats.num_proposed = self.num_drafts, self.num_proposed
            stats.accepted = self.accepted
