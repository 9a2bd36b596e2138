"""Measure what a streamed token costs the server: CPU time between the engine and the sockets.

    python -m benchmarks.token_cost     writes benchmarks/results/<machine>/token_cost.{json,md}

The engine process is ours, with a worker that computes nothing: it draws a token for every row and
sleeps until its step is over. 1, 16 and 64 clients read streams of the pocket model's tokenizer.
CPU time of all threads of the server's processes counts, the record's included; the engine and the
clients are other processes. A server that is slower than the engine's steps writes several tokens
together, which is cheaper: "tokens a read" shows it. `--stream-interval` does so by intent: it is
measured with 1, the default, and with 4. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import selectors
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks.footprint import processes
from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from engine.config import POCKET_MODEL, EngineConfig
from engine.core.messages import KVShape, StepOutput, StepPlan
from engine.trace.command import run_command

STEP_S = {1: 0.002, 16: 0.004, 64: 0.012}
"""Seconds of a step, by streams: longer than the server needs for its tokens."""
INTERVALS = (1, 4)
"""Values of `--stream-interval`."""
ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
MEASURED_S = 2.0
REPEATS = 5
LETTERS = range(300, 900)  # ids of the pocket model that are parts of words
READY_S = 60
PIECE = 2**16
END = b"data: [DONE]"
GENERATED = re.compile(rb"^vllm:generation_tokens_total{.*} (.+)$", re.MULTILINE)


class Letters:
    """Draw the next of LETTERS for every row, after a pause, in place of a worker."""

    def __init__(self, step_s: float):
        self.step_s = step_s
        self.kv = KVShape(
            num_blocks=64 * 512,
            num_host_blocks=0,
            block_size=16,
            bytes_per_block=0,
            max_model_len=8192,
            vocab_size=2048,
        )

    def execute(self, plan: StepPlan) -> StepOutput:
        time.sleep(self.step_s)
        token = LETTERS[plan.step % len(LETTERS)]
        return StepOutput(step=plan.step, tokens=[[token] * row.samples for row in plan.rows])


def load_letters(step_s: float, *_: object) -> Letters:
    """Stand in for `load_worker`."""
    return Letters(step_s)


def run_server(port: int, step_s: float, options: dict[str, Any]) -> None:
    """Run our server on that engine, until SIGTERM."""
    # By this name the engine process finds it, too.
    from benchmarks.token_cost import load_letters
    from engine.server.lifecycle import serve

    config = EngineConfig(
        model=POCKET_MODEL,
        host="127.0.0.1",
        port=port,
        log_format="off",
        max_num_seqs=64,
        enable_prefix_caching=False,
        **options,
    )
    serve(config, partial(load_letters, step_s))


@contextmanager
def server(step_s: float, **options: Any) -> Iterator[tuple[int, int]]:
    """Start it; yield its port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=run_server, args=(port, step_s, options)
    )
    process.start()
    try:
        deadline = time.monotonic() + READY_S
        while b" 200 " not in _asked(port, b"GET /health HTTP/1.0\r\nHost: x\r\n\r\n"):
            if time.monotonic() > deadline or not process.is_alive():
                raise RuntimeError("the server was not ready in time")
            time.sleep(0.1)
        assert process.pid is not None
        yield port, process.pid
    finally:
        process.terminate()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _asked(port: int, request: bytes) -> bytes:
    """Return the beginning of an answer, nothing if nobody listens yet."""
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request)
            return connection.recv(PIECE)
    except ConnectionError:
        return b""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a server's processes but its engine's, of all their threads."""
    total = 0
    for number, role in processes(pid).items():
        if role == "engine":
            continue
        for thread in os.listdir(f"/proc/{number}/task"):
            with open(f"/proc/{number}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def generated(port: int) -> float:
    """Return the tokens that the server has sent on, as its metrics count them."""
    pieces = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
        while piece := connection.recv(PIECE):
            pieces.append(piece)
    found = GENERATED.search(b"".join(pieces))
    if found is None:
        raise RuntimeError("the server's metrics don't count tokens")
    return float(found[1])


class Streams:
    """Read streams, one a connection, and count reads and events."""

    def __init__(self, port: int, route: str, num: int, max_tokens: int = 8000):
        body: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        if route == "chat":
            body["messages"] = [{"role": "user", "content": "Tell me a story."}]
        else:
            body["prompt"] = "Once upon a time"
        data = json.dumps(body).encode()
        head = f"POST {ROUTES[route]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.reads = 0
        self.events = 0
        self._selector = selectors.DefaultSelector()
        self._connections = []
        self._tails: dict[int, bytes] = {}  # what each connection brought last
        for _ in range(num):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
            self._selector.register(connection, selectors.EVENT_READ)
            self._connections.append(connection)
            self._tails[connection.fileno()] = b""

    def read(self, seconds: float, events: int = 1) -> None:
        """Read for this time, longer until `events` have come.

        Raises `RuntimeError` when a stream ends, or when they don't come within READY_S more.
        """
        end, wanted = time.monotonic() + seconds, self.events + events
        while (left := end - time.monotonic()) > 0 or self.events < wanted:
            if left < -READY_S:
                raise RuntimeError(f"the server sent nothing for {READY_S} s")
            for key, _ in self._selector.select(max(left, 0.1)):
                data = key.fileobj.recv(PIECE)  # type: ignore[union-attr]
                # A stream that is over leaves its connection open: time would pass without tokens.
                if not data or END in self._tails[key.fd] + data:
                    raise RuntimeError("a stream ended while it was measured: ask for more tokens")
                self._tails[key.fd] = data[-len(END) :]
                self.events += data.count(b"data: ")
                self.reads += 1

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._selector.close()


def token_cost(port: int, pid: int, route: str, num: int) -> dict[str, float]:
    """Return microseconds of CPU a token, and tokens a second, of `num` streams at once."""
    streams = Streams(port, route, num)
    try:
        streams.read(1.0)
        tokens, reads, cpu, began = generated(port), streams.reads, cpu_s(pid), time.monotonic()
        streams.read(MEASURED_S)
        cpu, took = cpu_s(pid) - cpu, time.monotonic() - began
        tokens, reads = generated(port) - tokens, streams.reads - reads
    finally:
        streams.close()
    return {
        "us": 1e6 * cpu / tokens,
        "tokens_per_s": tokens / took,
        "tokens_a_read": tokens / reads,
    }


def measure(repeats: int, streams: list[int]) -> list[dict[str, Any]]:
    """Return one row for each case, over interleaved repeats."""
    rows = []
    for num in streams:
        seen: dict[tuple[int, str], list[dict[str, float]]] = {
            (interval, route): [] for interval in INTERVALS for route in ROUTES
        }
        with ExitStack() as stack:
            servers = {
                interval: stack.enter_context(server(STEP_S[num], stream_interval=interval))
                for interval in INTERVALS
            }
            for _ in range(repeats):
                for (interval, route), runs in seen.items():
                    runs.append(token_cost(*servers[interval], route, num))
        rows += [
            {"streams": num, "route": route, "stream_interval": interval, "runs": runs}
            for (interval, route), runs in seen.items()
        ]
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"Measured on {cpu_name()}, Python {platform.python_version()},"
        f" {time.strftime('%Y-%m-%d')}: µs of CPU of the server's process for each streamed token,"
        " with an engine that computes nothing.",
        "",
        "| route | streams | `--stream-interval` | tokens/s | tokens a read | least µs"
        " | median µs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        us, pace, read = (
            [run[key] for run in row["runs"]] for key in ("us", "tokens_per_s", "tokens_a_read")
        )
        lines.append(
            f"| {row['route']} | {row['streams']} | {row['stream_interval']}"
            f" | {statistics.median(pace):,.0f}"
            f" | {statistics.median(read):.2f} | {min(us):.1f} | {statistics.median(us):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the machine's files, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--streams", type=int, nargs="+", choices=STEP_S, default=list(STEP_S))
    given = parser.parse_args()
    rows = measure(given.repeats, given.streams)
    keep_results(machine_folder(), "token_cost", rows, markdown(rows))


if __name__ == "__main__":
    run_command(main)
