"""Compare the engine with vLLM, llama.cpp and transformers, in one run on the same cores.

    python -m benchmarks.peers [--quick] [--shapes pocket …] [--dtypes bfloat16 …]
        [--workloads W1 …] [--only vLLM …] [--out FOLDER]

Same weights, same dtype, same threads, same requests. What is measured in process is compared with
ours in process, what is a server with our server, by the same client. The systems of a group are
loaded together and take turns; their processes end with the group. `peers.json` (every run),
`peers.md` and `peers.svg` are written after each group, and a later call replaces only what it
measured again: a long comparison can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.machine import busy_cores, cpu_name
from benchmarks.machine_folder import machine_folder
from benchmarks.peers import chart, results, servers
from benchmarks.peers.client import WrongAnswer
from benchmarks.peers.in_process import InProcess, WorkerFailed
from benchmarks.peers.install import PEERS_DIR, Peers
from benchmarks.peers.results import ENGINE
from benchmarks.peers.servers import Server, ServerFailed
from benchmarks.peers.tokenizer import save_stand_in
from benchmarks.shape_names import LARGE_SHAPES, SHAPES
from benchmarks.shapes import shape, weights_for
from benchmarks.workloads import Workload, workloads
from engine.trace.command import run_command
from engine.worker.host import physical_cores

REPEATS = 3
PEERS = ("vLLM", "transformers", "llama.cpp")
QUIET = 0.04  # of a core: with more work beside the measurement, its figures are noise
REST_S = 0.5  # before each run: threads of the system before it may still spin

System = InProcess | Server
Failures = (WorkerFailed, ServerFailed, WrongAnswer)


class Session:
    """Hold one call of the command: what is asked for, what was measured, what was left out."""

    results = "peers"  # the files that it writes, without their endings

    def __init__(self, given: argparse.Namespace, peers: Peers):
        self.given = given
        self.peers = peers
        self.id = time.strftime("%Y-%m-%d %H:%M:%S")
        self.rows: list[dict] = []
        self.about: dict = {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": given.threads,
            "versions": {},
            "load_s": {},
            "idle_cores": 0.0,
            "own_weights": [],  # shapes with a model's own weights; the others' are random
            "left_out": [],
        }

    def leave_out(self, why: str) -> None:
        print(f"  left out: {why}", flush=True)
        self.about["left_out"].append(why.splitlines()[0])

    def starters(
        self, name: str, dtype: str, model: Path, vocab_size: int
    ) -> dict[str, dict[str, Callable[[], System]]]:
        """Return how each system is started, by transport.

        Ours first, then the peers that are there.
        """
        given, peers = self.given, self.peers
        in_process: dict[str, Callable[[], System]] = {
            system: lambda s=system: InProcess(  # type: ignore[misc]
                s, str(model), dtype, given.threads, vocab_size, peers
            )
            for system in (ENGINE, "vLLM", "transformers")
            if system == ENGINE or system in given.only
        }
        http: dict[str, Callable[[], System]] = {}
        if "llama.cpp" in given.only:
            if shape(name).model_type == "opt":
                self.leave_out(f"llama.cpp on {name}: it has no OPT")
            else:
                http[ENGINE] = lambda: servers.glasshouse(str(model), dtype, given.threads, peers)
                http["llama.cpp"] = lambda: servers.llama_cpp(
                    str(servers.converted(name, model, dtype, peers)), dtype, given.threads, peers
                )
        return {"in process": in_process if len(in_process) > 1 else {}, "HTTP": http}

    @contextmanager
    def started(self, starters: dict[str, Callable[[], System]]) -> Iterator[list[System]]:
        """Start the systems, and yield those that came up; they end with the block."""
        up: list[System] = []
        try:
            for name, start in starters.items():
                try:
                    up.append(start())
                except Failures as error:
                    self.leave_out(str(error))
                    continue
                self.about["versions"].setdefault(name, {}).update(up[-1].versions)
                self.about["load_s"].setdefault(name, []).append(round(up[-1].load_s, 1))
                print(f"  {name}: ready after {up[-1].load_s:.0f} s", flush=True)
            yield up
        finally:
            for system in up:
                system.close()

    def measure(self, name: str, dtype: str) -> None:
        """Measure everything of one shape in one dtype."""
        model, vocab_size = model_folder(name, dtype), shape(name).vocab_size
        works = workloads(vocab_size)
        if PEERS_DIR not in model.parents and name not in self.about["own_weights"]:
            self.about["own_weights"].append(name)
        for transport, starters in self.starters(name, dtype, model, vocab_size).items():
            if starters:
                print(f"{name}, {dtype}, {transport}", flush=True)
                self.take_turns(starters, works, {"shape": name, "dtype": dtype})

    def take_turns(
        self,
        starters: dict[str, Callable[[], System]],
        works: dict[str, Workload],
        labels: dict[str, str],
    ) -> None:
        """Start the systems of a group, measure them in turns, and save what came out."""
        with self.started(starters) as systems:
            self._check_quiet()
            self._turns(systems, works, labels)
        self.save()

    def _check_quiet(self) -> None:
        """Check the machine while all systems sleep: other work disturbs the figures."""
        time.sleep(1)
        busy = busy_cores()
        self.about["idle_cores"] = max(self.about["idle_cores"], round(busy, 3))
        if busy > QUIET:
            print(f"  not quiet: {100 * busy:.0f} % of a core is busy with other work", flush=True)

    def _turns(self, systems: list[System], works: dict[str, Workload], labels: dict) -> None:
        """Warm up, then run each system in each repeat, starting with another one every time."""
        wanted = [works[name] for name in self.given.workloads]
        warm = [works[name] for name in ("W1", "W4")]
        if set(self.given.workloads) & {"W2", "W3"}:
            warm.append(works["W2"])
        for system in list(systems):
            short = warm[:2] if system.name == "transformers" else warm
            self._try(systems, system, short, lambda run, work: None)
        for work in wanted:
            for repeat in range(self.given.repeats):
                first = repeat % max(1, len(systems))
                for system in [*systems[first:], *systems[:first]]:
                    if repeat and system.name == "transformers" and work.name in ("W2", "W3"):
                        continue  # a minute long: its own noise averages out

                    def keep(run, work, system=system, repeat=repeat):
                        about = {"system": system.name, "transport": system.transport}
                        about |= {"session": self.id, "repeat": repeat}
                        kept = results.row(run, work, **labels, **about)
                        self.rows.append(kept)
                        print(
                            f"  {work.name} {system.name}: {results.speed(kept):,.1f} tokens/s",
                            flush=True,
                        )

                    time.sleep(REST_S)
                    self._try(systems, system, [work], keep)

    def _try(
        self, systems: list[System], system: System, works: list[Workload], then: Callable
    ) -> None:
        """Run a system; one that fails is left out from here on."""
        try:
            for work in works:
                then(system.run(work), work)
        except Failures as error:
            self.leave_out(str(error))
            system.close()
            systems.remove(system)

    def save(self) -> None:
        """Write the files, with what earlier sessions on this machine measured."""
        folder = self.given.out
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.results}.json"
        old = json.loads(path.read_text()) if path.exists() else {"sessions": {}, "runs": []}
        here = {
            number: about
            for number, about in old["sessions"].items()
            if about["cpu"] == self.about["cpu"] and number != self.id
        }
        kept = [run for run in old["runs"] if run["session"] in here]
        rows = results.merge(kept, self.rows)
        sessions = {**here, self.id: self.about}
        sessions = {number: sessions[number] for number in sorted({r["session"] for r in rows})}
        lines = results.summary(rows)
        whole = {"sessions": sessions, "summary": lines, "runs": rows}
        path.write_text(json.dumps(whole, indent=1) + "\n")
        path.with_suffix(".md").write_text(results.markdown(lines, sessions))
        path.with_suffix(".svg").write_text(chart.svg(lines))


def model_folder(name: str, dtype: str) -> Path:
    """Make the weights of a shape once: the same for every system and every session."""
    if name == "pocket":
        return Path(weights_for(name, PEERS_DIR, getattr(torch, dtype)))
    parent = PEERS_DIR / "models" / dtype
    folder = parent / name
    if not (folder / "tokenizer_config.json").exists():  # written last
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(weights_for(name, parent, getattr(torch, dtype)))
        if made != folder:  # real ones, with their own tokenizer
            return made
        about = shape(name)
        save_stand_in(folder, about.vocab_size, about.eos_token_id)
    return folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command that compares systems takes."""
    parser.add_argument("--workloads", nargs="+", choices=["W1", "W2", "W3", "W4"])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--out", type=Path, default=machine_folder())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    everything = [*SHAPES, *LARGE_SHAPES]
    parser.add_argument("--shapes", nargs="+", choices=everything, default=everything)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=["bfloat16", "float32"],
        default=["bfloat16", "float32"],
    )
    parser.add_argument("--only", nargs="+", choices=PEERS, help="these peers; ours always runs")
    parser.add_argument("--quick", action="store_true", help="one repeat, bfloat16, no W3")
    add_options(parser)
    given = parser.parse_args()
    if given.quick:
        given.repeats, given.dtypes = 1, ["bfloat16"]
    given.workloads = given.workloads or (
        ["W1", "W2", "W4"] if given.quick else list(workloads(99))
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the systems end too
    peers = Peers()
    asked = given.only or PEERS
    there = {"vLLM": peers.has_vllm, "llama.cpp": peers.has_llama, "transformers": True}
    given.only = [name for name in asked if there[name]]
    session = Session(given, peers)
    for name in asked:
        if not there[name]:
            session.leave_out(f"{name}: not installed; python -m benchmarks.peers.install '{name}'")
    for dtype in given.dtypes:
        for name in given.shapes:
            session.measure(name, dtype)
    if not session.rows:
        print("nothing was measured")
        return 1
    print((given.out / "peers.md").read_text())
    return 0


if __name__ == "__main__":
    run_command(main)
