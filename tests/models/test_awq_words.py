"""AWQ's words are turned to the engine's order as taking them apart code by code does it."""

from __future__ import annotations

import pytest
import torch

from engine.models.formats import awq
from engine.models.formats.packed import nibbles


@pytest.mark.parametrize("at_once", [1, 3 * 64, 1 << 18])  # columns of 64 words: 1, 3, all
def test_turned_words_have_each_code_in_its_place(at_once, monkeypatch):
    monkeypatch.setattr(awq, "TURNED_AT_ONCE", at_once)
    words = torch.randint(-(2**31), 2**31, (64, 10), dtype=torch.int64).to(torch.int32)
    assert torch.equal(awq._turned(words), nibbles(awq._in_order(words).t()))
