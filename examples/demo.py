#!/usr/bin/env python3
"""Start a real server, send real requests, and show what the engine did for each answer.

`make demo` starts `koyeb_api_server.py` with the embedded pocket model, asks it in six scenes (one
question as a stream, six at once, a shared beginning, three answers to one prompt, an answer as
JSON, a question that needs a tool), prints the engine's own record after each, and leaves the
server up until Ctrl-C. With `--once`, or without a terminal, it stops the server and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import operator
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import httpx
import msgspec
from rich.console import Console
from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Table

from engine.trace.columns import RichPrinter
from engine.trace.command import run_command
from engine.trace.events import (
    AnyEvent,
    Event,
    RequestQueued,
    RequestReceived,
    SampleDrawn,
    StepFinished,
    StepPlanned,
)
from engine.trace.story import Line, Story

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 300
PORT = 8000  # where the client and the documents look for a server; if taken, any free one
RECORD_DELAY_S = 0.3  # the record is written about every 50 ms, from two processes

QUESTIONS = [
    "What is a token?",
    "What is a block table?",
    "What is prefill?",
    "What is continuous batching?",
    "What does temperature do?",
    "What is the capital of France?",
]
SYSTEM = (
    "You are the guide of a small museum. Your visitors want to know how a language model is"
    " served. Answer in two or three plain sentences, and say so when you do not know something."
)


CARD = {  # a JSON Schema
    "type": "object",
    "properties": {
        "topic": {"type": "string", "maxLength": 24},
        "holds": {"enum": ["keys and values", "weights", "prompts"]},
        "in_memory": {"type": "boolean"},
        "tokens_in_a_block": {"type": "integer", "minimum": 1, "maximum": 64},
    },
    "required": ["topic", "holds", "in_memory", "tokens_in_a_block"],
    "additionalProperties": False,
}
CALCULATOR = {
    "name": "calculator",
    "description": "Work out an arithmetic expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "for example 2 * (3 + 4)"}},
        "required": ["expression"],
    },
}
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
MOST_CALLS = 3  # to one question
CORRECTED = 4  # draws shown: those for which the model had most wanted another token
TOLD = ("grammar.compiled", "request.queued", "request.finished", "request.answered")


class Server:
    """Run the server process; hold its address, and the record that it writes.

    Raises SystemExit, with what the server said last, if it ends or isn't ready in time.
    """

    def __init__(self, folder: Path, console: Console):
        self.console = console
        self.trace_file = folder / "trace.jsonl"
        command = [sys.executable, str(ROOT / "koyeb_api_server.py"), "--port", str(_port())]
        command += ["--host", "127.0.0.1", "--trace-file", str(self.trace_file)]
        command += ["--log-format", "off"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.output: list[str] = []
        self._urls: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read_output, daemon=True).start()
        self.url = self._wait_until_ready()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.output.append(line)
                found = re.search(r"listens on (http://\S+)", line)
                if found:
                    self._urls.put(found.group(1))

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        url, said = "", ""
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                url = url or self._urls.get(timeout=0.1)
                health = httpx.get(f"{url}/health", timeout=2)
                if health.status_code == 200:
                    return url
                if said != (said := health.json().get("detail") or said):
                    self.console.print(f"[dim]  /health says: {said}[/]")
                time.sleep(0.1)
            except (queue.Empty, httpx.TransportError, ValueError):
                pass
        code = self.process.poll()
        self.process.kill()
        if code is not None:
            why = f"The server ended with code {code}. It wrote:\n{''.join(self.output[-20:])}"
        else:
            why = f"The server is not ready after {START_TIMEOUT_S} s. /health says: {said or '?'}"
        raise SystemExit(why)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)


def _port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            return 0  # any free port
    return PORT


class Record:
    """Print what the record gained since the last time."""

    def __init__(self, path: Path):
        self.file = path.open("rb")
        self.decoder = msgspec.json.Decoder(AnyEvent)
        self.story = Story(with_summaries=False)
        self.printer = RichPrinter(sys.stdout)

    def tell(
        self, choose: Callable[[list[Event], list[Line]], list[Line]] | None = None
    ) -> list[Event]:
        """Print the story of what is new, or the lines that are chosen; returns its events."""
        time.sleep(RECORD_DELAY_S)
        events = [self.decoder.decode(line) for line in self.file.read().split(b"\n") if line]
        lines = list(self.story.tell(events))
        self.printer(choose(events, lines) if choose else lines)
        return events


def what_the_grammar_corrected(events: list[Event], lines: list[Line]) -> list[Line]:
    """Choose the request's own lines, and the draws that the model had most wanted otherwise."""
    draws = [event for event in events if isinstance(event, SampleDrawn)]
    wanted = [draw.instead_of_probability for draw in draws]
    taken = sorted(range(len(draws)), key=wanted.__getitem__, reverse=True)[:CORRECTED]
    of_draws = [line for line in lines if line.kind == "sample.drawn"]
    shown = {id(of_draws[place]) for place in taken}
    return [line for line in lines if line.kind in TOLD or id(line) in shown]


