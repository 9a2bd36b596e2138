"""Step 10. Draw a token.

The model gives a number for each token of the vocabulary, its logit. Greedy takes the greatest.
Otherwise the logits become probabilities, and one number in [0, 1) chooses among them. Begin with
engine/worker/sampling/sampler.py, which does it for all rows at once. No torch here: `math.exp`.
"""

from __future__ import annotations


def draw(logits: list[float], temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """Return the token that is drawn.

    temperature 0: the greatest logit; of equal ones, the lowest token. Otherwise, in this order:

    1. Divide the logits by the temperature.
    2. top_k > 0: keep the top_k greatest (0 keeps all; of equal ones, the lowest tokens).
    3. Make probabilities of those kept: exp(logit) over the sum.
    4. top_p < 1: keep the most probable until their sum is at least top_p, and share out again.
    5. Go through the tokens kept, in the order of their numbers, and add up their probabilities:
       the draw is the first at which the sum is greater than `uniform`.
    """
    raise NotImplementedError
