"""Schedulers of one's own, as `--scheduler-cls` names them."""

from __future__ import annotations

from engine.core.request import Request
from engine.core.scheduler import Scheduler


class Shortest(Scheduler):
    def add(self, request: Request) -> None:
        request.rank = (request.num_prompt_tokens, *request.rank[1:])
        super().add(request)


class Broken(Scheduler):
    def add(self, request: Request) -> None:
        raise KeyError("no such queue")