def way_of_the_first_piece(events: list[Event], asked_ns: int, came_ns: int) -> str:
    """Say where the time until the first piece went, by the record's times.

    The record and this process read the same clock. Empty if the record lacks one of the moments.
    """
    received = next((e for e in events if isinstance(e, RequestReceived)), None)
    queued = next((e for e in events if isinstance(e, RequestQueued)), None)
    if received is None or queued is None:
        return ""
    drew = {
        plan.step
        for plan in events
        if isinstance(plan, StepPlanned)
        for row in plan.rows
        if row.request_id == queued.request_id and row.samples
    }
    first = next((e for e in events if isinstance(e, StepFinished) and e.step in drew), None)
    if first is None:
        return ""
    moments = [asked_ns, received.ts_ns, queued.ts_ns, first.ts_ns, came_ns]
    parts = [max(0.0, (after - before) / 1e6) for before, after in pairwise(moments)]
    names = [
        "to connect and to read the request, the first of both programs",
        "to make tokens of it and pass them on",
        "in the engine until its first token was drawn",
        "back",
    ]
    return "; ".join(f"{ms:.0f} ms {name}" for ms, name in zip(parts, names, strict=True))


async def stream(client: httpx.AsyncClient, request_id: str, **body) -> AsyncIterator[str]:
    """Yield the pieces of one chat answer as they come."""
    body = {"model": "pocket", "stream": True, "request_id": request_id, "temperature": 0} | body
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = msgspec.json.decode(line[6:])
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""


async def ask(client: httpx.AsyncClient, request_id: str, **body) -> dict:
    """Return one whole chat answer, with the seconds it took."""
    started = time.perf_counter()
    body = {"model": "pocket", "request_id": request_id, "temperature": 0, "max_tokens": 100} | body
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return response.json() | {"seconds": time.perf_counter() - started}


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def worked_out(arguments: str) -> str:
    """Do what the calculator is for: two whole numbers with a sign between them."""
    try:
        first, sign, second = str(json.loads(arguments)["expression"]).split()
        return str(SIGNS[sign](int(first), int(second)))
    except (ValueError, KeyError, TypeError) as error:
        return f"error: {error}"  # the model reads it


def what_was_called(_events: list[Event], lines: list[Line]) -> list[Line]:
    """Choose the lines about each request's beginning, its calls and its end."""
    return [line for line in lines if line.kind in (*TOLD, "tool.called", "tool.unreadable")]


