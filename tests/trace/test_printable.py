"""No form of the log passes a prompt's or a field name's control characters to the terminal."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest
from loguru import logger

from engine.config import EngineConfig
from engine.server import logs
from engine.trace.__main__ import main
from engine.trace.console import LogConsole
from engine.trace.events import EngineWarning, RequestReceived
from engine.trace.files import JsonlWriter
from engine.trace.printable import printable, printable_json

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "c1": "\x9b2J\x9d0;owned\x9c",
    "bidi": "abc\u202edcba\u2066x\u2069",
    "back": "safe\b\b\b\bevil\x7f",
    "return": "safe\revil",
    "lines": "a\u2028b\u2029c\x85d",
    "hidden": "a\u200bb\ufeffc\u2060d\U000e0041",
}
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def obeyed(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in OBEYED} - set("\n\t\u200c\u200d")


def test_every_control_and_format_character_is_escaped():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert not obeyed(printable(everything)) and not obeyed(printable_json(everything))
    kept = "".join(c for c in everything if unicodedata.category(c) not in OBEYED | {"Cn"})
    assert printable(kept) == kept and printable_json(kept) == kept


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_escapes_say_what_was_there(text):
    assert printable(text).encode("latin-1").decode("unicode_escape") == text
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text


def test_ordinary_text_stays():
    for text in ("Grüße, 你好 👩‍👩‍👧‍👦 नमस्ते\n\tمرحبا", "\u00a0\u3000"):
        assert printable(text) == text and printable_json(text) == text


def events(text):
    return [
        RequestReceived(
            request_id=f"r{text}", route=f"/v1/{text}", params={"stop": [text]}, client=text,
            ignored=[text], text=text,
        ),
        EngineWarning(message=f"The request field {text} is unknown and has no effect."),
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("style", ["rich", "json"])
@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_the_record_on_a_console(style, file, text, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    out = file()
    console = LogConsole(style, out)
    console(events(text))
    console.close()
    assert "warning" in out.getvalue() and not obeyed(out.getvalue())


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_record_read_again(tmp_path, capsys, text):
    writer = JsonlWriter(str(tmp_path / "record.jsonl"))
    writer(events(text))
    writer.close()
    record = str(tmp_path / "record.jsonl")
    for command, *more in (["annotate"], ["annotate", "--all"], ["life", f"r{text}"],
                           ["life", text], ["replay"], ["replay", "--json"], ["perfetto"],
                           ["diff", record]):  # fmt: skip
        main([command, record, *more])
        written = capsys.readouterr()
        assert written.out + written.err and not obeyed(written.out + written.err), command


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("form", ["rich", "json"])
@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_messages_of_the_server(monkeypatch, form, file, text):
    out = file()
    monkeypatch.setattr(sys, "stderr", out)
    logs.configure(EngineConfig(log_format=form))
    try:
        logger.warning("{} failed:\n{}", text, text)
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("It failed: {}", text)
    finally:
        monkeypatch.undo()
        logger.remove()
        logger.add(sys.stderr)
    written = out.getvalue()
    for own in (logs._PLAIN, logs._DIM, *logs._COLOURS.values()):
        written = written.replace(own, "")
    assert "failed" in written and not obeyed(written)
