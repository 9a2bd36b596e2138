"""Count a class's votes on what will happen next: one question at a time, one vote a phone.

A vote is open from the teacher's page until it reveals what happened. Until then a phone learns
nothing of the others' votes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.server.pupils import MOST_NAMES, ClassError

MOST_CHOICES = 5
MOST_CHARACTERS_SHOWN = 600  # of a question or a choice

PHONE = re.compile(r"[0-9a-f]{16}")


@dataclass
class Vote:
    """Hold one question and who chose what. Choices count from 1; `answer` is 0 while unknown."""

    number: int = 0  # of the vote in this class; 0: nothing was asked yet
    question: str = ""
    choices: Sequence[str] = ()
    open: bool = False
    answer: int = 0
    by_phone: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> list[int]:
        """Return the votes for each choice."""
        chosen = list(self.by_phone.values())
        return [chosen.count(choice) for choice in range(1, len(self.choices) + 1)]


class Voting:
    """Keep the vote of a class. All calls come from the event loop."""

    def __init__(self) -> None:
        self.vote = Vote()
        self._phones: set[str] = set()  # that have looked; bounded as the class is

    @property
    def num_phones(self) -> int:
        return len(self._phones)

    def ask(self, question: str, choices: Sequence[str]) -> Vote:
        """Open a vote; one that was open before is over."""
        self.vote = Vote(self.vote.number + 1, question, tuple(choices), open=True)
        return self.vote

    def choose(self, number: int, phone: str, choice: int) -> None:
        """Take the vote of a phone. Raises ClassError."""
        vote = self.vote
        if not PHONE.fullmatch(phone):
            raise ClassError("A phone names itself by 16 digits from 0 to f.")
        if number != vote.number or not vote.open:
            raise ClassError("This vote is closed.")
        if phone in vote.by_phone:
            raise ClassError("This phone has voted.")
        if not 1 <= choice <= len(vote.choices):
            raise ClassError(f"Choose from 1 to {len(vote.choices)}.")
        if len(vote.by_phone) >= MOST_NAMES:
            raise ClassError(f"{MOST_NAMES} phones have voted, which is the most.")
        vote.by_phone[phone] = choice

    def close(self, number: int, answer: int) -> Vote:
        """Close a vote and tell its answer, 0 for none. Raises ClassError if it is another one."""
        if number != self.vote.number:
            raise ClassError(f"Vote {number} is not the one of this class now.")
        if not 0 <= answer <= len(self.vote.choices):
            raise ClassError(f"The answer is one of the {len(self.vote.choices)} choices, or 0.")
        self.vote.open, self.vote.answer = False, answer
        return self.vote

    def for_teacher(self) -> dict[str, object]:
        """Return what the teacher's page shows: {"number", "open", "counts", "phones"}."""
        return {
            "number": self.vote.number,
            "open": self.vote.open,
            "counts": self.vote.counts,
            "phones": self.num_phones,
        }

    def for_phone(self, phone: str) -> dict[str, object]:
        """Return what a phone shows: the question, its own vote, and after the end all votes."""
        vote = self.vote
        if PHONE.fullmatch(phone) and len(self._phones) < MOST_NAMES:
            self._phones.add(phone)
        return {
            "number": vote.number,
            "question": vote.question,
            "choices": list(vote.choices),
            "open": vote.open,
            "mine": vote.by_phone.get(phone, 0),
            "answer": vote.answer,
            "counts": [] if vote.open else vote.counts,
        }
