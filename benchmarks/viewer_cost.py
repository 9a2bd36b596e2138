"""Measure what a viewer costs, and how smooth the page is.

One server with 4,096 blocks, 64 requests at a time, measured in turns: nobody watches · a client
reads the stream · a browser shows the page.

    python benchmarks/viewer_cost.py --rounds 5

The client stands for a viewer on another machine: its cost is the server's work for it. The browser
runs here, on the same cores as the engine, and takes its share of them; its frames a second are
those of the page while the engine computes. Needs Chromium and Playwright for that part. The last
line is one JSON object, which is also written to `viewer_cost.json`, and as a table to
`viewer_cost.md`, in the machine's folder of `results/`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine_folder import keep_results, machine_folder  # noqa: E402
from engine.trace.command import run_command  # noqa: E402

REQUESTS = 64
BLOCKS = 4096
PROMPT = "Request {} wants to know how a block table maps its tokens to the blocks of the cache. "
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
COUNT_FRAMES = """() => {
  const { busyMs: busy, drawn } = room.frames;
  const frames = (globalThis.frames_ = { times: [], busy, drawn });
  const note = (now) => { frames.times.push(now); frames.id = requestAnimationFrame(note); };
  frames.id = requestAnimationFrame(note);
}"""
TELL_FRAMES = """() => {
  const { times, busy, drawn, id } = globalThis.frames_;
  cancelAnimationFrame(id);
  const gaps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
  return {
    fps: (1000 * gaps.length) / (times.at(-1) - times[0]),
    slowest_frame_of_100_ms: gaps[Math.floor(gaps.length * 0.99)],
    draw_ms: (room.frames.busyMs - busy) / Math.max(1, room.frames.drawn - drawn),
    blocks: room.record.state.numBlocks,
    events: room.record.length + room.record.forgotten,
    skipped: room.ledger.skipped,
  };
}"""


@contextmanager
def server(model: str | None):
    """Start a server, and yield its URL when it is ready."""
    flags = ["--num-gpu-blocks-override", str(BLOCKS), "--max-num-seqs", str(REQUESTS)]
    flags += ["--model", model] if model else []
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "koyeb_api_server.py"), "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HOST": "127.0.0.1", "LOG_FORMAT": "off"},
    )
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        while httpx.get(f"{url}/health").status_code != 200:
            if process.poll() is not None:
                raise RuntimeError("the server ended while it loaded")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        process.stdout.close()


def load(url: str, tokens: int) -> float:
    """Send 64 requests at once, each `tokens` long; return tokens a second."""

    def one(number: int) -> int:
        body = {
            "prompt": PROMPT.format(number) * 3,
            "max_tokens": tokens,
            "ignore_eos": True,
            "seed": number,
        }
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=600)
        answer.raise_for_status()
        return answer.json()["usage"]["completion_tokens"]

    started = time.perf_counter()
    with ThreadPoolExecutor(REQUESTS) as pool:
        total = sum(pool.map(one, range(REQUESTS)))
    return total / (time.perf_counter() - started)


@contextmanager
def client(url: str):
    """Run a process that reads the stream and drops it."""
    reader = subprocess.Popen(["curl", "-sN", "-o", "/dev/null", f"{url}/trace/stream"])
    time.sleep(1)
    yield
    reader.terminate()
    reader.wait()


@contextmanager
def page(url: str, told: list):
    """Show the page in a browser; what it reports about its frames is appended to `told`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        shown = browser.new_page(viewport={"width": 1440, "height": 1000})
        shown.goto(url)
        shown.wait_for_selector("#status[data-state=live]")
        time.sleep(2)
        shown.evaluate(COUNT_FRAMES)
        yield
        told.append(shown.evaluate(TELL_FRAMES))
        browser.close()


@contextmanager
def nobody(_url: str):
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200, help="drawn by each request")
    parser.add_argument("--model", help="default: the pocket model")
    arguments = parser.parse_args()
    frames: list[dict] = []
    watchers = {"nobody": nobody, "client": client}
    if shutil.which("chromium"):
        watchers["page"] = lambda url: page(url, frames)
    speeds: dict[str, list[float]] = {name: [] for name in watchers}
    with server(arguments.model) as url:
        load(url, arguments.tokens)  # warm
        for number in range(arguments.rounds):
            for name, watcher in watchers.items():  # in turns: drift affects all of them
                with watcher(url):
                    speeds[name].append(load(url, arguments.tokens))
                print(f"round {number + 1}, {name}: {speeds[name][-1]:,.0f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "benchmark": "viewer_cost",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "requests": REQUESTS,
        "blocks": BLOCKS,
        "rounds": arguments.rounds,
        "tokens_per_s": {name: round(value, 1) for name, value in medians.items()},
    }
    if frames:
        result["page"] = {
            name: round(statistics.median(told[name] for told in frames), 2) for name in frames[0]
        }
    keep_results(machine_folder(), "viewer_cost", result, markdown(result))


def markdown(result: dict) -> str:
    """Write the table of docs/performance/."""
    speeds = result["tokens_per_s"]
    busy = result["load_average"] > result["cores"]
    named = {
        "nobody": "nobody",
        "client": "a client reads the stream",
        "page": "the page, shown here",
    }
    out = [
        f"{result['requests']} requests at a time, {result['blocks']:,} blocks,"
        f" {result['cores']} cores,"
        f" load average {result['load_average']:.1f}; medians of"
        f" {result['rounds']} rounds, in turns."
        " Made by `python benchmarks/viewer_cost.py`. The page's browser runs on the engine's own"
        " cores and takes its share of them."
        + (" Other programs ran too: a difference of some percent is noise." if busy else ""),
        "",
        "| who watches | tokens/s | beside nobody |",
        "|---|---|---|",
    ]
    for name, speed in speeds.items():
        cost = "" if name == "nobody" else f"{speed / speeds['nobody'] - 1:+.1%}"
        out.append(f"| {named[name]} | {speed:,.0f} | {cost} |")
    if "page" in result:
        page = result["page"]
        out += [
            "",
            f"The page drew {page['fps']:.0f} frames a second, each in {page['draw_ms']:.1f} ms;"
            f" one of a hundred took {page['slowest_frame_of_100_ms']:.0f} ms. It showed"
            f" {page['events']:,.0f} events and skipped {page['skipped']:,.0f}.",
        ]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    run_command(main)
