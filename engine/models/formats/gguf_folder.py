"""Keep what a GGUF file says beside its weights as files in transformers' form, in a small folder.

`--model x.gguf` becomes the folder of this file in the user's cache: config.json, the tokenizer,
and `gguf.json`, which names the file. So everything that reads a model's folder reads a GGUF file,
and only the weights are read from the file itself (`gguf_weights.py`). Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine import __version__
from engine.config import cache_folder
from engine.models.errors import ModelError
from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_blocks import BLOCKS
from engine.models.formats.gguf_files import gguf_files
from engine.models.formats.gguf_model import ROPE_FACTORS, checked_tensors, describe
from engine.models.formats.gguf_tokenizer import tokenizer_files

MADE_BY = 1
"""Increases when the files are made in another way, so that those in the cache are made again."""
NAMES = "gguf.json"
MOST_KEPT = 16  # folders of some megabytes
PLAIN_DTYPES = {"F32": "float32", "F16": "float16"}


def folder_of(model: str) -> str | None:
    """Return the folder of a GGUF file, or of a folder with one; None for any other model.

    Raises `ModelError` where the file isn't sound or can't be served.
    """
    path = Path(model).expanduser()
    files = gguf_files(path)
    if not files:
        return None
    place = _kept() / _key(files)
    if place.is_dir():
        with contextlib.suppress(OSError):
            os.utime(place)  # used: the oldest ones are forgotten
        return str(place)
    texts = _read(files)
    try:
        _kept().mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=_kept()))
        try:
            for name, content in texts.items():
                (made / name).write_text(json.dumps(content, ensure_ascii=False))
            with contextlib.suppress(OSError):  # another process may have made it meanwhile
                made.rename(place)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"what {path} says can't be kept in {_kept()} ({error}); set XDG_CACHE_HOME to a folder"
            " with room."
        ) from None
    _forget_the_oldest()
    return str(place)


def files_in(folder: Path) -> list[Path] | None:
    """Return the GGUF files whose folder this is; None for any other folder."""
    if folder.parent != _kept() or not (folder / NAMES).is_file():
        return None
    return [Path(name) for name in json.loads((folder / NAMES).read_text())["files"]]


def texts_of(file: GGUF, tensors: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return config.json, generation_config.json and the tokenizer's files, by name.

    tensors: of all parts of a split file. Raises `ModelError`.
    """
    tensors = file.tensors if tensors is None else tensors
    factors = file.array(ROPE_FACTORS) if ROPE_FACTORS in file.tensors else None
    config = describe(file.metadata, tensors, factors)
    ends = [
        config.get("eos_token_id"),
        *(file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom")),
    ]
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    several = [*dict.fromkeys(end for end in ends if isinstance(end, int))]
    if len(several) > 1:
        generation["eos_token_id"] = several
    texts = tokenizer_files(file.metadata)
    return {**texts, "config.json": config, "generation_config.json": generation}


def _read(files: list[Path]) -> dict[str, Any]:
    """Read what the files say, and check that they are a whole model."""
    opened = [GGUF(file) for file in files]
    try:
        tensors = {name: info for file in opened for name, info in file.tensors.items()}
        texts = texts_of(opened[0], tensors)
        config = texts["config.json"]
        checked_tensors(files[0], tensors, config)
        kinds = {BLOCKS[info.type].name for info in tensors.values() if len(info.shape) > 1}
        plain = [PLAIN_DTYPES[kind] for kind in kinds if kind in PLAIN_DTYPES]
        if len(kinds) == len(plain) == 1:
            config["dtype"] = plain[0]
        return {**texts, NAMES: {"files": [str(file) for file in files]}}
    except ModelError as error:
        raise error if str(files[0]) in str(error) else ModelError(f"{files[0]}: {error}") from None
    finally:
        for file in opened:
            file.close()


def _key(files: Iterable[Path]) -> str:
    """Name the files and all that shapes what is made of them."""
    said: list[Any] = [MADE_BY, __version__]
    for file in files:
        stat = file.stat()
        said.append([str(file), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _kept() -> Path:
    return cache_folder() / "gguf"


def _forget_the_oldest() -> None:
    with contextlib.suppress(OSError):
        known = sorted(_kept().iterdir(), key=lambda path: path.stat().st_mtime)
        for path in known[:-MOST_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
