"""Build a loaded library from C++ source: once per machine, in a few seconds, then from the cache.

The source is compiled for one *variant*: a kind of x86 or ARM CPU, or "portable" for any. The name
of the cached file holds a hash of all that shaped it (sources, flags, compiler), so that a stale
one is never used; nothing in it depends on the rest of the machine. It is written under a temporary
name, flushed to the disk, and renamed, so that two processes may build at once. Its last bytes are
the hash of those before them (loaders don't read beyond a library's end). A library that was cut
short or changed would kill the process that loads it, so it is built again.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from engine.kernels.cpu.build_folder import place_of

SOURCES = (
    "linear.cpp",
    "linear_panels.cpp",
    "linear_amx.cpp",
    "linear_quantized.cpp",
    "linear_quantized_amx.cpp",
    "linear_expanded_amx.cpp",
    "linear_tables.cpp",
    "linear_int8.cpp",
    "linear_int8_amx.cpp",
    "pack.cpp",
    "attention.cpp",
    "elementwise.cpp",
    "draw.cpp",
    "grammars.cpp",
    "replay.cpp",
    "threads.cpp",
)
HEADERS = (
    "simd.h",
    "tiles.h",
    "codes.h",
    "quantized.h",
    "quantized_few.h",
    "quantized_pieces.h",
    "quantized_kept.h",
    "quantized_many.h",
    "quantized_tiles.h",
    "quantized_tiles_few.h",
    "quantized_tiles_many.h",
    "expanded.h",
    "expanded_few.h",
    "expanded_many.h",
    "int8_dot.h",
    "int8_rows.h",
    "attention_task.h",
    "attention_plan.h",
    "attention_in_place.h",
    "attention_staged.h",
    "attention_bf16.h",
    "attention_pairs.h",
    "attention_tiles.h",
    "attention_tiles_few.h",
)
FOLDER = Path(__file__).parent
HASH_BYTES = 32  # of SHA-256

FLAGS: tuple[str, ...] = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
)
# Not -ffast-math: it assumes no infinities, and these hide scores. The two flags only drop errno
# and floating-point traps.
FLAGS += ("-fno-math-errno", "-fno-trapping-math")

_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma")
VARIANTS: dict[str, tuple[str, ...]] = {
    "amx": (*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "avx512_bf16": (*_AVX512, "avx512_vnni", "avx512_bf16"),
    "avx512": _AVX512,
    "avx2": ("avx2", "fma", "f16c"),
    "neon": ("neon",),
    "portable": (),
}
"""Best first: name → flags that the CPU must have: of /proc/cpuinfo, or NEON for 64-bit ARM."""
COMPILER_NAMES = {
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
}
ARM = frozenset({"neon"})  # each 64-bit ARM has it, and compilers use it unasked


class BuildError(RuntimeError):
    """Report that the kernels can't be built here. The message says why, and what would help."""


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return what this CPU can do, x86 as /proc/cpuinfo names it; empty if neither x86 nor ARM."""
    if platform.machine() in ("aarch64", "arm64"):
        return ARM
    if platform.machine() in ("x86_64", "AMD64"):
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
        except OSError:
            pass  # not Linux: the portable variant still runs
    return frozenset()


def variants_here() -> tuple[str, ...]:
    """Return the variants that this CPU can run, best first."""
    return tuple(name for name, needs in VARIANTS.items() if cpu_flags().issuperset(needs))


def variants_of(machine: str) -> tuple[str, ...]:
    """Return the variants for all CPUs of a kind, as `platform.machine()` names it, best first."""
    x86, arm = machine in ("x86_64", "AMD64"), machine in ("aarch64", "arm64")
    return tuple(
        name
        for name, needs in VARIANTS.items()
        if not needs or (arm if ARM.issuperset(needs) else x86)
    )


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Return a name for this kind of CPU that may stand in the name of a file."""
    digest = hashlib.sha256(" ".join(sorted(cpu_flags())).encode())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        digest.update("".join(line for line in lines if line.startswith("model name")).encode())
    except OSError:
        pass  # not Linux
    return digest.hexdigest()[:12]


