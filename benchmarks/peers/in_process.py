"""Measure systems without HTTP, each in a worker process that sleeps while others take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.install import LOGS, Peers, last_words
from benchmarks.workloads import Run, Workload

ROOT = Path(__file__).resolve().parents[2]


class WorkerFailed(RuntimeError):
    """Report that the worker ended, or never came up; the message has its last lines."""


class Worker:
    """Run a module of ours in a process: a line of JSON for each line that it is sent.

    `name` "vLLM": in vLLM's environment. The first answer says how long it loaded.
    """

    def __init__(self, name: str, module: str, arguments: list[str], threads: int, peers: Peers):
        """Start it. Raises `WorkerFailed`."""
        self.name = name
        python, environment = sys.executable, dict(peers.plain_environment)
        if name == "vLLM":
            python, environment = str(peers.vllm_python), peers.vllm_environment()
        environment["PYTHONPATH"] = str(ROOT)
        environment["OMP_NUM_THREADS"] = str(threads)
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        try:
            loaded = self._answer()
        except WorkerFailed:
            self.close()
            raise
        self.load_s: float = loaded["load_s"]
        self.versions: dict[str, str] = loaded["versions"]

    def ask(self, line: str) -> dict:
        """Send a line; return the answer. Raises `WorkerFailed`."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()  # the worker reads the end, and ends
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerFailed(f"{self.name} ended; its log ends so:\n{last_words(self.log)}")
        return json.loads(line)


class InProcess(Worker):
    """Run workloads in one system with one model. `name` also tells the worker what to load."""

    transport = "in process"
    module = "benchmarks.peers.worker"

    def __init__(
        self, name: str, model: str, dtype: str, threads: int, vocab_size: int, peers: Peers
    ):
        arguments = [name, model, dtype, str(threads), str(vocab_size)]
        super().__init__(name, self.module, arguments, threads, peers)

    def run(self, workload: Workload) -> Run:
        """Run a workload. Raises `WorkerFailed`."""
        return Run(**self.ask(workload.name))
