"""Decide which tokens a row may draw, and what is added to their logits.

The order is: allowed and bad words, min_tokens, logit bias. Few rows have such rules, and each
names few tokens. So a step turns the rules of all its rows into lists of (row, token) pairs and
applies each list with one indexed write.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.core.messages import NewRow


@dataclass
class TokenRules:
    """Hold the rules of one row."""

    allowed: list[int]  # empty: all
    banned: list[int]  # bad words of one token
    phrases: list[list[int]]  # bad words of several: the last token is banned after the others
    stops: list[int]  # banned while the output is shorter than min_tokens
    stops_until: int  # position from which stops are allowed
    bias: dict[int, float]

    @classmethod
    def of(cls, row: NewRow) -> TokenRules | None:
        """Make the rules that a row's parameters ask for; None if they ask for none."""
        params = row.params
        words = [word for word in params.bad_words_token_ids or () if word]
        rules = cls(
            allowed=list(params.allowed_token_ids or ()),
            banned=[word[0] for word in words if len(word) == 1],
            phrases=[word for word in words if len(word) > 1],
            stops=list(row.stop_token_ids) if params.min_tokens else [],
            stops_until=row.num_prompt_tokens + params.min_tokens,
            bias=dict(params.logit_bias or {}),
        )
        asked = (rules.allowed, rules.banned, rules.phrases, rules.stops, rules.bias)
        return rules if any(asked) else None

    def bans(self, tokens: np.ndarray) -> list[int]:
        """Return what may not follow all tokens of the sequence so far, int [position]."""
        banned = list(self.banned)
        if len(tokens) < self.stops_until:
            banned += self.stops
        for phrase in self.phrases:
            start = len(tokens) - len(phrase) + 1
            if start >= 0 and tokens[start:].tolist() == phrase[:-1]:
                banned.append(phrase[-1])
        return banned


@dataclass
class _Pairs:
    """Collect (row, token) pairs, and a number for each where there is one."""

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, row: int, tokens: list[int]) -> None:
        self.rows += [row] * len(tokens)
        self.tokens += tokens

    def index(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.rows, device=device), torch.tensor(self.tokens, device=device)


def apply_rules(logits: torch.Tensor, rules: list[tuple[int, TokenRules, np.ndarray]]) -> None:
    """Apply rules to `logits`, fp32 [rows, vocab], in place.

    `rules`: for each row that has some, its place in `logits`, its rules, and its tokens so far.
    Where the rules of a row forbid every token, its bans are ignored in that step: a forbidden word
    is better than no token at all.
    """
    device = logits.device
    allowed, banned, biased = _Pairs(), _Pairs(), _Pairs()
    limited: list[int] = []
    restricted: list[int] = []
    biases: list[float] = []
    for row, rule, tokens in rules:
        if rule.allowed:
            limited.append(row)
            allowed.add(row, rule.allowed)
        bans = rule.bans(tokens)
        if bans:
            restricted.append(row)
            banned.add(row, bans)
        biased.add(row, list(rule.bias))
        biases += rule.bias.values()
    if limited:
        where = allowed.index(device)
        keep = logits[where]
        logits[torch.tensor(limited, device=device)] = -torch.inf
        logits[where] = keep
    if banned.rows:
        where = banned.index(device)
        keep = logits[where]
        logits[where] = -torch.inf
        rows = torch.tensor(restricted, device=device)
        emptied = rows[logits[rows].amax(dim=-1) == -torch.inf]
        if len(emptied):
            back = torch.isin(where[0], emptied)
            logits[where[0][back], where[1][back]] = keep[back]
    if biased.rows:
        # a row has one bias for each token, so no pair comes twice
        logits[biased.index(device)] += torch.tensor(biases, device=device)