def load(variant: str, sources: tuple[str, ...] = ()) -> ctypes.PyDLL:
    """Return the library, built if it isn't in the cache. Raises BuildError.

    sources: these only. PyDLL keeps Python's lock during a call: most calls take microseconds, and
    releasing the lock and waiting for it again can cost more than the kernel.
    """
    path = compiled(variant, sources)
    try:
        return ctypes.PyDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} can't be loaded: {error}. Delete it to build it anew.") from error


def compiled(variant: str, sources: tuple[str, ...] = ()) -> Path:
    """Return the library's file, built if it isn't in the cache; this CPU need not be able to run
    it. sources: these only. Raises BuildError."""
    sources = sources or SOURCES
    path = library_path(variant, sources)
    return path if _is_whole(path) else _build(variant, sources, path)


def is_built(variant: str) -> bool:
    """Return whether a variant's library is in the cache. Raises `BuildError`: no compiler."""
    return _is_whole(library_path(variant, SOURCES))


@lru_cache(maxsize=1)
def _compiler() -> tuple[str, str]:
    """Return (path, what it says of its version) of the C++ compiler. Raises BuildError."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if said.returncode == 0:
                return path, said.stdout
    raise BuildError("there is no C++ compiler: install g++ (Debian, Ubuntu: apt install g++)")


def _flags(variant: str) -> tuple[str, ...]:
    flags = (flag for flag in VARIANTS[variant] if flag not in ARM)
    machine = tuple(f"-m{COMPILER_NAMES.get(flag, flag)}" for flag in flags)
    return FLAGS + machine


def library_path(variant: str, sources: tuple[str, ...]) -> Path:
    """Return where the library of these sources is kept, whether it is there or not."""
    digest = hashlib.sha256()
    for name in HEADERS + sources:
        digest.update((FOLDER / name).read_bytes())
    digest.update(repr((_flags(variant), _compiler(), platform.machine())).encode())
    return place_of(f"cpu-{variant}-{digest.hexdigest()[:16]}.so")


def _is_whole(path: Path) -> bool:
    """Return whether the library is there, with the bytes that were built."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-HASH_BYTES]).digest() == data[-HASH_BYTES:]


def _seal(library: str) -> None:
    """Write the hash behind the library's bytes, and all of it to the disk."""
    with open(library, "r+b") as file:
        file.write(hashlib.sha256(file.read()).digest())
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a small file, all of it or nothing; where that can't be done, nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        return


def _build(variant: str, sources: tuple[str, ...], path: Path) -> Path:
    """Compile to `path`. Returns where the library is: elsewhere if no folder keeps it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
        os.close(handle)
    except OSError:  # nothing can be kept here: a temporary folder for this process
        folder = tempfile.mkdtemp(prefix="glasshouse-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / path.name
        temporary = str(path) + ".tmp"
    try:
        _compile(variant, sources, temporary)
    except BuildError:
        Path(temporary).unlink(missing_ok=True)
        raise
    _seal(temporary)
    os.replace(temporary, path)
    return path


def _compile(variant: str, sources: tuple[str, ...], library: str) -> None:
    """Compile the sources side by side, one a core, and link them. Raises BuildError."""

    def run(*arguments: str) -> None:
        command = [_compiler()[0], *_flags(variant), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line]
            raise BuildError(
                f"{command[0]} could not compile the kernels: {[*errors, 'no message'][0]}"
            )

    with (
        tempfile.TemporaryDirectory(prefix="glasshouse-") as folder,
        ThreadPoolExecutor(os.cpu_count()) as workers,
    ):
        objects = [str(Path(folder) / f"{name}.o") for name in sources]
        files = [str(FOLDER / name) for name in sources]
        list(workers.map(lambda file, object_: run("-c", file, "-o", object_), files, objects))
        run(*objects, "-o", library)
