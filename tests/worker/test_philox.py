"""Philox against the known answers of its authors (Random123, tests/kat_vectors)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.worker.sampling.philox import WORD, philox4x32, random_words

KNOWN_ANSWERS = [  # counter, key, result
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("make", [lambda n: np.array([n]), lambda n: torch.tensor([n])])
@pytest.mark.parametrize("counter, key, result", KNOWN_ANSWERS)
def test_known_answers(make, counter, key, result):
    got = philox4x32(tuple(map(make, words(counter))), tuple(map(make, words(key))))
    assert [int(word[0]) for word in got] == words(result)


def test_numpy_and_torch_agree_for_any_seed():
    generator = np.random.default_rng(1)
    seeds = generator.integers(-(2**63), 2**63 - 1, 1000)
    positions = generator.integers(0, 2**40, 1000)
    host = random_words(seeds, positions)
    device = random_words(torch.from_numpy(seeds), torch.from_numpy(positions))
    assert (host == device.numpy()).all()
    assert host.min() >= 0 and host.max() <= WORD


def test_key_and_counter_layout():
    """Low halves first: of the seed in the key, of the position in the counter."""
    one = np.array([1])
    seed, position = np.array([3 + (5 << 32)]), np.array([7 + (2 << 32)])
    expected = philox4x32((7 * one, 2 * one, 0 * one, 0 * one), (3 * one, 5 * one))[0]
    assert random_words(seed, position) == expected


def test_negative_seed_is_its_64_bits():
    seed = np.array([-1])
    ones = np.array([WORD])
    zero = np.array([0])
    assert random_words(seed, zero) == philox4x32((zero, zero, zero, zero), (ones, ones))[0]


def test_every_seed_and_position_counts():
    seeds, positions = np.meshgrid(np.arange(100), np.arange(100))
    drawn = random_words(seeds.ravel(), positions.ravel())
    assert len(np.unique(drawn)) > 9_990  # 10,000 draws of 2^32: about 0.01 collisions expected
