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
from engine.trace import events


def num_right(proposed: Sequence[int], drawn: Sequence[int]) -> int:
    """Return how many of the proposals were drawn, up to the first that wasn't.

    drawn: by the row before the proposals, then by each of theirs.
    """
    for count, (proposal, token) in enumerate(zip(proposed, drawn)):
        if proposal != token:
            return count
    return len(proposed)


def _why(num_proposed: int, right: int, position: int) -> str:
    """Say why no more proposals were right."""
    if right < num_proposed:
        return f"another token was drawn for position {position + right}"
    return "all were right" if num_proposed else "the draft model would end the text here"


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
        self.step, self.num_drafts, self.num_proposed, self.accepted = plan.step, 0, 0, []
        drawn = iter(output.tokens[len(requests) :])
        later = {
            request_id: [next(drawn)[0] for _ in proposed]
            for request_id, proposed in plan.proposed.items()
        }
        found = {}
        for place, request in enumerate(requests):
            proposed = plan.proposed.get(request.id)
            if proposed is None:
                continue
            tokens = output.tokens[place] + later[request.id]
            request.num_proposed_tokens = 0
            if request.status is Status.FINISHED:
                request.num_planned_tokens -= len(proposed)
                continue
            made = output.drafted.get(request.id, proposed)
            right = num_right(made, tokens)
            request.num_planned_tokens -= len(proposed) - right
            request.num_computed_tokens += right
            request.num_expected_tokens += right
            found[request] = tokens[: right + 1]
            self._book(plan, place, request, len(made), right)
        return found

    def _book(
        self, plan: StepPlan, place: int, request: Request, num_proposed: int, right: int
    ) -> None:
        """Count the proposals of a sequence, give back blocks that it doesn't need, record both."""
        source = -1
        if request.grammar is None:
            speculator = self.scheduler.speculator
            assert speculator is not None
            source = speculator.verified(request, num_proposed, right)
        self.num_drafts += num_proposed > 0
        self.num_proposed += num_proposed
        self.accepted += [0] * (num_proposed - len(self.accepted))
        for position in range(right):
            self.accepted[position] += 1
        position = plan.rows[place].start + 1
        self.record(
            events.SpecVerified(
                step=plan.step,
                request_id=request.id,
                position=position,
                num_proposed=num_proposed,
                num_accepted=right,
                source=source,
                blocks=self.scheduler.kv.give_back(request),
                why=_why(num_proposed, right, position),
            )
        )

    def count(self, stats: StepStats) -> None:
        """Add the counts of the told step."""
        if self.step and self.step == stats.told_step:
            stats.num_drafts, stats.num_proposed = self.num_drafts, self.num_proposed
            stats.accepted = self.accepted
