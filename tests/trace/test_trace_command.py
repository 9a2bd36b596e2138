"""`python -m engine.trace …`: each command on a real file, and what it says when it can't."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from engine.trace import events as ev
from engine.trace.__main__ import main
from engine.trace.diff import first_difference
from engine.trace.files import JsonlWriter, to_jsonl
from tests.trace.model_engine import ModelEngine

ROOT = Path(__file__).resolve().parents[2]


def model_events(seed: int = 4) -> list[ev.Event]:
    engine = ModelEngine(20, 8, seed)
    for _ in range(150):
        engine.random_operation()
    return engine.events


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "record.jsonl"
    with closing(JsonlWriter(path)) as write:
        write(model_events())
    return path


@pytest.fixture
def command(capsysbinary):
    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return status, out.decode(), err.decode()

    return run


def test_as_a_process_it_works_and_explains_itself(record):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "engine.trace", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    told = run("annotate", record)
    assert told.returncode == 0 and "takes block" in told.stdout and not told.stderr
    explained = run("--help")
    for name in ("annotate", "replay", "page", "perfetto", "diff", "life", "why"):
        assert name in explained.stdout
    wrong = run("replay", record.with_name("missing.jsonl"))
    assert wrong.returncode == 2
    assert "missing.jsonl: No such file" in wrong.stderr and "Traceback" not in wrong.stderr
    nothing = run()
    assert nothing.returncode == 2 and "required" in nothing.stderr


READERS = {  # what people pipe into `head`
    "annotate": ("-m", "engine.trace", "annotate", "RECORD"),
    "replay": ("-m", "engine.trace", "replay", "RECORD", "--json"),
    "diff": ("-m", "engine.trace", "diff", "RECORD", "RECORD"),
    "life": ("-m", "engine.trace", "life", "RECORD", "req-1"),
    "why": ("-m", "engine.trace", "why", "RECORD", "req-1"),
    "perfetto": ("-m", "engine.trace", "perfetto", "RECORD"),
    "lab": ("koyeb_vllm_setup.py", "--help"),
    "fit": ("-m", "engine.fit", "--help"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "lab" else []) for n in READERS]
)
def test_a_reader_that_has_seen_enough_is_no_error(record, name):
    """As with `… | head`: the reader of the output is gone."""
    arguments = [str(record) if part == "RECORD" else part for part in READERS[name]]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert ended.stderr == "" and ended.returncode in (0, 1)


def test_a_locale_without_our_characters_ends_no_program():
    command = [sys.executable, "-m", "engine.trace", "annotate", "docs/records/tour.jsonl"]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    assert b"?" in done.stdout and len(done.stdout.splitlines()) > 100


def test_every_program_ends_by_run_command():
    """So every program handles a closed pipe in the same way."""
    own_way = {
        "koyeb_api_server.py",  # a server: it ends at once, without Python's tearing down
        "examples/ray_serve/child.py",  # a server
        "test_client.py",  # one file that works without this repository
        # for other programs, not for people
        "engine/config.py", "engine/text/sandbox.py", "engine/text/grammar_process.py",
            "engine/models/asking.py", "engine/worker/parallel/rank_process.py", "course/judge.py",
        "engine/server/link/engine_main.py",
        "glasshouse/__main__.py",  # glasshouse.command.main, which does
        "benchmarks/peers/convert.py", "benchmarks/peers/install.py",
        "benchmarks/peers/vllm_quality.py", "benchmarks/formats/maker.py",
    }  # fmt: skip
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    programs = [
        name
        for name in listed.stdout.split()
        if not name.startswith("tests/")
        and not re.fullmatch("benchmarks/peers/.*worker.py", name)  # for other programs, too
        and re.search(r"^if __name__ == .__main__.", (ROOT / name).read_text(), re.M)
    ]
    wrong = [name for name in programs if "run_command(" not in (ROOT / name).read_text()]
    assert len(programs) > 20 and set(wrong) <= own_way, set(wrong) - own_way


def test_annotate_one_request_and_all_events(command, record):
    status, out, _err = command("annotate", record, "--request", "req-2")
    assert status == 0 and "req-2" in out and "req-1 " not in out
    _status, every, _err = command("annotate", record, "--all")
    assert len(every.splitlines()) >= len(model_events())


def test_replay_shows_the_state_at_a_step(command, record):
    status, out, _err = command("replay", record)
    assert status == 0 and "every invariant holds" in out and "of 20 (4 tokens each)" in out
    status, out, _err = command("replay", record, "--step", 10, "--json")
    state = json.loads(out)
    assert status == 0 and state["step"] == 10 and len(state["references"]) == 20


def test_replay_has_no_such_step(command, record):
    status, _out, err = command("replay", record, "--step", 12345)
    assert status == 2 and "step 12345 is not in this record, which has steps 1 to" in err


def test_perfetto_to_a_file_and_to_stdout(command, record, tmp_path):
    target = tmp_path / "trace.json"
    assert command("perfetto", record, "-o", target)[0] == 0
    _status, out, _err = command("perfetto", record)
    assert json.loads(out) == json.loads(target.read_bytes())


def test_life_by_name(command, record):
    status, out, _err = command("life", record, "req-1")
    assert status == 0 and json.loads(out)["request_id"] == "req-1"
    status, _out, err = command("life", record, "req-999")
    assert status == 2 and "no request 'req-999'; it has req-1, req-2" in err


def test_a_broken_record_is_an_error_with_its_line(command, record):
    with record.open("ab") as file:
        file.write(b"{}\n")
    for name in ("annotate", "replay", "perfetto"):
        status, _out, err = command(name, record)
        assert status == 2 and f"line {len(model_events()) + 1}" in err


def test_a_record_with_a_gap_is_an_error_for_replay_and_still_a_story(command, tmp_path):
    events = model_events()
    missing = next(n for n, e in enumerate(events) if isinstance(e, ev.BlockAllocated))
    path = tmp_path / "gap.jsonl"
    path.write_bytes(to_jsonl(events[:missing] + events[missing + 1 :]))
    status, _out, err = command("replay", path)
    assert status == 2 and "1 event missing before it" in err
    assert command("annotate", path)[0] == 0


def test_diff_ignores_times_and_names(command, record, tmp_path):
    other = model_events()
    for event in other:
        event.ts_ns += 12345
        if isinstance(event, ev.StepFinished):
            event.total_us *= 2
        if event.request_id:
            event.request_id = event.request_id.replace("req-", "cmpl-77")
        for row in getattr(event, "rows", []):
            row.request_id = row.request_id.replace("req-", "cmpl-77")
        if isinstance(event, ev.RequestForked):
            event.parent = event.parent.replace("req-", "cmpl-77")
        if isinstance(event, ev.RequestPreempted):
            event.for_request = event.for_request.replace("req-", "cmpl-77")
    path = tmp_path / "other.jsonl"
    path.write_bytes(to_jsonl(other))
    status, out, _err = command("diff", record, path)
    assert (status, out) == (0, "the records make the same decisions\n")


def test_diff_finds_the_first_other_decision(command, record, tmp_path):
    other = model_events()
    changed = next(e for e in other if isinstance(e, ev.BlockAllocated))
    changed.blocks[0] += 1
    path = tmp_path / "other.jsonl"
    path.write_bytes(to_jsonl(other))
    status, out, _err = command("diff", record, path)
    assert status == 1 and f"seq {changed.seq}: block.allocated in step" in out
    assert f"blocks {changed.blocks}" in out
    shorter = first_difference(other, other[: len(other) // 2])
    assert shorter.startswith("only the first record goes on")


def test_page_holds_everything_and_lets_no_text_out(command, tmp_path):
    evil = "</script><script>alert(1)</script>"
    record = tmp_path / 'a "name" & <more>.jsonl'
    received = ev.RequestReceived(request_id="a", text=evil, src="server", seq=1, ts_ns=1)
    record.write_bytes(to_jsonl([received, *model_events()]))
    made = tmp_path / "room.html"
    status, out, _err = command("page", record, "-o", made)
    assert status == 0 and "open it in a browser" in out
    html = made.read_text()
    assert evil not in html and "\\u003c/script>" in html
    assert 'data-name="a &quot;name&quot; &amp; &lt;more&gt;.jsonl"' in html
    # Whatever it refers to is in it: data, guides (hidden offline), or a server's routes (hidden).
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert address.startswith(("data:", "guide/", "trace", "./")), address
    imports = json.loads(re.search(r'<script type="importmap">(.*?)</script>', html)[1])["imports"]
    for name, address in imports.items():
        module = base64.b64decode(address.partition("base64,")[2]).decode()
        for wanted in re.findall(r'^import .*? from "([^"]+)"', module, re.MULTILINE):
            assert wanted in imports, f"{name} imports {wanted}"
    assert len(imports) > 10