class Demo:
    """Play the six scenes."""

    def __init__(self, client: httpx.AsyncClient, record: Record, console: Console):
        self.client, self.record, self.console = client, record, console

    def scene(self, number: int, title: str, text: str) -> None:
        self.console.print()
        self.console.print(Panel(text, title=f"{number}. {title}", title_align="left", width=100))

    def engine_says(
        self, choose: Callable[[list[Event], list[Line]], list[Line]] | None = None
    ) -> list[Event]:
        self.console.print("[bold]What the engine recorded[/] (time, step, request, what and why)")
        return self.record.tell(choose)

    async def one(self) -> None:
        question = "What is PagedAttention?"
        self.scene(1, "One question, streamed", "Every piece below is printed when it arrives.")
        self.console.print(f"[bold cyan]{question}[/]  ", end="")
        started, first, pieces = time.monotonic_ns(), 0, 0
        async for piece in stream(self.client, "one", messages=user(question), max_tokens=100):
            if piece:
                first = first or time.monotonic_ns()
                pieces += 1
                self.console.print(piece, end="", soft_wrap=True)
        total, until_first = time.monotonic_ns() - started, (first - started) / 1e6
        self.console.print(
            f"\n[dim]first piece after {until_first:.0f} ms;"
            f" {pieces} pieces in {total / 1e9:.2f} s[/]\n"
        )
        way = way_of_the_first_piece(self.engine_says(), started, first)
        if way:
            self.console.print(f"[dim]Of the {until_first:.0f} ms until the first piece: {way}.[/]")

    async def several(self) -> None:
        self.scene(
            2,
            "Six questions at once",
            "They share the steps: watch how many requests one step computes. The last question is"
            " one that the model was never taught.",
        )
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(
                ask(self.client, f"six-{i}", messages=user(question))
                for i, question in enumerate(QUESTIONS)
            )
        )
        total = time.perf_counter() - started
        self.table(QUESTIONS, answers)
        tokens = sum(a["usage"]["completion_tokens"] for a in answers)
        self.console.print(f"[dim]{tokens} tokens in {total:.2f} s: {tokens / total:.0f}/s[/]\n")
        self.engine_says()

    async def shared(self) -> None:
        questions = ["What is a KV cache?", "What is preemption?"]
        self.scene(
            3,
            "A shared beginning",
            "Both requests start with the same long instruction. The second finds its blocks in the"
            " prefix cache, and computes only what is new.",
        )
        answers = []
        for i, question in enumerate(questions):
            messages = [{"role": "system", "content": SYSTEM}, *user(question)]
            answers.append(await ask(self.client, f"shared-{i}", messages=messages))
        self.table(questions, answers)
        self.engine_says()

    async def siblings(self) -> None:
        self.scene(
            4,
            "Three answers to one prompt",
            "n = 3 at temperature 1: the prompt is computed once, its blocks are shared, and a"
            " block is copied only when a sibling writes into it.",
        )
        answer = await ask(
            self.client,
            "tales",
            messages=user("Please tell me a story about a fox."),
            n=3,
            temperature=1.0,
            seed=7,
            max_tokens=60,
        )
        for choice in answer["choices"]:
            self.console.print(f"[cyan]{choice['index'] + 1}.[/] {choice['message']['content']}")
        self.console.print()
        self.engine_says()

    async def form(self) -> None:
        self.scene(
            5,
            "An answer that follows a form",
            "The model was never taught JSON. A grammar made of the schema forbids every token that"
            " would break it, so that any text it can write is right.",
        )
        fields = CARD["properties"].items()
        for name, schema in fields:
            self.console.print(f"[dim]{name}: {json.dumps(schema)}[/]", soft_wrap=True)
        question = "What is a KV cache?"
        self.console.print(f"[bold cyan]{question}[/]")
        schema = {"name": "card", "schema": CARD}
        answer = await ask(
            self.client,
            "card",
            messages=user(question),
            response_format={"type": "json_schema", "json_schema": schema},
            trace="full",
        )
        card = json.loads(answer["choices"][0]["message"]["content"])
        self.console.print_json(data=card)
        self.console.print()
        events = self.engine_says(what_the_grammar_corrected)
        draws = [event for event in events if isinstance(event, SampleDrawn)]
        took = sum(draw.removed for draw in draws) / len(draws)
        other = sum(draw.instead_of >= 0 for draw in draws)
        self.console.print(
            f"[dim]Of {len(draws)} tokens the model would have drawn {other} otherwise; the grammar"
            f" took {took:.0%} of its probability on average. Above: the {CORRECTED} that it was"
            " surest of.[/]"
        )

    async def agent(self) -> None:
        self.scene(
            6,
            "A question that needs a tool",
            "The model can't do arithmetic, but it was taught to ask a calculator. The server hands"
            " over what the model wants to call; the program that asked runs it, and asks again.",
        )
        question = "What is 12 times 34?"
        self.console.print(f"[bold cyan]{question}[/]")
        messages = user(question)
        for turn in range(MOST_CALLS):
            answer = await ask(
                self.client,
                f"agent-{turn}",
                messages=messages,
                tools=[{"type": "function", "function": CALCULATOR}],
            )
            message = answer["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                self.console.print(f"[cyan]the model answers[/] {message['content']}")
                break
            for call in message["tool_calls"]:
                asked = call["function"]
                told = worked_out(asked["arguments"])
                self.console.print(
                    f"[cyan]the model calls[/] {asked['name']} {asked['arguments']}"
                    f" [cyan]→[/] {told}"
                )
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": told})
        self.console.print()
        self.engine_says(what_was_called)

    def table(self, questions: list[str], answers: list[dict]) -> None:
        table = Table(width=100, show_lines=False, header_style="bold")
        table.add_column("question", style="cyan", ratio=3)
        table.add_column("answer", ratio=8)
        table.add_column("tokens", justify="right", width=6)
        table.add_column("cached", justify="right", width=6)
        table.add_column("s", justify="right", width=5)
        for question, answer in zip(questions, answers, strict=True):
            usage = answer["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            text = answer["choices"][0]["message"]["content"].strip()
            table.add_row(
                question,
                text,
                str(usage["completion_tokens"]),
                str(cached),
                f"{answer['seconds']:.2f}",
            )
        self.console.print(table)


NEXT = """
**What to try next**

- {address} in a browser: the Engine Room, the engine at work
- in a second terminal `.venv/bin/python test_client.py{url} --interactive`: ask something, then
  `/why`
- `.venv/bin/python test_client.py{url} --test all` judges the running server
- in place of this one, a server with little memory:
  `.venv/bin/python koyeb_api_server.py --num-gpu-blocks-override 24 --log-format rich`; now let
  `.venv/bin/python test_client.py --test batch` ask eight questions at once, and watch requests
  wait, be preempted, and come back
- `make real`: the server with a real model, SmolLM2-135M; ask it in the same ways
- `docs/START_HERE.md` says where to read on
"""


async def scenes(console: Console, server: Server) -> None:
    record = Record(server.trace_file)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        console.print("[bold]What the engine recorded while it started[/]")
        record.tell()
        demo = Demo(client, record, console)
        await demo.one()
        await demo.several()
        await demo.shared()
        await demo.siblings()
        await demo.form()
        await demo.agent()


def stay(console: Console, server: Server) -> None:
    """Leave the server up until Ctrl-C, or until it ends by itself."""
    own = "" if server.url.endswith(f":{PORT}") else f" --url {server.url}"
    console.print(Markdown(NEXT.format(address=f"<{server.url}>", url=own)))
    console.print(f"\n[bold]The server is still up: {server.url}[/]  (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        server.process.wait()
    console.print()


def main() -> int:
    """Run the demo; returns the server's exit code."""
    parser = argparse.ArgumentParser(description="Ask a real server, and see what it does.")
    parser.add_argument(
        "--once", action="store_true", help="stop the server at the end, in place of Ctrl-C"
    )
    once = parser.parse_args().once or not sys.stdin.isatty()
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        console.print("Starting the server with the embedded pocket model …")
        console.print("[dim](the very first start also compiles its kernels)[/]")
        server = Server(Path(folder), console)
        console.print(f"It answers at {server.url} after {time.perf_counter() - started:.1f} s.\n")
        try:
            asyncio.run(scenes(console, server))
            if not once:
                stay(console, server)
        except KeyboardInterrupt:
            console.print()
        finally:
            code = server.stop()
    console.print(f"\nThe server was told to stop and exited with code {code}.")
    return code


if __name__ == "__main__":
    run_command(main)
