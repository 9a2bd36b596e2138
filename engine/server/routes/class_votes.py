"""Serve the votes of a class: the teacher's page opens and closes them, phones choose.

The teacher's routes need the API key, the phones' the code of the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from engine.server.http.answers import json_response
from engine.server.http.errors import ApiError
from engine.server.pupils import ClassError
from engine.server.voting import MOST_CHARACTERS_SHOWN, MOST_CHOICES, Voting

Shown = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS_SHOWN)]


class ClassQuestion(BaseModel):
    """Hold what the class is asked."""

    question: Shown
    choices: list[Shown] = Field(min_length=2, max_length=MOST_CHOICES)


class Ending(BaseModel):
    """Say which vote is over, and which choice was right; 0: it is not told."""

    number: int
    answer: int = 0


class PhoneVote(BaseModel):
    """Hold the vote of a phone."""

    code: str = Field(max_length=16)
    phone: str = Field(max_length=16)
    number: int
    choice: int


def add_votes(routes: APIRouter, voting: Voting, check: Callable[[str | None], object]) -> None:
    """Add the routes. `check` refuses where there is no class, or where the code isn't its own."""

    @routes.post("/class/vote", include_in_schema=False)
    async def open_vote(asked: ClassQuestion) -> Response:
        check(None)
        voting.ask(asked.question, asked.choices)
        return json_response(voting.for_teacher())

    @routes.get("/class/vote", include_in_schema=False)
    async def count() -> Response:
        check(None)
        return json_response(voting.for_teacher())

    @routes.post("/class/vote/close", include_in_schema=False)
    async def close_vote(ending: Ending) -> Response:
        check(None)
        try:
            voting.close(ending.number, ending.answer)
        except ClassError as error:
            raise ApiError(409, str(error)) from None
        return json_response(voting.for_teacher())

    @routes.get("/class/question", include_in_schema=False)
    async def question(
        code: str = Query(max_length=16), phone: str = Query("", max_length=16)
    ) -> Response:
        """Return what the class is asked, for a phone."""
        check(code)
        return json_response(voting.for_phone(phone))

    @routes.post("/class/choose", include_in_schema=False)
    async def choose(vote: PhoneVote) -> Response:
        """Take the vote of a phone, once."""
        check(vote.code)
        try:
            voting.choose(vote.number, vote.phone, vote.choice)
        except ClassError as error:
            raise ApiError(409, str(error)) from None
        return json_response(voting.for_phone(vote.phone))
