"""The Engine Room on recorded files: one file without any server, an address, a dropped file."""

from __future__ import annotations

import json
import time

import pytest

from engine.trace.__main__ import main
from engine.trace.events import EngineWarning, SampleDrawn, TextTokens
from engine.trace.files import read_jsonl, to_json
from engine.trace.life import requests_of
from engine.trace.replay import Replay, differences
from engine.trace.story import Story
from tests.browser.room_page import ROOT, caught_up, until

INDEX = ROOT / "engine" / "server" / "web" / "index.html"


@pytest.fixture(scope="module")
def recorded(start_server, tmp_path_factory):
    """A server's download whose beginning is gone, with one request in full."""
    path = tmp_path_factory.mktemp("offline") / 'record "<script>" & more.jsonl'
    flags = ("--num-gpu-blocks-override", "64", "--trace-buffer", "600", "--max-model-len", "512")
    with start_server(*flags) as server:
        server.complete("What is gone before the beginning?", max_tokens=250, ignore_eos=True)
        server.complete("</script><script>document.title = 'broken'</script>", max_tokens=2)
        server.wait_until_idle()
        server.complete("What is a <b>block</b>?", max_tokens=12, trace="full", ignore_eos=True)
        server.wait_until_idle()
        time.sleep(0.3)  # the engine process sends its events every 50 ms
        path.write_bytes(server.http.get("/trace").content)
        until_state = server.http.get("/trace/state").json()["state"]
    assert path.read_bytes().startswith(b'{"kind":"engine.snapshot"')
    return path, until_state


def shown_state(page) -> dict:
    assert page.evaluate("room.record.broken") == ""
    return page.evaluate("room.record.state.toDict()")


def test_one_file_opens_without_a_server(open_room, recorded, tmp_path):
    path, state = recorded
    room = tmp_path / "room.html"
    assert main(["page", str(path), "-o", str(room)]) == 0
    page = open_room(room.as_uri())
    page.wait_for_selector("#status[data-state=file]")
    assert page.inner_text("#status") == path.name
    events = list(read_jsonl(path))
    until(page, f"room.record.length === {len(events)} && room.record.lines.length > 0")
    caught_up(page, step=state["step"])
    assert shown_state(page) == state
    (last,) = requests_of(events)[-1:]
    page.evaluate(f"room.select({{ request: {last!r} }})")
    page.wait_for_selector("#selection .why-parts")
    assert "to its last byte" in page.inner_text("#selection")
    # The log has its sentences, as `annotate` tells them.
    story = Story(with_summaries=False)
    told = [line.text for line in [*story.tell(events), *story.end()]]
    shown = page.evaluate("room.record.lines.map((line) => line.text)")
    assert shown == told
    assert "came without the log's sentences" not in page.inner_text("#log")
    # Every step is the replay's.
    replay = Replay.of(events)
    for step in replay.steps[1::5]:
        page.evaluate(f"room.goToStep({step})")
        expected = json.loads(json.dumps(replay.state_at(step).to_dict()))
        assert not differences(expected, shown_state(page)), step


def test_tokens_read_as_text_without_a_server(open_room, recorded, tmp_path):
    path, _state = recorded
    room = tmp_path / "room.html"
    main(["page", str(path), "-o", str(room)])
    events = list(read_jsonl(path))
    first = next(e for e in events if isinstance(e, SampleDrawn))
    name = first.request_id
    drawn = next(e.texts for e in events if isinstance(e, TextTokens) and first.token_id in e.texts)
    page = open_room(f"{room.as_uri()}#step=1&request={name}")
    until(page, "room.record.lines.length > 0")
    draws = f"room.ledger.life({name!r}).draws"
    page.evaluate(f"room.select({{ request: {name!r} }}); room.goToStep({draws}[5].event.step)")
    until(page, "document.querySelectorAll('#lens .token').length === 6")
    assert "#" not in page.inner_text("#lens .tokens")
    assert "#" not in "".join(page.locator("#lens .token-name").all_inner_texts())
    block = page.evaluate(f"room.record.state.tables.get({name!r})[0]")
    tip = page.evaluate(f"room.grid.describe({block})")
    assert f"What is a <b>block</b>?{drawn[first.token_id]}" in tip, tip
    assert page.title().startswith("Glasshouse")  # the record's text is text, never script


def test_nothing_is_fetched(browser, recorded, tmp_path):
    path, _state = recorded
    room = tmp_path / "room.html"
    main(["page", str(path), "-o", str(room)])
    context = browser.new_context()
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(room.as_uri())
    page.wait_for_selector("#log li")
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [room.as_uri()]


def test_the_pages_folder_says_what_to_do(browser):
    """Without a server its modules aren't loaded; the browser says so in its console only."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(INDEX.as_uri() + "?trace=record.jsonl")
    page.wait_for_selector("#notice:not([hidden])")
    assert "python -m engine.trace page FILE -o room.html" in page.inner_text("#notice")
    assert page.inner_text("#status") == "opened from a folder"
    context.close()


def test_an_address_of_a_record(open_room, live):
    live.complete("at an address", max_tokens=5)
    live.wait_until_idle()
    page = open_room("?trace=trace")
    page.wait_for_selector("#status[data-state=file]")
    caught_up(page)
    assert shown_state(page) == live.http.get("/trace/state").json()["state"]
    page.click(".to-server")
    page.wait_for_selector("#status[data-state=live]")


def test_an_address_that_has_none(open_room):
    page = open_room("?trace=nothing-here.jsonl")
    page.wait_for_selector("#notice:not([hidden])")
    assert "the answer was 404" in page.inner_text("#notice")
    page.errors[:] = [said for said in page.errors if "404" not in said]


def test_a_file_is_dropped_onto_the_page(open_room, recorded):
    path, state = recorded
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    page.evaluate(
        """([name, text]) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([text], name));
          const options = { dataTransfer, bubbles: true, cancelable: true };
          document.querySelector("main").dispatchEvent(new DragEvent("drop", options));
        }""",
        [path.name, path.read_text()],
    )
    page.wait_for_selector("#status[data-state=file]")
    until(page, f"room.record.length === {len(path.read_text().splitlines())}")
    caught_up(page, step=state["step"])
    assert shown_state(page) == state
    assert page.locator("#provoke").is_hidden() and page.locator(".to-server").is_visible()


def test_the_page_counts_the_events_that_were_lost(open_room, recorded, tmp_path):
    path, _ = recorded
    lost = [EngineWarning(message=f"lost, {n}", events_lost=n, ts_ns=n) for n in (0, 1, 4)]
    for count, said in ((1, ""), (2, "could not take 1 event:"), (3, "could not take 4 events:")):
        text = path.read_bytes() + b"\n".join(map(to_json, lost[:count])) + b"\n"
        one = tmp_path / f"{count}.jsonl"
        one.write_bytes(text)
        room = tmp_path / f"{count}.html"
        assert main(["page", str(one), "-o", str(room)]) == 0
        page = open_room(room.as_uri())
        page.wait_for_selector("#status[data-state=file]")
        until(page, f"room.record.length === {len(text.splitlines())}")
        assert page.evaluate("room.ledger.lost") == lost[count - 1].events_lost
        assert page.locator("#notice").is_visible() == bool(said)
        assert said in page.text_content("#notice")
