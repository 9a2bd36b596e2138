"""Compute random numbers without state: Philox4x32-10, a block function of (key, counter).

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), where
figure 2 and table 2 define it; tested against the known answers that its authors publish with
Random123. A token's random number depends on the request's seed (the key) and on the token's
position (the counter), so it doesn't matter when, where, or beside which others it is drawn.

All is done in 64-bit integers with operators that NumPy and torch share, so the same lines run on
arrays of either: NumPy on the host (less overhead for small batches), torch where the numbers are
needed on a device. A product of two 32-bit words may pass 2^63 and wrap around to a negative
number. Its bits are still right, and the mask after the shift removes the sign bits that the shift
brings in.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Words = TypeVar("Words", np.ndarray, torch.Tensor)  # int64, each holding one unsigned 32-bit word

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, √3 − 1: added to the key at every round
ROUNDS = 10


def philox4x32(counter: tuple[Words, ...], key: tuple[Words, ...]) -> tuple[Words, ...]:
    """Compute four pseudo-random words for each element.

    `counter`: 4 × int64 [n], `key`: 2 × int64 [n], each value in [0, 2^32). Returns 4 × int64 [n].
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((right >> 32) & WORD) ^ c1 ^ k0, ((left >> 32) & WORD) ^ c3 ^ k1
        c1, c3 = right & WORD, left & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def random_words(seeds: Words, positions: Words) -> Words:
    """Compute one word in [0, 2^32) for each (seed, position).

    It is the first word of the block whose key is the seed (low half first; of a negative seed, its
    64 bits) and whose counter is the position. `seeds`, `positions`: int64 [n]. Returns int64 [n].
    """
    zero = positions * 0
    counter = (positions & WORD, (positions >> 32) & WORD, zero, zero)
    return philox4x32(counter, (seeds & WORD, (seeds >> 32) & WORD))[0]
