"""Measure systems over HTTP: our server, and llama.cpp's.

Each is a process of its own, which sleeps while the other takes its turn; both are given the same
requests by the same client.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.peers import client
from benchmarks.peers.install import KEPT, LOGS, TILES, VLLM, Peers, last_words
from benchmarks.peers.limits import CACHE_BYTES, LLAMA_SLOT_TOKENS, LLAMA_SLOTS, MAX_MODEL_LEN
from benchmarks.peers.vllm import settings
from benchmarks.workloads import Run, Workload

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
LONGEST_START_S = 600
CACHE_TYPE = {"bfloat16": "f16", "float32": "f32"}
"""llama.cpp's keys and values: f16 is its default and its fastest; f32 is as exact as the rest."""


class ServerFailed(RuntimeError):
    """Report that a server ended or wasn't ready in time; the message has the end of its log."""


class Server:
    """Run one system with one model, started and ready."""

    transport = "HTTP"

    def __init__(self, name: str, command: list[str], port: int, environment: dict[str, str]):
        self.name = name
        self.port = port
        self.versions: dict[str, str] = {}
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}-server.log"
        started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
            )
        try:
            self._wait()
        except ServerFailed:
            self.close()
            raise
        self.load_s = time.perf_counter() - started

    def run(self, workload: Workload) -> Run:
        """Run a workload. Raises `client.WrongAnswer`, or `ServerFailed` when nobody answers."""
        try:
            return client.run(workload, HOST, self.port, "model")
        except OSError as error:
            raise ServerFailed(f"{self.name}: {error}; log:\n{last_words(self.log)}") from None

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + LONGEST_START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailed(f"{self.name} ended; its log ends so:\n{last_words(self.log)}")
            try:
                with urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=5) as got:
                    if got.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass  # 503 while it loads, or nobody listens yet
            time.sleep(0.2)
        raise ServerFailed(f"{self.name} was not ready after {LONGEST_START_S} s")


def glasshouse(model: str, dtype: str, threads: int, peers: Peers, *flags: str) -> Server:
    """Start our server as everyone does, but with the limits that all systems have."""
    port = _free_port()
    command = [sys.executable, str(ROOT / "koyeb_api_server.py")]
    options = {
        "--host": HOST,
        "--port": port,
        "--model": model,
        "--served-model-name": "model",
        "--dtype": dtype,
        "--device": "cpu",
        "--cpu-threads": threads,
        "--max-model-len": MAX_MODEL_LEN,
        "--kv-cache-memory-bytes": CACHE_BYTES,
        "--log-format": "off",
    }
    command += [str(word) for option in options.items() for word in option]
    command += ["--no-enable-prefix-caching", *flags]
    environment = {**peers.plain_environment, "PYTHONPATH": str(ROOT)}
    return Server("Glasshouse", command, port, environment)


def llama_cpp(gguf: str, dtype: str, threads: int, peers: Peers) -> Server:
    """Start llama.cpp's server on a converted model."""
    port = _free_port()
    options = {
        "--model": gguf,
        "--alias": "model",
        "--host": HOST,
        "--port": port,
        "--threads": threads,
        "--threads-batch": threads,
        "--parallel": LLAMA_SLOTS,
        "--ctx-size": LLAMA_SLOTS * LLAMA_SLOT_TOKENS,
        "--cache-type-k": CACHE_TYPE[dtype],
        "--cache-type-v": CACHE_TYPE[dtype],
        "--cache-ram": 0,
    }
    command = [str(peers.llama_server)]
    command += [str(word) for option in options.items() for word in option]
    server = Server("llama.cpp", command, port, peers.plain_environment)
    server.versions = llama_version(peers)
    return server


def vllm(model: str, dtype: str, threads: int, peers: Peers) -> Server:
    """Start vLLM's server: one process speaks HTTP, another one computes."""
    port = _free_port()
    options = {
        "--model": model,
        "--served-model-name": "model",
        "--host": HOST,
        "--port": port,
        "--dtype": dtype,
        "--max-model-len": MAX_MODEL_LEN,
    }
    command = [str(peers.vllm_python), "-m", "vllm.entrypoints.openai.api_server"]
    command += [str(word) for option in options.items() for word in option]
    command += ["--no-enable-prefix-caching"]
    environment = {**peers.vllm_environment(), "OMP_NUM_THREADS": str(threads)}
    environment |= settings(threads, sorted(os.sched_getaffinity(0)), in_process=False)
    server = Server("vLLM", command, port, environment)
    name, _, number = VLLM.partition("==")
    server.versions = {name: number}
    return server


def converted(name: str, model: Path, dtype: str, peers: Peers) -> Path:
    """Return the model as llama.cpp reads it, converted once. name: of the file."""
    target = peers.root / "models" / f"{name}-{dtype}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        half_done = target.with_suffix(".part")
        path = os.pathsep.join([str(peers.llama_source / "gguf-py"), str(ROOT)])
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.peers.convert", "--dtype", dtype),
                *(str(model), str(half_done)),
            ],
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        half_done.rename(target)
    return target


def llama_version(peers: Peers) -> dict[str, str]:
    """Return the version that the server states, and the package that its sources came with."""
    said = subprocess.run(
        [str(peers.llama_server), "--version"], capture_output=True, text=True
    ).stderr
    found = re.search(r"version: (.*)", said)
    package = (peers.llama_source.parents[1] / "PKG-INFO").read_text(encoding="utf-8")
    sdist = re.search(r"^Version: (\S+)", package, re.MULTILINE)
    said_of = {
        "llama.cpp": found[1] if found else "unknown",
        "llama-cpp-python": sdist[1] if sdist else "unknown",
    }
    if KEPT in (peers.llama_source / TILES).read_text():
        said_of["build"] = "with AMX, whose tile configuration GCC 12 breaks, mended"
    return said_of


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]
