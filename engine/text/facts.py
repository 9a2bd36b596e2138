"""Ask transformers for the facts about a model's text that tokenizer.json doesn't have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.one_line import one_line
from engine.text.errors import TextError
from engine.text.generation_config import read_defaults

QUESTION = "engine.text.facts:answer"
BACKEND = "tokenizer.json"


class TokenizerFacts(msgspec.Struct, frozen=True):
    """Hold the facts about a tokenizer of transformers, beside its Rust part."""

    fast: bool  # the Rust part, which a file can hold, is all of it
    eos_token_id: int | None = None
    special_tokens: dict[str, str] = {}  # by the names that chat templates use: "bos_token", …
    chat_template: str | dict[str, str] | None = None  # one, or several by name
    truncation_side: str = "right"
    splits_special_tokens: bool = False  # a special token written out in a text is plain text


def facts_of(hf: Any) -> TokenizerFacts:
    """Read the facts. hf: a tokenizer of transformers."""
    return TokenizerFacts(
        fast=bool(getattr(hf, "is_fast", False)),
        eos_token_id=hf.eos_token_id,
        special_tokens=dict(hf.special_tokens_map),
        chat_template=getattr(hf, "chat_template", None) or None,
        truncation_side=getattr(hf, "truncation_side", "right"),
        splits_special_tokens=bool(getattr(hf, "split_special_tokens", False)),
    )


def transformers_tokenizer(
    source: str, revision: str | None, hf_token: str | None, cache: str | None
) -> Any:
    """Load transformers' own tokenizer, of a local folder or a hub id. Raises `TextError`."""
    from transformers import AutoTokenizer  # takes a second to import

    folder = Path(source).expanduser()
    try:
        return AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else source,
            revision=revision,
            token=hf_token,
            cache_dir=cache,
            trust_remote_code=False,
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError, …
        reason = one_line(error, 300)
        raise TextError(
            "model",
            f"No tokenizer could be loaded from {source!r}. Give a folder with a tokenizer.json, "
            "or a hub id that you may read (a gated one needs HF_TOKEN). transformers says: "
            f"{type(error).__name__}: {reason}",
        ) from None


def answer(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Answer `QUESTION` with the tokenizer's facts and its Rust part as a file, or with an error.

    The answer is {"tokenizer": facts, "defaults": those of the model, if asked for}, or {"error":
    …, "param": …}.
    """
    token, cache = arguments["hf_token"], arguments["cache"]
    files: dict[str, bytes] = {}
    try:
        hf = transformers_tokenizer(arguments["source"], arguments["revision"], token, cache)
        facts = facts_of(hf)
        if facts.fast:
            try:
                files[BACKEND] = hf.backend_tokenizer.to_str().encode()
            except Exception:  # a part of it is written in Python
                facts = msgspec.structs.replace(facts, fast=False)
        said: dict[str, Any] = {"tokenizer": msgspec.to_builtins(facts)}
        if arguments["defaults"] is not None:
            model, *rest = arguments["defaults"]
            revision, wanted, override = rest
            defaults = read_defaults(model, revision, token, wanted, override, cache)
            said["defaults"] = msgspec.to_builtins(defaults)
    except TextError as error:
        return {"error": str(error), "param": error.param}, {}
    return said, files
