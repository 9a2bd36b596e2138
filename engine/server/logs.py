"""Log life-cycle messages and those of libraries: one stream, one format, no secret in any line.

The engine's decisions aren't logged here: the record has them. loguru costs 10–90 µs a message, too
much for a step.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable

from loguru import logger

from engine.config import EngineConfig
from engine.trace.printable import printable, printable_json

ANYWHERE = 8
"""Characters from which on a secret is blanked inside of words, too."""
TEXT_FORMAT = "{time:HH:mm:ss} {level: <7} {message}"
_TIME, _LEVEL = 8, 16  # columns where the time and the level end
_PLAIN, _DIM = "\x1b[0m", "\x1b[2m"
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}


def wants_json(config: EngineConfig) -> bool:
    return config.log_format == "json" or (config.log_format == "auto" and not sys.stderr.isatty())


def blanking(secrets: Iterable[str]) -> Callable[[str], str]:
    """Return what blanks these secrets in a text.

    A short one is blanked only where it stands alone: of others' words it would leave holes, and
    the holes would show what it is.
    """
    patterns = []
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        exact = re.escape(secret)
        patterns.append(exact if len(secret) >= ANYWHERE else rf"(?<!\w){exact}(?!\w)")
    if not patterns:
        return lambda text: text
    any_of_them = re.compile("|".join(patterns))
    return lambda text: any_of_them.sub("***", text)


def configure(config: EngineConfig) -> None:
    """Send all messages of this process to stderr, secrets blanked."""
    blanked = blanking([*config.api_key, *([config.hf_token] if config.hf_token else [])])
    coloured = sys.stderr.isatty()

    def write_text(message: str) -> None:
        text = printable(message[:_LEVEL] + blanked(message[_LEVEL:]))
        if coloured:  # here and not in loguru: what comes from people is escaped by now
            colour = _COLOURS.get(message.record["level"].name, "")  # type: ignore[attr-defined]
            time, level, rest = text[:_TIME], text[_TIME:_LEVEL], text[_LEVEL:]
            text = f"{_DIM}{time}{_PLAIN}{colour}{level}{_PLAIN}{rest}"
        sys.stderr.write(text)

    def write_json(message: str) -> None:
        record = message.record  # type: ignore[attr-defined]
        line = {
            "time": record["time"].isoformat(timespec="milliseconds"),
            "level": record["level"].name.lower(),
            "message": blanked(record["message"]),  # before quotes in it are escaped
        }
        text = printable_json(json.dumps(line, ensure_ascii=False))
        sys.stderr.write(text + "\n")

    logger.remove()
    if wants_json(config):
        logger.add(write_json, level="INFO", format="{message}", diagnose=False)
    else:
        logger.add(write_text, level="INFO", format=TEXT_FORMAT, diagnose=False, colorize=False)
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class _ToLoguru(logging.Handler):
    """Pass on the messages of the standard library's loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        known = record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        logger.opt(exception=record.exc_info).log(
            record.levelname if known else record.levelno, "{}", record.getMessage()
        )
