"""The core in a browser: the same Python files, in Pyodide, in Chromium."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from docs.scripts import browser_core
from engine.whatif.playground import play


class _Quiet(SimpleHTTPRequestHandler):
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_arguments) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("core")
    try:
        browser_core.build(folder)
    except RuntimeError as reason:
        pytest.skip(f"npm's pyodide or its msgspec can't be fetched here: {reason}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_sliders_run_the_core_and_the_room_shows_it(site, browser):
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site}/core.html")
    page.wait_for_selector("body[data-steps]", timeout=60_000)
    # The answer is what the same files give here: the same core, not another one.
    sliders = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('input[type=range]')]"
        ".map((e) => [e.name, Number(e.value)]))"
    )
    here = json.loads(play(json.dumps(sliders)))
    assert int(page.get_attribute("body", "data-steps")) == here["rows"]["steps"]
    room = page.frames[1]
    room.wait_for_function(f"room.record.length === {len(here['record'].splitlines())}")
    assert room.evaluate("room.record.broken") == ""
    # A policy that is edited runs; one that is wrong says so.
    page.check("#own")
    policy = page.input_value("textarea")
    own = json.loads(play(json.dumps(sliders), policy))
    assert own["rows"] != here["rows"]
    page.wait_for_function(f"document.body.dataset.steps === '{own['rows']['steps']}'")
    page.fill("textarea", "class Policy(Scheduler): x = 1 / 0")
    page.wait_for_selector("#status.wrong")
    assert "ZeroDivisionError" in page.inner_text("#status")
    assert all(url.startswith((site, "data:")) for url in asked), "it asked another server"
    assert not problems
    page.close()
