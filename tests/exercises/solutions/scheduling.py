"""One solution of step 6."""

from __future__ import annotations

from engine.core.request import Request
from engine.core.scheduler import Scheduler


class Policy(Scheduler):
    def add(self, request: Request) -> None:
        priority, arrival, index = request.rank
        del priority  # the length of the prompt takes its place
        request.rank = (request.num_prompt_tokens, arrival, index)
        super().add(request)
