"""Record real runs of the engine for the documents: `python -m docs.scripts.record`.

Each record in docs/records/ is what a server wrote with --trace-file (or gave at /trace) while it
answered the requests below. LOG_GUIDE.md and the figures are made from these files, so they show
what really happened. Record again when the engine has changed what it does; the other scripts only
read.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from docs.scripts.server import ROOT, LocalServer
from engine.trace.command import run_command
from engine.trace.diff import where_they_part
from engine.trace.files import read_all

RECORDS = ROOT / "docs" / "records"
POCKET = Path("pocket/model")

COUNT = "Explain continuous batching, paging, preemption and the prefix cache, one after another."
LENGTHS = (80, 20, 60, 40, 24, 56)
GUIDE = (
    "You are the guide of a small museum. Visitors want to know how a language model is served."
    " Answer in two or three plain sentences, and say so when you do not know something. Nobody has"
    " to have read anything before: explain a word where you use it for the first time."
)
TOPICS = [
    "What is a token?",
    "What is a block table?",
    "What is prefill?",
    "What is continuous batching?",
    "What does temperature do?",
    "What is a KV cache?",
    "What is preemption?",
    "What is a prefix cache?",
]


class Client:
    """Send requests to the server, and raise for an unexpected answer."""

    def __init__(self, http: httpx.AsyncClient):
        self.http = http

    async def ask(self, request_id: str, question: str, status: int = 200, **fields) -> dict:
        body = {"model": "pocket", "request_id": request_id, "max_tokens": 48, "temperature": 0}
        body |= {"messages": [{"role": "user", "content": question}], **fields}
        answer = await self.http.post("/v1/chat/completions", json=body)
        if answer.status_code != status:
            raise RuntimeError(f"{request_id}: HTTP {answer.status_code}: {answer.text}")
        return answer.json()

    async def leave_early(self, request_id: str, question: str) -> None:
        """Read two pieces of a stream, then disconnect."""
        body = {"model": "pocket", "request_id": request_id, "stream": True, "ignore_eos": True}
        body |= {"messages": [{"role": "user", "content": question}], "max_tokens": 400}
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            for _ in range(6):
                await anext(lines)
        await asyncio.sleep(0.3)


async def tour(client: Client) -> None:
    """Send one request after another; each id says what its request shows."""
    await client.ask("first", f"{TOPICS[5]} {COUNT}", trace="full", max_tokens=4)
    await client.ask("again", f"{TOPICS[5]} {COUNT}")
    await client.ask("other", f"{TOPICS[0]} {COUNT}")
    await client.ask("warm", "Tell me a story about a fox.", trace="full", max_tokens=4,
                     temperature=1.0, top_k=20, top_p=0.9, seed=7)  # fmt: skip
    # One of the two prompts ends inside a block, which its sequences then share.
    await client.ask("three", "Tell me a story about a bear.", n=3, temperature=1.2, seed=7,
                     max_tokens=24, ignore_eos=True)  # fmt: skip
    await client.ask("trio", "Tell me a story about a brown bear.", n=3, temperature=1.2, seed=7,
                     max_tokens=24, ignore_eos=True)  # fmt: skip
    await client.ask("length", TOPICS[3], max_tokens=8, ignore_eos=True)
    text = (await client.ask("ends", TOPICS[3]))["choices"][0]["message"]["content"]
    stop = text[8:14]  # it occurs: it is part of the answer to the same prompt
    await client.ask("stops", TOPICS[3], stop=stop, trace="full")
    await client.leave_early("leaves", TOPICS[4])
    await asyncio.gather(*(client.ask(f"six-{i}", TOPICS[i], max_tokens=12) for i in range(6)))


async def crowd(client: Client) -> None:
    """Ask for eight long answers on a pool that holds three: some wait, and some are preempted."""
    await client.ask("too-long", "word " * 400, status=400)
    questions = [f"{topic} {COUNT}" for topic in TOPICS]
    await asyncio.gather(
        *(
            client.ask(f"crowd-{i}", question, max_tokens=64, ignore_eos=True)
            for i, question in enumerate(questions)
        )
    )


async def seats(client: Client) -> None:
    """Ask for six answers of different lengths on three seats: a free seat is taken immediately."""
    asked = [client.ask(f"seat-{i}", TOPICS[i], max_tokens=length, ignore_eos=True)
             for i, length in enumerate(LENGTHS)]  # fmt: skip
    await asyncio.gather(*asked)


async def shared(client: Client) -> None:
    """Send one long instruction: the first request computes it, five others find its blocks."""
    guide = {"role": "system", "content": GUIDE}
    asked = [
        {"messages": [guide, {"role": "user", "content": topic}], "max_tokens": 40}
        for topic in TOPICS[:6]
    ]
    await client.ask("shared-0", "", **asked[0])
    await asyncio.gather(
        *(client.ask(f"shared-{i}", "", ignore_eos=True, **asked[i]) for i in range(1, 6))
    )


async def forks(client: Client) -> None:
    """Ask for four answers to one prompt, twice: its last block is copied at the first write."""
    fields = {"n": 4, "temperature": 1.0, "max_tokens": 40, "ignore_eos": True, "trace": "full"}
    await asyncio.gather(
        client.ask("tales", "Tell me a story about a brown bear.", seed=7, **fields),
        client.ask("answers", f"{TOPICS[6]} {COUNT}", seed=8, **fields),
    )


async def bystander(client: Client) -> None:
    """Let somebody read a stream while a long prompt comes."""
    await client.ask("before", f"{COUNT} " * 60, max_tokens=4)  # memory is touched, code is loaded
    body = {"model": "pocket", "request_id": "reads", "stream": True, "ignore_eos": True}
    body |= {"messages": [{"role": "user", "content": TOPICS[0]}], "max_tokens": 120}
    async with client.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.aiter_lines()
        for _ in range(60):
            await anext(lines)
        long = asyncio.create_task(client.ask("long", f"{GUIDE} " * 12 + TOPICS[3], max_tokens=4))
        async for _line in lines:
            pass
    await long


async def overlapped(client: Client) -> None:
    """Ask for two answers while the next step is planned before this one has ended."""
    await asyncio.gather(
        *(client.ask(f"two-{i}", TOPICS[i], max_tokens=24, ignore_eos=True) for i in range(2))
    )


async def form(client: Client) -> None:
    """Ask for an answer that follows a schema."""
    properties = {
        "cached": {"type": "boolean"},
        "blocks": {"type": "integer", "minimum": 1, "maximum": 64},
        "state": {"enum": ["waiting", "running", "preempted"]},
    }
    schema = {"type": "object", "properties": properties, "required": list(properties),
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "request", "schema": schema}}
    await client.ask("form", TOPICS[5], response_format=wanted, trace="full", temperature=1.0,
                     seed=7)  # fmt: skip


async def repeats(client: Client) -> None:
    """Ask for a text that repeats itself, since a penalty below 1 rewards that: tokens are
    proposed."""
    words = "one two three four five six seven eight nine ten eleven twelve. "
    await client.ask("repeats", words * 4, max_tokens=60, temperature=0.0,
                     repetition_penalty=0.7, ignore_eos=True)  # fmt: skip


async def profile(client: Client) -> None:
    """Send one request, with each of its kernels timed."""
    await client.ask("timed", f"{TOPICS[5]} {COUNT}", max_tokens=4)


async def dropped(client: Client) -> None:
    """Send more than the server keeps of its record."""
    await client.ask("gone", TOPICS[1], max_tokens=60, ignore_eos=True)
    await asyncio.gather(*(client.ask(f"late-{i}", TOPICS[i], max_tokens=24) for i in range(3)))
    await asyncio.sleep(0.5)  # the last events are still on their way


SMALL = ("--num-gpu-blocks-override", "20", "--max-num-seqs", "5", "--max-num-batched-tokens", "64")
LOOKUP = '{"method": "ngram", "num_speculative_tokens": 4}'
RUNS: dict[str, tuple[tuple[str, ...], Callable[[Client], Awaitable[None]]]] = {
    "tour": (("--num-gpu-blocks-override", "256", "--max-num-seqs", "8"), tour),
    "seats": (("--num-gpu-blocks-override", "128", "--max-num-seqs", "3"), seats),
    "crowd": ((*SMALL, "--preemption-mode", "auto"), crowd),
    "shared": (("--num-gpu-blocks-override", "64", "--max-num-seqs", "8"), shared),
    "forks": (("--num-gpu-blocks-override", "96", "--max-num-seqs", "12"), forks),
    "at-once": (("--num-gpu-blocks-override", "160"), bystander),
    "chunks": (("--num-gpu-blocks-override", "160", "--max-num-batched-tokens", "64"), bystander),
    "async": (("--num-gpu-blocks-override", "64", "--async-scheduling"), overlapped),
    "form": (("--num-gpu-blocks-override", "64"), form),
    "repeats": (("--num-gpu-blocks-override", "64", "--speculative-config", LOOKUP), repeats),
    "profile": (("--num-gpu-blocks-override", "128", "--trace", "profile"), profile),
    "dropped": (("--num-gpu-blocks-override", "64", "--trace-buffer", "150"), dropped),
    "crowd-recompute": ((*SMALL, "--preemption-mode", "recompute"), crowd),
}


DOWNLOADED = {"dropped"}  # records that GET /trace returned at the end, in place of --trace-file
BESIDE = {"crowd-recompute": ("crowd", "preempted")}
"""Record → the one that it is read beside, and what the first decision that differs is about. A
request that came a step later would differ earlier, so the run is repeated."""
TRIES = 20


def record(name: str, model: Path) -> Path:
    """Run one of `RUNS`, again until it can be read beside the other, and write its record."""
    path = RECORDS / f"{name}.jsonl"
    if name not in BESIDE:
        return run_once(name, model).replace(path)
    other, about = BESIDE[name]
    for _ in range(TRIES):
        new = run_once(name, model)
        part = where_they_part(read_all(RECORDS / f"{other}.jsonl"), read_all(new))
        if part is not None and about in part.first.words and about in part.second.words:
            return new.replace(path)
    new.unlink()  # the old record stays
    raise RuntimeError(f"{name}: in {TRIES} runs requests came in other steps than in {other}")


def run_once(name: str, model: Path) -> Path:
    """Run one of `RUNS` and write its record beside the old one, which stays if the run fails."""
    flags, scene = RUNS[name]
    model_flags = ("--model", str(model), "--served-model-name", "pocket")
    new = RECORDS / f"{name}.new"
    record_flags = ("--trace-file", str(new.relative_to(ROOT)), "--log-format", "off")

    downloaded: list[bytes] = []

    async def run(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            await scene(Client(http))
            if name in DOWNLOADED:
                downloaded.append((await http.get("/trace")).content)

    with LocalServer(*model_flags, *record_flags, *flags) as server:
        asyncio.run(run(server.url))
    if server.exit_code:
        raise RuntimeError(f"the server ended with {server.exit_code}:\n{''.join(server.output)}")
    if downloaded:
        new.write_bytes(downloaded[0])
    return new


def main(argv: list[str]) -> int:
    """Record all runs, or the named ones. `--model FOLDER` (relative) for another model."""
    model = POCKET
    if "--model" in argv:
        model = Path(argv.pop(argv.index("--model") + 1))
        argv.remove("--model")
    if not (ROOT / model / "config.json").is_file():
        print(f"record: there is no model in {model}", file=sys.stderr)
        return 2
    RECORDS.mkdir(exist_ok=True)
    for name in argv or RUNS:
        path = record(name, model)
        with contextlib.suppress(ValueError):
            path = path.relative_to(ROOT)
        print(f"{path}: {(ROOT / path).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
