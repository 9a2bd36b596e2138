"""One solution of step 10."""

from __future__ import annotations

import math


def draw(logits: list[float], temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if temperature == 0:
        return order[0]
    kept = order[:top_k] if top_k else order
    greatest = logits[order[0]]
    weights = {token: math.exp((logits[token] - greatest) / temperature) for token in kept}
    whole = sum(weights.values())
    total, chosen = 0.0, []
    for token in kept:
        chosen.append(token)
        total += weights[token] / whole
        if total >= top_p:
            break
    sum_so_far, share = 0.0, sum(weights[token] for token in chosen)
    for token in sorted(chosen):
        sum_so_far += weights[token] / share
        if sum_so_far > uniform:
            return token
    return max(chosen)
