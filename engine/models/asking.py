"""Ask transformers in another process how to read a model's files, and keep its answer.

transformers knows which class a tokenizer is of and what a config.json leaves unsaid. Asking it
imports some 60 MB, with torch beside it 300, and nothing of that is used afterwards. So the
question goes to a process that ends, without torch. The same files get the same answer, so it is
kept in the user's cache, where the second start finds it. Where transformers is imported already,
it is asked there.

A question is the name of a function, "module:function". It takes a dict that JSON can hold, and
returns such a dict and files by name; values with the key "error" are an answer that isn't kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from engine import __version__
from engine.child_process import command_of, end_with_parent
from engine.config import cache_folder
from engine.trace.command import run_command

PACKAGES = ("transformers", "tokenizers", "huggingface_hub")
NOT_TO_BE_KEPT = "hf_token"
"""A name in a question that changes nothing in the answer, and that no file should depend on."""
ANSWERS_KEPT = 32
ANSWER = "answer.json"


class Answered(NamedTuple):
    """Hold what transformers says: values, and the bytes of files by name."""

    values: dict[str, Any]
    files: dict[str, bytes]


class AskingError(RuntimeError):
    """Report that transformers could not be asked. The message says why."""


def ask(question: str, arguments: dict[str, Any], depends_on: Iterable[Path] | None) -> Answered:
    """Answer a question: from memory, here if transformers is imported, else in another process.

    depends_on: the files that the answer depends on; None: unknown, so that it can't be kept.
    Raises `AskingError`.
    """
    if "transformers" in sys.modules:
        return _answer(question, arguments)
    place = None
    if depends_on is not None:
        place = _cache() / _key(question, arguments, depends_on)
        known = _read(place)
        if known is not None:
            return known
    with contextlib.ExitStack() as stack:
        try:
            _cache().mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(dir=_cache())
        except OSError:  # no home, or a read-only one
            folder, place = tempfile.mkdtemp(), None
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _ask_a_process(question, arguments, folder)
        answer = _read(Path(folder))
        if answer is None:
            raise AskingError("transformers gave an answer that can't be read")
        if place is not None and "error" not in answer.values:
            _forget_the_oldest()
            shutil.rmtree(place, ignore_errors=True)  # an incomplete one
            with contextlib.suppress(OSError):  # another process may have put it there meanwhile
                os.replace(folder, place)
        return answer


def small_files(folder: Path) -> list[Path]:
    """List the files of a model's folder that are not weights: a tokenizer may be made of them."""
    kinds = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*/*.jinja")
    return sorted({path for kind in kinds for path in folder.glob(kind) if path.is_file()})


# --------------------------------------------------------------------------------------- details


def _answer(question: str, arguments: dict[str, Any]) -> Answered:
    module, _, function = question.partition(":")
    return Answered(*getattr(import_module(module), function)(arguments))


def _cache() -> Path:
    return cache_folder() / "answers"


def _key(question: str, arguments: dict[str, Any], files: Iterable[Path]) -> str:
    """Name all that shapes an answer, the code that gives it included."""
    digest = hashlib.sha256()
    kept = {name: value for name, value in arguments.items() if name != NOT_TO_BE_KEPT}
    versions = [importlib.metadata.version(package) for package in PACKAGES]
    code = importlib.util.find_spec(question.partition(":")[0])
    said = [question, kept, versions, __version__, sys.version, code and code.origin]
    digest.update(json.dumps(said, sort_keys=True).encode())
    for path in [Path(__file__), *([Path(code.origin)] if code and code.origin else []), *files]:
        data = path.read_bytes()
        digest.update(f"{path}\n{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def _read(folder: Path) -> Answered | None:
    """Read the answer in a folder; None if there is none, or if it is incomplete."""
    try:
        said = json.loads((folder / ANSWER).read_bytes())
        files = {name: (folder / name).read_bytes() for name in said["digests"]}
    except (OSError, ValueError):
        return None
    if any(_digest(files[name]) != digest for name, digest in said["digests"].items()):
        return None
    return Answered(said["values"], files)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _forget_the_oldest() -> None:
    with contextlib.suppress(OSError):
        known = sorted(_cache().iterdir(), key=lambda path: path.stat().st_mtime)
        for path in known[: -ANSWERS_KEPT or None]:
            shutil.rmtree(path, ignore_errors=True)


def _ask_a_process(question: str, arguments: dict[str, Any], folder: str) -> None:
    result = subprocess.run(
        command_of("engine.models.asking", question, folder, os.getpid()),
        input=json.dumps(arguments).encode(),  # not on the command line: a token is among them
        capture_output=True,
        check=False,
    )
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise AskingError(f"transformers could not be asked: {lines[-1]}")


def main() -> None:
    """Answer the question of the command line: arguments on stdin, the answer into a folder."""
    end_with_parent(int(sys.argv[3]))
    sys.modules["torch"] = None  # type: ignore[assignment]  # so that transformers finds none
    question, folder = sys.argv[1], Path(sys.argv[2])
    answer = _answer(question, json.load(sys.stdin))
    for name, data in answer.files.items():
        (folder / name).write_bytes(data)
    digests = {name: _digest(data) for name, data in answer.files.items()}
    said = {"values": answer.values, "digests": digests}
    (folder / ANSWER).write_text(json.dumps(said))


if __name__ == "__main__":
    run_command(main)
