"""Accept flags of vLLM that ask for what this engine does anyway, so that a command line works.

Any other value is refused: to ignore an option silently would break a promise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from engine.config.option_types import ConfigError

SWITCH = ("true",)


@dataclass(frozen=True)
class Accepted:
    """Describe one such flag, without its dashes."""

    name: str
    values: tuple[str, ...]  # accepted values; SWITCH: the flag takes none
    does: str  # what this engine does
    short: str = ""

    @property
    def is_switch(self) -> bool:
        return self.values == SWITCH

    def check(self, flag: str, value: str) -> None:
        """Raise `ConfigError` for a value that asks for something else."""
        if value not in self.values:
            passes = ", ".join(self.values)
            what = "" if self.is_switch else f"give {passes}, or "
            raise ConfigError(f"{flag} is {value!r}; {self.does}: {what}leave it out.")


_ONE_ENGINE = "one engine process serves the model"
_TEXT = "this engine makes text from text"
_HF = "models and tokenizers are read in transformers' format"
_LOG = "requests are in the record; there is no other log of them"

ACCEPTED = (
    Accepted("pipeline-parallel-size", ("1",), "each device has a share of all layers", "-pp"),
    Accepted("data-parallel-size", ("1",), _ONE_ENGINE, "-dp"),
    Accepted("decode-context-parallel-size", ("1",), "a context stands on one device", "-dcp"),
    Accepted("prefill-context-parallel-size", ("1",), "a context stands on one device", "-pcp"),
    Accepted("nnodes", ("1",), "all runs on one machine", "-n"),
    Accepted("node-rank", ("0",), "all runs on one machine", "-r"),
    Accepted("distributed-executor-backend", ("mp", "uni"), "processes start on this machine"),
    Accepted("runner", ("auto", "generate"), _TEXT),
    Accepted("convert", ("auto", "none"), _TEXT),
    Accepted("task", ("auto", "generate"), _TEXT),
    Accepted("language-model-only", SWITCH, _TEXT),
    Accepted("chat-template-content-format", ("auto", "string"), _TEXT),
    Accepted(
        "enable-auto-tool-choice", SWITCH, "a model with a known format may always call tools"
    ),
    Accepted("response-role", ("assistant",), "answers are the assistant's"),
    Accepted("config-format", ("auto", "hf"), _HF),
    Accepted("tokenizer-mode", ("auto", "hf"), _HF),
    Accepted("model-impl", ("auto",), "the native class where there is one, else transformers'"),
    Accepted("no-trust-remote-code", SWITCH, "no code of a checkpoint is ever run"),
    Accepted("cpu-offload-gb", ("0",), "weights stay on their device"),
    Accepted("enable-chunked-prefill", SWITCH, "long prompts are always computed in chunks"),
    Accepted("max-num-partial-prefills", ("1",), "long prompts are computed in order"),
    Accepted("logprobs-mode", ("raw_logprobs",), "log-probabilities are those of the raw logits"),
    Accepted("disable-custom-all-reduce", SWITCH, "there is no such all-reduce"),
    Accepted("no-enable-lora", SWITCH, "there are no adapters"),
    Accepted("no-enable-prompt-embeds", SWITCH, _TEXT),
    Accepted("no-skip-tokenizer-init", SWITCH, "the tokenizer is always loaded"),
    Accepted("no-enable-expert-parallel", SWITCH, "all experts stand on one device"),
    Accepted("no-enable-sleep-mode", SWITCH, "the engine never sleeps"),
    Accepted("enable-request-id-headers", SWITCH, "every answer carries X-Request-Id"),
    Accepted("enable-prompt-tokens-details", SWITCH, "usage always says how much was cached"),
    Accepted("enable-server-load-tracking", SWITCH, "/load always answers"),
    Accepted("disable-fastapi-docs", SWITCH, "/docs and /redoc are not served"),
    Accepted("disable-uvicorn-access-log", SWITCH, _LOG),
    Accepted("uvicorn-log-level", ("critical", "error", "info", "warning"), _LOG),
    Accepted("enable-log-requests", SWITCH, "each request is in the record and its log"),
    Accepted("disable-log-requests", SWITCH, _LOG),
    Accepted("no-enable-log-requests", SWITCH, _LOG),
    Accepted("disable-log-stats", SWITCH, "figures are in /metrics and the record only"),
)


BY_NAME = {one.name: one for one in ACCEPTED}


def passes(where: str, name: str, value: Any) -> bool:
    """Return whether `name` is such a flag, as a key of a file or as a Python argument.

    `where` names it in the error. Raises `ConfigError` for a value that asks for something else.
    """
    dashed = name.replace("_", "-")
    one, negated = BY_NAME.get(dashed), BY_NAME.get(f"no-{dashed}")
    told = one or negated
    if told is None:
        return False
    if value is None or (value is False and negated is not None):
        return True  # None means the default
    if one is None or (one.is_switch and value is False):
        raise ConfigError(f"{where} is {str(value).lower()}; {told.does}: leave it out.")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    one.check(where, value if isinstance(value, str) else json.dumps(value))
    return True


def accepted_table() -> str:
    """Return these flags as a Markdown table, for the docs."""
    lines = ["| flag | passes with | because |", "|---|---|---|"]
    for one in ACCEPTED:
        flags = f"`--{one.name}`" + (f", `{one.short}`" if one.short else "")
        values = "" if one.is_switch else ", ".join(f"`{value}`" for value in one.values)
        lines.append(f"| {flags} | {values} | {one.does} |")
    return "\n".join(lines)
