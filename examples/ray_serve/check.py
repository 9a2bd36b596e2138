"""Try the application on this machine: kill, replace and compare, and keep the figures.

`python -m examples.ray_serve.check` needs two cores and some minutes; `--scene cost` runs one
scene. It fails where a request ends without an answer or an error, is computed twice, or is lost in
an update.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from engine.trace.command import run_command
from examples.ray_serve.cluster import running
from examples.ray_serve.load import Load, Outcome, ask, body_of, names
from examples.ray_serve.one_core_each import one_core_each
from examples.ray_serve.processes import cpu_seconds, descendants, memory_mb, without_servers
from examples.ray_serve.replacing import replaced, routed
from examples.ray_serve.settings import Settings, read

Figures = dict[str, Any]

RESULTS = Path(__file__).with_name("results.json")
FLAGS = ["--replicas", "2", "--cpus", "1", "--max-num-seqs", "8", "--log-format", "off"]
KINDS = ("proxy", "door", "replica", "server")
AT_ONCE_S = 5.0  # from the kill to its requests' errors, on a busy machine


async def killed(client: httpx.AsyncClient, what: str, kind: str) -> Figures:
    """Kill -9 one process under load, and return what became of all requests."""
    async with Load(client, what) as load:
        got = load.outcomes
        await load.until("both replicas answer", lambda: len(names(got)) == 2 and len(got) >= 24)
        before = names(got)
        victim = next(process for process in descendants() if process.kind == kind)
        killed_at = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        await load.until("a request of it fails", lambda: any(o.error for o in got))
        await load.until("a successor answers", lambda: bool(names(got) - before))
        back_s = time.monotonic() - killed_at
    failed = [o for o in got if o.error]
    slowest_s = max(o.ended - max(o.begun, killed_at) for o in failed)
    alive = names(o for o in got if o.begun > killed_at) & before
    assert len(alive) == 1, f"of {before}, {alive} went on"
    assert not {o.replica for o in failed} & alive, "requests of the other replica failed"
    assert slowest_s < AT_ONCE_S, f"an error took {slowest_s:.1f} s"
    await not_twice(client, names(got) - (before - alive), got)
    return {
        "requests": len(got),
        "answered": len(got) - len(failed),
        "errors in a stream": sum(o.status == 200 for o in failed),
        "errors by status": sum(o.status != 200 for o in failed),
        "slowest error, s": round(slowest_s, 2),
        "successor after, s": round(back_s, 1),
    }


async def server_killed(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Kill -9 the server of a replica."""
    return await killed(client, "server", "server")


