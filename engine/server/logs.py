"""Life-cycle messages and those of the libraries: one stream, one format, no secret in any line.

The record of the engine's decisions is not written here but by `trace_hub`; loguru costs 10–90 µs a
message, too much for a step.
"""

from __future__ import annotations

import json
import logging
import sys

from loguru import logger

from engine.config import EngineConfig

RICH_FORMAT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}"


def wants_json(config: EngineConfig) -> bool:
    return config.log_format == "json" or (config.log_format == "auto" and not sys.stderr.isatty())


def configure(config: EngineConfig) -> None:
    """Send all messages of this process to stderr, secrets blanked."""
    secrets = [*config.api_key, *([config.hf_token] if config.hf_token else [])]

    def redacted(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    def write_text(message: str) -> None:
        sys.stderr.write(redacted(message))

    def write_json(message: str) -> None:
        record = message.record  # type: ignore[attr-defined]
        line = {
            "time": record["time"].isoformat(timespec="milliseconds"),
            "level": record["level"].name.lower(),
            "message": record["message"],
        }
        sys.stderr.write(redacted(json.dumps(line, ensure_ascii=False)) + "\n")

    logger.remove()
    if wants_json(config):
        logger.add(write_json, level="INFO", format="{message}", diagnose=False)
    else:
        logger.add(
            write_text, level="INFO", format=RICH_FORMAT, diagnose=False,
            colorize=sys.stderr.isatty(),
        )  # fmt: skip
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class _ToLoguru(logging.Handler):
    """Passes the messages of the standard library's loggers on."""

    def emit(self, record: logging.LogRecord) -> None:
        known = record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        logger.opt(exception=record.exc_info).log(
            record.levelname if known else record.levelno, "{}", record.getMessage()
        )
