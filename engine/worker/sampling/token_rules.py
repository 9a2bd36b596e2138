"""Decide which tokens a row may draw, and what is added to their logits.

The order is: allowed and bad words, min_tokens, logit bias. Few rows have such rules. What a rule
names is prepared once, when its row arrives or the rows of a step change: a step only looks up the
bad words that the last tokens may begin, and applies a few indexed writes for all rows together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.core.messages import NewRow
from engine.sampling_params import SamplingParams
from engine.worker.transfers import to_device


class Phrases:
    """Hold bad words of several tokens: the last is banned where the others come before it."""

    def __init__(self, words: Iterable[list[int]]):
        self._after: dict[tuple[int, ...], list[int]] = {}
        self._lengths: dict[int, set[int]] = {}  # of these beginnings, by their last token
        for word in words:
            beginning = tuple(word[:-1])
            self._after.setdefault(beginning, []).append(word[-1])
            self._lengths.setdefault(beginning[-1], set()).add(len(beginning))

    def __bool__(self) -> bool:
        return bool(self._after)

    def banned_after(self, tokens: np.ndarray) -> list[int]:
        """Return what may not follow these tokens, int [position]."""
        banned: list[int] = []
        for length in self._lengths.get(int(tokens[-1]), ()) if len(tokens) else ():
            if length <= len(tokens):
                banned += self._after.get(tuple(tokens[-length:].tolist()), ())
        return banned


@dataclass(eq=False)
class TokenRules:
    """Hold the rules of one row; the siblings of a request share them."""

    allowed: np.ndarray | None  # bool [vocab]; None: all
    banned: np.ndarray  # int64, bad words of one token
    phrases: Phrases
    stops: list[int]  # banned while the output is shorter than min_tokens
    stops_until: int  # position from which stops are allowed
    biased: np.ndarray  # int64, tokens with a bias
    biases: np.ndarray  # fp32

    @classmethod
    def of(cls, row: NewRow, vocab_size: int) -> TokenRules | None:
        """Make the rules that a row's parameters ask for; None if they ask for none."""
        params = row.params
        words = [word for word in params.bad_words_token_ids or () if word]
        stops = list(row.stop_token_ids) if params.min_tokens else []
        if not (params.allowed_token_ids or words or stops or params.logit_bias):
            return None
        bias = params.logit_bias or {}
        return cls(
            allowed=_allowed(params, vocab_size),
            banned=np.array([word[0] for word in words if len(word) == 1], np.int64),
            phrases=Phrases(word for word in words if len(word) > 1),
            stops=stops,
            stops_until=row.num_prompt_tokens + params.min_tokens,
            biased=np.array(list(bias), np.int64),
            biases=np.array(list(bias.values()), np.float32),
        )

    def bans(self, tokens: np.ndarray) -> list[int]:
        """Return what else than `banned` may not follow all tokens of the sequence so far, int
        [position]."""
        banned = list(self.stops) if self.stops and len(tokens) < self.stops_until else []
        return banned + self.phrases.banned_after(tokens) if self.phrases else banned


def _allowed(params: SamplingParams, vocab_size: int) -> np.ndarray | None:
    if not params.allowed_token_ids:
        return None
    allowed = np.zeros(vocab_size, bool)
    allowed[params.allowed_token_ids] = True
    return allowed


class StepRules:
    """Hold the rules of a step's rows, ready to apply until the rows change.

    `rules`: for each row that has some, its place in the step's logits, and its rules.
    """

    def __init__(self, rules: list[tuple[int, TokenRules]], device: torch.device):
        self.rows = [row for row, _ in rules]
        self._rules = [rule for _, rule in rules]
        self._device = device
        limited = [(row, rule.allowed) for row, rule in rules if rule.allowed is not None]
        self._limited = self._ids([row for row, _ in limited])
        masks = [~allowed for _, allowed in limited]
        self._not_allowed = to_device(np.stack(masks), device) if masks else None
        self._banned_rows, self._banned = _pairs([(row, rule.banned) for row, rule in rules])
        rows, biased = _pairs([(row, rule.biased) for row, rule in rules])
        self._biased = to_device(rows, device), to_device(biased, device)
        biases = [rule.biases for _, rule in rules]
        self._biases = to_device(np.concatenate(biases), device) if biases else None

    def __bool__(self) -> bool:
        return bool(self.rows)

    def apply(self, logits: torch.Tensor, tokens: Sequence[np.ndarray]) -> None:
        """Apply the rules to `logits`, fp32 [rows, vocab], in place.

        `tokens`: for each row that has rules, its tokens so far. Where the rules of a row forbid
        every token, its bans are ignored in that step: a forbidden word is better than no token at
        all.
        """
        if self._not_allowed is not None:
            some = logits[self._limited]
            logits[self._limited] = some.masked_fill_(self._not_allowed, -torch.inf)
        self._ban(logits, tokens)
        if self._biases is not None and len(self._biases):
            # a row has one bias for each token, so no pair comes twice
            logits[self._biased] += self._biases

    def _ban(self, logits: torch.Tensor, tokens: Sequence[np.ndarray]) -> None:
        now = [(r, rule.bans(its)) for r, rule, its in zip(self.rows, self._rules, tokens)]
        more_rows, more = _pairs([(row, np.array(bans, np.int64)) for row, bans in now if bans])
        rows = np.concatenate([self._banned_rows, more_rows])
        if not len(rows):
            return
        where = self._ids(rows), self._ids(np.concatenate([self._banned, more]))
        keep = logits[where]
        logits[where] = -torch.inf
        restricted = self._ids(np.unique(rows))
        emptied = restricted[logits[restricted].amax(dim=-1) == -torch.inf]
        if len(emptied):
            back = torch.isin(where[0], emptied)
            logits[where[0][back], where[1][back]] = keep[back]

    def _ids(self, ids: Sequence[int] | np.ndarray) -> torch.Tensor:
        return to_device(np.asarray(ids, np.int64), self._device)


def _pairs(named: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and the tokens of (row, its tokens) as pairs, both int64."""
    if not named:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = np.repeat([row for row, _ in named], [len(tokens) for _, tokens in named])
    return rows.astype(np.int64), np.concatenate([tokens for _, tokens in named])
