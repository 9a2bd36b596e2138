"""The Engine Room in a real browser, on a real server: what it shows is what happened."""

from __future__ import annotations

import json
import random

import pytest

from tests.browser.room_page import caught_up, until

KEY = "room-key"


def send(page, prompt: str, tokens: int = 24, n: int = 1) -> str:
    """Send a prompt from the page; the name of its request."""
    page.fill("textarea[name=prompt]", prompt)
    page.fill("input[name=max_tokens]", str(tokens))
    page.fill("input[name=n]", str(n))
    page.click("#provoke .primary")
    page.wait_for_selector("#provoke .answer .chip")
    return page.get_attribute("#provoke .answer .chip", "title")


def test_a_request_sent_from_the_page_is_found_in_the_grid(open_room, live):
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    name = send(page, "A block table maps the tokens of a sequence to blocks.", tokens=40)
    assert name.startswith("cmpl-room-")
    caught_up(page, live)
    assert page.evaluate("room.selection.request") == name
    # Step back until it runs: its blocks are in its table, in its colour, and the tip names it.
    for _ in range(60):
        table = page.evaluate(f"room.record.state.tables.get({name!r}) ?? []")
        if table:
            break
        page.keyboard.press("ArrowLeft")
    assert table
    before = page.evaluate("room.record.state.step")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("room.record.state.step") == before - 1
    page.keyboard.press("ArrowRight")
    page.evaluate("room.grid.redraw(); room.touch()")
    cell, columns = page.evaluate("[room.grid.cell, room.grid.columns]")
    block = table[0]
    place = {"x": block % columns * cell + 3, "y": block // columns * cell + 3}
    page.hover("#blocks canvas", position=place)
    label = page.evaluate(f"room.ledger.life({name!r}).label")
    tip = page.inner_text("#blocks .tip")
    assert f"block {block} · {label}" in tip and "tokens 0–" in tip
    page.click("#blocks canvas", position=place)
    history = page.locator("#selection .history")
    history.wait_for()
    assert label in history.inner_text()


def test_a_prompt_from_the_page_is_never_raw(open_room, live):
    """The box, its chips and the buttons: the model sees what its chat template makes of them."""
    messages = [{"role": "user", "content": "What is a KV cache?"}]
    wanted = live.http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    assert page.input_value("textarea[name=prompt]") == "What is a KV cache?"
    page.click("#provoke .question >> nth=0")
    page.wait_for_selector("#provoke .answer .chip")
    name = page.get_attribute("#provoke .answer .chip", "title")
    caught_up(page, live)
    asked = page.evaluate(f"room.ledger.life({name!r}).tokenized.token_ids")
    assert asked == wanted
    answer = live.http.post(
        "/v1/chat/completions",
        json={"model": "", "messages": messages, "temperature": 0, "max_tokens": 40},
    ).json()
    page.fill("input[name=temperature]", "0")
    page.fill("input[name=max_tokens]", "40")
    page.click("#provoke .primary")
    page.wait_for_selector("#provoke .answer .chip")
    caught_up(page, live)
    shown = page.inner_text("#provoke .answer-text")
    assert shown.strip() == answer["choices"][0]["message"]["content"].strip()
    for show, count in (("share", 6), ("temperatures", 3)):
        page.click(f"[data-show={show}]")
        until(page, f"document.querySelectorAll('.answer .chip').length === {count}")
        caught_up(page, live)
        names = page.evaluate("[...document.querySelectorAll('.answer .chip')].map((e) => e.title)")
        starts = [page.evaluate(f"room.ledger.life({n!r}).tokenized.token_ids") for n in names]
        assert all(start[:2] == wanted[:2] and start[-3:] == wanted[-3:] for start in starts)


def test_the_lens_shows_what_a_token_could_have_been(open_room, live):
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    name = send(page, "What is a KV cache?", tokens=8)
    caught_up(page, live)
    page.wait_for_selector("#lens .token")
    drawn = page.evaluate(f"room.ledger.life({name!r}).draws.map(({{event}}) => event.token_id)")
    page.locator("#lens .token").nth(1).click()
    rows = page.locator("#lens tbody tr")
    # the lens showed the last token until now: it is drawn anew with the next frame
    page.locator(f'#lens tr.drawn .token-name[title="token {drawn[1]}"]').wait_for()
    assert rows.count() >= 10 and page.locator("#lens tr.drawn").count() == 1
    texts = live.http.get("/trace/tokens", params={"ids": ",".join(map(str, drawn))}).json()
    until(page, "!document.querySelector('#lens .tokens').innerText.includes('#')")
    assert set(texts) == {str(token) for token in drawn}
    said = page.inner_text("#lens .how")
    record = live.http.get("/trace", params={"request_id": name}).text.splitlines()
    draws = [event for event in map(json.loads, record) if event["kind"] == "sample.drawn"]
    assert f"Seed {draws[1]['seed']}, so it can be drawn again." in said


def test_the_lens_says_why_a_tool_is_called(open_room, live):
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    tool = {"type": "function", "function": {"name": "clock"}}
    body = {
        "messages": [{"role": "user", "content": "Hello!"}], "tools": [tool],
        "tool_choice": "required", "max_tokens": 60, "trace": "full",
    }  # fmt: skip
    answer = live.http.post("/v1/chat/completions", json=body).json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "clock"
    caught_up(page, live)
    name = answer["id"]
    life = f"room.ledger.life({name!r})"
    until(page, f"{life}.calls.length === 1")
    page.evaluate(f"room.select({{ request: {name!r} }})")
    page.wait_for_selector("#lens .call")
    only, other = page.evaluate(
        f"(() => {{ const all = {life}.draws.map((draw) => draw.event);"
        " return [all.filter((e) => e.num_allowed === 1).length,"
        " all.filter((e) => (e.instead_of ?? -1) >= 0).length]; })()"
    )
    said = page.inner_text("#lens .call")
    length = len(call["function"]["arguments"])
    assert said.startswith(f"Calls “clock” with {length} characters of arguments. tool_choice")
    assert f"one choice for {only}; {other} the model would have written otherwise" in said
    assert other > 0


def test_a_crowd_from_the_page_is_in_the_engine_at_once(open_room, live):
    """A browser has six connections to a server: the engine doesn't see requests that wait for
    one."""
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    page.click("[data-show=fill]")
    until(page, "document.querySelectorAll('.answer .chip').length > 6")
    caught_up(page, live)
    names = page.evaluate("[...document.querySelectorAll('.answer .chip')].map((e) => e.title)")
    about = page.evaluate("room.record.entries")
    mine = [e["kind"] for e in about if e.get("request_id") in names]
    assert len(names) > 6
    assert mine[: mine.index("request.finished")].count("request.queued") == len(names)
    assert page.locator(".answer.failed").count() == 0
    assert all(
        page.evaluate("[...document.querySelectorAll('.answer-text')].map(e => e.innerText)")
    )


def test_the_pages_state_equals_the_replays_at_ten_random_steps(open_room, live):
    page = open_room()
    page.click("[data-show=share]")
    until(page, "document.querySelectorAll('.answer .chip').length === 6")
    caught_up(page, live)
    page.click("[data-show=preempt]")  # the pool is small: blocks are evicted, requests preempted
    page.wait_for_selector(".answer .chip")
    until(page, "room.record.entries.some((e) => e.kind === 'request.preempted')", timeout_s=120)
    caught_up(page, live)
    steps = page.evaluate("room.record.steps")
    for step in random.Random(4).sample(steps, 10):
        expected = live.http.get("/trace/state", params={"step": step}).json()["state"]
        page.evaluate(f"room.goToStep({step})")
        assert page.evaluate("room.record.broken") == ""
        assert page.evaluate("room.record.state.toDict()") == expected, step
    shown = "document.querySelector('#step h2').innerText.trim()"
    until(page, f"{shown} === 'Step {step:,}'", timeout_s=5)


def test_the_page_says_why_one_was_preempted_and_what_it_waits_for(open_room, live):
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    page.click("[data-show=preempt]")
    wait = "(e) => e.kind === 'request.waiting' && e.waits_for === 'blocks' && e.next_release"
    until(page, f"room.record.entries.some({wait})", timeout_s=120)
    caught_up(page, live)
    waiting = page.evaluate(f"room.record.entries.find({wait})")
    page.evaluate(f"room.select({{ request: {waiting['request_id']!r} }})")
    page.evaluate(f"room.goToStep({waiting['step']})")
    need = f"needs {waiting['need']} block"
    until(page, f"document.querySelector('#selection').innerText.includes({need!r})")
    shown = page.inner_text("#selection")
    assert "so far, place" in shown and "come back when req-" in shown
    preempted = page.evaluate("room.record.entries.find((e) => e.kind === 'request.preempted')")
    page.evaluate(f"room.select({{ request: {preempted['request_id']!r} }})")
    page.evaluate(f"room.goToStep({preempted['step']})")
    why = f"in step {preempted['step']:,}"
    until(page, f"document.querySelector('#selection').innerText.includes({why!r})")


def test_the_stream_goes_on_where_it_was_cut(open_room, live):
    page = open_room()
    page.wait_for_selector("#status[data-state=live]")
    live.complete("before the cut", max_tokens=4)
    caught_up(page, live)
    skipped = page.evaluate("room.ledger.skipped")  # before it came: the other tests' events
    page.evaluate("room.live.drop()")
    page.wait_for_selector("#status[data-state=reconnecting]")
    live.complete("while it was cut", max_tokens=4)
    page.wait_for_selector("#status[data-state=live]")
    last = live.http.get("/trace/state").json()["state"]["step"]
    until(page, f"room.record.state.step === {last}")
    entries = page.evaluate(
        "import('/room/state.js').then(({ ofCore }) =>"
        " room.record.entries.filter((e) => e.seq && ofCore(e)).map((e) => e.seq))"
    )
    assert entries == list(range(entries[0], entries[0] + len(entries)))  # none twice, none missing
    assert page.evaluate("room.ledger.skipped") == skipped


def test_a_recorded_file_replays_without_its_server(open_room, live, tmp_path):
    live.complete("for the file", max_tokens=12)
    live.wait_until_idle()
    record = live.http.get("/trace").text
    path = tmp_path / "record.jsonl"
    path.write_text(record)
    page = open_room()
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#status[data-state=file]")
    until(page, f"room.record.length === {len(record.splitlines())}")
    assert page.inner_text("#status") == "record.jsonl"
    caught_up(page)
    assert page.evaluate("room.record.broken") == ""
    assert page.locator("#provoke").is_hidden() and page.locator("#log li").count() > 3
    page.keyboard.press("Home")
    assert page.evaluate("room.record.position") == 0
    page.keyboard.press("End")
    step = page.evaluate("room.record.state.step")
    expected = live.http.get("/trace/state", params={"step": step}).json()["state"]
    assert page.evaluate("room.record.state.toDict()") == expected


def test_a_link_leads_to_its_moment(open_room, live):
    answer = live.complete("a moment to come back to", max_tokens=10, trace="full")
    live.wait_until_idle()
    life = live.http.get(f"/trace/requests/{answer['id']}").json()
    step = life["sequences"][answer["id"]]["decode"]["first_step"] + 2
    page = open_room(f"#step={step}&request={answer['id']}")
    until(page, f"!room.following && room.record.state.step === {step}")
    assert page.evaluate("room.selection.request") == answer["id"]
    assert f"#step={step}&request={answer['id']}" in page.evaluate("room.link()")
    page.click("#selection .why-slow")
    until(page, "document.querySelector('.why-parts')")
    assert "to its last byte" in page.inner_text("#selection")
    page.keyboard.press("l")
    assert page.evaluate("room.following")


def test_a_server_with_a_key_asks_for_it(open_room, start_server):
    flags = ("--api-key", KEY, "--num-gpu-blocks-override", "32", "--max-model-len", "256")
    with start_server(*flags, api_key=KEY) as guarded:
        page = open_room(server=guarded)
        page.wait_for_selector("#key-dialog:not([hidden])")
        page.fill("#key-dialog input", KEY)
        page.click("#key-dialog button")
        page.wait_for_selector("#status[data-state=live]")
        guarded.complete("hello", max_tokens=3)
        caught_up(page, guarded)
        assert KEY not in page.content() and KEY not in page.url
        page.errors[:] = [said for said in page.errors if "401" not in said]  # it was refused once
        page.context.close()  # before its server is gone


def test_keys_work_without_a_mouse(open_room, live):
    live.complete("keys", max_tokens=6)
    page = open_room()
    caught_up(page, live)
    page.focus("#blocks canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    columns = page.evaluate("room.grid.columns")
    assert page.evaluate("room.grid.pointed") == 1 + columns
    page.keyboard.press("Enter")
    assert page.evaluate("room.selection.block") == 1 + columns
    page.keyboard.press("Escape")
    assert page.evaluate("room.selection.block") is None
    page.locator("#blocks canvas").blur()
    page.keyboard.press("Space")
    assert not page.evaluate("room.following")
    end = page.evaluate("room.record.position")
    page.keyboard.press(",")
    assert page.evaluate("room.record.position") == end - 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_has_two_themes(open_room, live, theme):
    page = open_room(f"?theme={theme}")
    page.wait_for_selector("#status[data-state=live]")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(int(part) for part in json.loads(f"[{ground[4:-1]}]"))
    assert bright > 600 if theme == "light" else bright < 120