async def replica_killed(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Kill -9 the process of a replica; its server must end with it."""
    return await killed(client, "replica", "replica")


async def updated(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Replace both replicas under load; every request must be answered."""
    async with Load(client, "update") as load:
        got = load.outcomes
        await load.until("both replicas answer", lambda: len(names(got)) == 2 and len(got) >= 24)
        before, begun = names(got), time.monotonic()
        await replaced(settings)
        await load.until("both successors answer", lambda: len(names(got) - before) == 2)
        took_s = time.monotonic() - begun
    failed = [o for o in got if o.error]
    assert not failed, f"lost in the update: {failed[:3]}"
    await not_twice(client, names(got) - before, got)
    return {"requests": len(got), "answered": len(got), "update, s": round(took_s, 1)}


async def scaled(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Begin with one replica, and give it more requests than it has seats."""
    await replaced(replace(settings, replicas=1, max_replicas=1))
    await replaced(replace(settings, replicas=1))
    async with Load(client, "scaled") as load:
        got, begun = load.outcomes, time.monotonic()
        await load.until("some are answered", lambda: len(got) >= 5)
        assert len(names(got)) == 1
        await load.until("a second replica answers", lambda: len(names(got)) == 2)
        took_s = time.monotonic() - begun
    assert all(o.complete for o in got)
    return {"requests": len(got), "answered": len(got), "second replica after, s": round(took_s, 1)}


NUM_TEXTS, QUESTIONS = 25, 6  # odd: in turn, a text would always meet one of two replicas
TIGHT = ["--num-gpu-blocks-override", "320"]  # two caches hold all texts together, one can't
TEXT = (
    "This is text number {}. " + "It says what a block is, and why a cache is made of blocks. " * 14
)


async def hits(client: httpx.AsyncClient) -> Figures:
    """Ask several questions about each of many texts; return how much of the prompts was cached."""
    got = []
    for question in range(QUESTIONS):
        asked = [
            ask(client, f"q{question}-{text}", TEXT.format(text) + f"Question {question}?", 4)
            for text in range(NUM_TEXTS)
        ]
        for start in range(0, NUM_TEXTS, 4):
            got += await asyncio.gather(*asked[start : start + 4])
    assert all(o.complete for o in got) and len(names(got)) == 2
    share = sum(o.cached for o in got) / sum(o.prompt for o in got)
    return {"prompt tokens": sum(o.prompt for o in got), "cached, %": round(100 * share, 1)}


async def costs(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Measure the processor time of a streamed token, by the process that spends it."""
    async with Load(client, "cost") as load:
        got = load.outcomes
        await load.until("both replicas answer", lambda: len(names(got)) == 2 and len(got) >= 24)
        parts = [process for process in descendants() if process.kind]
        spent = {kind: cpu_seconds(p for p in parts if p.kind == kind) for kind in KINDS}
        first = len(got)
        begun = time.monotonic()
        await load.until("enough is answered", lambda: len(got) >= first + 120)
        took_s = time.monotonic() - begun
        tokens, pieces = sum(o.tokens for o in got[first:]), sum(o.pieces for o in got[first:])
        micros = {
            f"{kind}, µs a piece": round(
                1e6 * (cpu_seconds(p for p in parts if p.kind == kind) - spent[kind]) / pieces
            )
            for kind in KINDS
        }
    return {
        "tokens/s": round(tokens / took_s),
        "tokens a piece": round(tokens / pieces, 1),
        **micros,
    }


async def first_tokens(client: httpx.AsyncClient) -> Figures:
    """Compare the time to the first token with that of a replica's own server, in turn."""
    server = next(process for process in descendants() if process.kind == "server")
    words = server.command.split()
    transport = httpx.AsyncHTTPTransport(uds=words[words.index("--uds") + 1])
    through, direct = [], []
    async with httpx.AsyncClient(transport=transport, base_url="http://own", timeout=60) as own:
        for number in range(30):
            through.append((await ask(client, f"t{number}", f"{number} is", 2)).first_s)
            direct.append((await ask(own, f"d{number}", f"{number} was", 2)).first_s)
    return {
        "direct, ms": round(1e3 * median(direct), 1),
        "through the door, ms": round(1e3 * median(through), 1),
        "memory of Ray, MB": round(memory_mb(without_servers(descendants()))),
    }


async def not_twice(client: httpx.AsyncClient, living: set[str], got: list[Outcome]) -> None:
    """Fail if the living replicas' records show a request twice, or one that has failed."""
    times: Counter[str] = Counter()
    for name in living:
        record = await client.get(f"/replicas/{name}/trace")
        for line in record.text.splitlines():
            event = json.loads(line)
            if event["kind"] == "request.queued":
                times[event["request_id"].removeprefix("cmpl-")] += 1
    assert sum(times[o.id] for o in got), "the records show none of the requests"
    for outcome in got:
        most = 1 if outcome.complete else 0
        assert times[outcome.id] <= most, f"{outcome.id} was computed {times[outcome.id]} times"


async def page(client: httpx.AsyncClient) -> Figures:
    """Open the page as a browser does: its parts come from the replica that its address names."""
    found = await client.get("/", follow_redirects=True)
    name = str(found.url).rstrip("/").rpartition("/")[2]
    assert found.headers["x-replica"] == name and "Engine Room" in found.text
    part = await client.get(f"/replicas/{name}/room/main.js")
    assert part.headers["x-replica"] == name and part.status_code == 200
    gone = await client.get("/replicas/none/")
    assert gone.status_code == 404 and "no replica" in gone.json()["error"]["message"]
    return {"page of": name}


async def left(client: httpx.AsyncClient) -> None:
    """Leave in the middle of a stream: its engine must give the request up."""
    asked = client.stream("POST", "/v1/completions", json=body_of("Left", 1900),
                          headers={"X-Request-Id": "left"})  # fmt: skip
    async with asked as answer:
        name = answer.headers["x-replica"]
        await anext(answer.aiter_raw())
    ends = ("request.aborted", "request.finished")
    async with asyncio.timeout(60):
        while True:
            record = (await client.get(f"/replicas/{name}/trace")).text
            events = [json.loads(line) for line in record.splitlines()]
            own = [e["kind"] for e in events if e.get("request_id") == "cmpl-left"]
            if end := [kind for kind in own if kind in ends]:
                assert end == [ends[0]], f"a request whose client had left: {end}"
                return
            await asyncio.sleep(0.1)


async def first_token(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Open the page, leave a stream, and time the first token."""
    await page(client)
    await left(client)
    return await first_tokens(client)


async def affinity(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Count the hits when prompts go where their beginning is."""
    await routed(replace(settings, flags=[*settings.flags, *TIGHT]))
    return await hits(client)


async def round_robin(client: httpx.AsyncClient, settings: Settings) -> Figures:
    """Count the hits when prompts go to each replica in turn."""
    await routed(replace(settings, flags=[*settings.flags, *TIGHT], affinity=False))
    return await hits(client)


SCENES = {
    "first-token": first_token,
    "cost": costs,
    "server-killed": server_killed,
    "replica-killed": replica_killed,
    "update": updated,
    "scaled": scaled,
    "one-core-each": one_core_each,
    "affinity": affinity,
    "round-robin": round_robin,
}


async def run(chosen: list[str], settings: Settings, results: Path) -> None:
    """Run scenes one after another; keep the figures of each, beside those of other runs."""
    limits = httpx.Limits(max_connections=None)
    url = f"http://{settings.host}:{settings.port}"
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        for name in chosen:
            figures = await SCENES[name](client, settings)
            print(f"{name}: {figures}", flush=True)
            kept = json.loads(results.read_text("utf-8")) if results.exists() else {}
            kept[name] = figures
            kept = {name: kept[name] for name in SCENES if name in kept}
            results.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Settings]:
    """Read the command line: which scenes, where the figures go, and what `ray_serve` takes."""
    parser = argparse.ArgumentParser(prog="check", description=__doc__, allow_abbrev=False)
    parser.add_argument("--scene", action="append", choices=SCENES, help="one of them; default all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that keeps the figures")
    ours, flags = parser.parse_known_args(argv)
    return ours, read([*FLAGS, *flags], "check")


def main() -> int:
    """Run the scenes that are named, or all. Raises what went wrong."""
    ours, settings = arguments(sys.argv[1:])
    with running(settings):
        asyncio.run(run(ours.scene or list(SCENES), settings, ours.results))
    return 0


if __name__ == "__main__":
    run_command(main)
