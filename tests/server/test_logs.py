"""No line of the log has a secret in it, and the rest of each line stays readable."""

from __future__ import annotations

import io
import json
import sys

import pytest
from loguru import logger

from engine.config import EngineConfig
from engine.server import logs


@pytest.mark.parametrize(
    ("secrets", "text", "shown"),
    [
        (["k"], "pocket took Bearer k (api_key='k'), /k?key=k&x", "pocket took Bearer *** (api_key"
         "='***'), /***?key=***&x"),
        (["a", "a b"], "a b and a man", "*** and *** man"),
        (["1234567"], "12345678, 1234567.", "12345678, ***."),  # of seven: only alone
        (["12345678"], "x12345678y", "x***y"),  # of eight: anywhere
        (["open-sesame", "open-sesame-2"], "open-sesame-2 open-sesame", "*** ***"),
        (["a.c("], "abc( a.c(", "abc( ***"),
        ([], "nothing", "nothing"),
    ],
)  # fmt: skip
def test_secrets_are_blanked_and_words_are_not(secrets, text, shown):
    assert logs.blanking(secrets)(text) == shown


@pytest.mark.parametrize("form", ["rich", "json"])
@pytest.mark.parametrize(
    "key", ["a", "INFO", "info", "level", 'has "quotes" in it', "back\\slash", "open-sesame"]
)
def test_a_line_has_no_key_and_its_own_form(key, form, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    logs.configure(EngineConfig(log_format=form, api_key=[key], hf_token="hf_" + "x" * 20))
    try:
        logger.info("Somebody sent ({}) and hf_{}, unlike others.", key, "x" * 20)
    finally:
        monkeypatch.undo()
        logger.remove()
        logger.add(sys.stderr)
    written = out.getvalue()
    said = "Somebody sent (***) and ***, unlike others."
    if form == "json":
        line = json.loads(written)
        assert line["message"] == said and line["level"] == "info"
    else:
        assert written[9:13] == "INFO" and written.endswith(f" {said}\n")
