"""The real model, or the reason why it can't be had here."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.models.errors import ModelError
from engine.models.hub import find_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    try:
        return find_model("smollm2", None, None)
    except ModelError as error:
        pytest.skip(str(error))
