"""Load a model's tokenizer, and what its makers recommend.

transformers says what a model's files mean (`facts.py`), in a process that ends; this file combines
its answer with the Rust tokenizer. A tokenizer written in Python needs transformers here, too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.models.asking import AskingError, ask, small_files
from engine.models.formats.recognise import refuse_other_formats
from engine.models.named import local_folder
from engine.text.errors import TextError
from engine.text.facts import BACKEND, QUESTION, TokenizerFacts, transformers_tokenizer
from engine.text.generation_config import GenerationDefaults
from engine.text.tokenizer import Tokenizer


def load_text(config: EngineConfig) -> tuple[Tokenizer, GenerationDefaults]:
    """Load the tokenizer, of the model or of `config.tokenizer`, and the model's defaults.

    A text ends at the tokens that either of them names: chat models list the end of a turn beside
    the tokenizer's own end of sequence. Raises `TextError`, and `ModelError` for another format.
    """
    model = local_folder(config.model)
    tokenizer, said = _load(
        config.tokenizer or model,
        None if config.tokenizer else config.revision,  # it is one of the model's repository
        config.hf_token,
        config.download_dir,
        (
            model,
            config.revision,
            config.generation_config,
            config.override_generation_config,
        ),
    )
    defaults = msgspec.convert(said["defaults"], GenerationDefaults)
    tokenizer.end_at(defaults.eos_token_ids)
    return tokenizer, defaults


def load_tokenizer(
    source: str,
    revision: str | None = None,
    hf_token: str | None = None,
    cache: str | None = None,
) -> Tokenizer:
    """Load the tokenizer of a local folder or a hub id, with its own end of sequence.

    cache: the folder of downloads, in place of the hub's own.

    Raises `TextError` if there is none, and `ModelError` for a model of another format.
    """
    return _load(source, revision, hf_token, cache, None)[0]


Defaults = tuple[str, str | None, str, Mapping[str, Any] | None]
"""Of which model, of which revision, --generation-config, --override-generation-config."""


def _load(
    source: str,
    revision: str | None,
    hf_token: str | None,
    cache: str | None,
    defaults: Defaults | None,
) -> tuple[Tokenizer, dict[str, Any]]:
    source = local_folder(source)
    refuse_other_formats(source)
    folder = Path(source).expanduser()
    if not folder.is_dir() and (folder.exists() or source.startswith((".", "/", "~"))):
        raise TextError("model", f"{source} is not a folder; name a model's folder or a hub id.")
    source = _whole_path(source)
    if defaults is not None:
        defaults = (_whole_path(defaults[0]), *defaults[1:])
    arguments = {
        "source": source,
        "revision": revision,
        "hf_token": hf_token,
        "cache": cache,
        "defaults": defaults,
    }
    folders = [source] if defaults is None else [source, defaults[0], defaults[2]]
    try:
        said, files = ask(QUESTION, arguments, _files(folders))
    except AskingError as error:
        raise TextError("model", f"The tokenizer of {source!r} can't be loaded: {error}.") from None
    if "error" in said:
        raise TextError(said["param"], said["error"])
    facts = msgspec.convert(said["tokenizer"], TokenizerFacts)
    load_hf = functools.partial(transformers_tokenizer, source, revision, hf_token, cache)
    if not facts.fast:
        return Tokenizer.of(load_hf()), said
    return Tokenizer.of_file(files[BACKEND], facts, load_hf), said


def _whole_path(source: str) -> str:
    """Make a local folder's path one that holds wherever it is asked from; a hub id stays."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else source


def _files(sources: list[str]) -> list[Path] | None:
    """Return the files that an answer depends on; None if some may come from the hub."""
    found: list[Path] = []
    for source in sources:
        folder = Path(source).expanduser()
        if folder.is_dir():
            found += small_files(folder)
        elif source not in ("auto", "vllm"):  # special values of --generation-config
            return None
    return found
