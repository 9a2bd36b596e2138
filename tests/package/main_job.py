"""The main job, done with what a wheel installed: server, question, client, LLM, lab, plan, record.

    cd somewhere-else && VENV/bin/python main_job.py CHECKOUT [--bench]

`.ci/package` runs it. Nothing of the checkout may be imported, so this file imports no test code.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import httpx

COMMAND = str(Path(sys.executable).parent / "glasshouse")
LISTENS = re.compile(r"^Glasshouse listens on (http://\S+)$", re.MULTILINE)
QUESTION = [{"role": "user", "content": "What is a block table?"}]
START_S = 300


def glasshouse(*arguments: str, typed: str = "", code: int = 0) -> str:
    """Run the installed command; returns what it printed. Fails on another exit code."""
    done = subprocess.run(
        [COMMAND, *arguments], input=typed, capture_output=True, text=True, timeout=600
    )
    shown = f"glasshouse {' '.join(arguments)}: exit code {done.returncode}"
    print(shown, flush=True)
    if done.returncode != code:
        sys.exit(f"{shown}, not {code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def where_it_is_installed(checkout: Path) -> None:
    for name in ("engine", "lab", "pocket", "benchmarks", "glasshouse", "test_client"):
        origin = Path(find_spec(name).origin).resolve()
        assert origin.is_relative_to(Path(sys.prefix).resolve()), f"{name} is {origin}"
        assert not origin.is_relative_to(checkout), f"{name} is the checkout's: {origin}"
    assert find_spec("pocket.train") is None, "pocket's training code is installed"
    assert glasshouse("--version") == f"glasshouse {version('glasshouse')}\n"
    glasshouse("--help")
    glasshouse("nonsense", code=2)


def started(record: Path) -> tuple[subprocess.Popen, str]:
    """The server's process and its address, once it is ready."""
    server = subprocess.Popen(
        [COMMAND, "serve", "--host", "127.0.0.1", "--port", "0", "--trace-file", str(record)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output: list[str] = []
    threading.Thread(target=lambda: output.extend(server.stdout), daemon=True).start()
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        found = LISTENS.search("".join(output))
        if found and httpx.get(f"{found[1]}/health").status_code == 200:
            return server, found[1]
        time.sleep(0.1)
    server.kill()
    sys.exit("the server is not ready:\n" + "".join(output))


def the_page_has_all_that_it_names(url: str) -> None:
    """Every file that the live page loads, and every guide that it links, is served."""
    page = httpx.get(url).text
    links = {link.split("#")[0] for link in re.findall(r'(?:href|src)="([^"]+)"', page)}
    own = {link for link in links if link and not re.match(r"[a-z]+:", link)}
    assert len(own) > 3, own
    for link in sorted(own):
        assert httpx.get(httpx.URL(url).join(link)).status_code == 200, link
    print(f"the page: {len(own)} files and guides are there", flush=True)


def served(folder: Path) -> None:
    record = folder / "record.jsonl"
    server, url = started(record)
    try:
        body = {"model": "pocket", "messages": QUESTION, "max_tokens": 32, "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        text = answer["choices"][0]["message"]["content"]
        assert len(text.split()) > 5, answer
        print(f"served: {text!r}", flush=True)
        the_page_has_all_that_it_names(url)
        chat = glasshouse("chat", "--url", url, typed="What is a token?\n/quit\n")
        assert "token" in chat, chat
        assert "PASS" in glasshouse("chat", "--url", url, "--test", "single")
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert "block" in glasshouse("trace", "annotate", str(record))
    room = folder / "room.html"
    glasshouse("trace", "page", str(record), "-o", str(room))
    assert room.stat().st_size > 50_000


def offline() -> None:
    from engine import LLM, SamplingParams

    with LLM() as llm:
        (output,) = llm.generate(["What is a block table?"], SamplingParams(max_tokens=16))
        assert output.outputs[0].text and llm.record()
        print(f"LLM: {output.outputs[0].text!r}", flush=True)


def main(checkout: Path, with_bench: bool) -> None:
    where_it_is_installed(checkout)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served(folder)
        offline()
        report = folder / "lab.html"
        glasshouse("lab", "--quick", "--only", "paging", "tokens", "--report", str(report))
        assert "Paging" in report.read_text() or "paging" in report.read_text()
        assert "KV cache" in glasshouse("plan", "--concurrency", "4")
        if with_bench:
            out = str(folder / "bench")
            assert "engine is" in glasshouse("bench", "--shapes", "pocket", "--quick", "--out", out)
    print(f"the main job is done with Python {sys.version.split()[0]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), "--bench" in sys.argv)
