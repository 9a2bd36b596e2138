"""Step 6. Write a scheduling policy.

Run the shortest prompt first: with one seat, short questions no longer wait behind a long one. What
happens to a long prompt when short ones never stop coming? Begin with `Request.rank` in
engine/core/request.py; the parts of a rank must stay different for any two requests.

Watch it live: `glasshouse class --scheduler-cls exercises.scheduling:Policy`.
"""

from __future__ import annotations

from engine.core.request import Request
from engine.core.scheduler import Scheduler


class Policy(Scheduler):
    def add(self, request: Request) -> None:
        """Called for each new request. Its `rank` decides the order: lowest first."""
        super().add(request)
