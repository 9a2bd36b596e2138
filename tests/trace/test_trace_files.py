"""The record as bytes: what goes out comes back, and what is broken is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.trace import events as ev
from engine.trace.files import JsonlWriter, RecordError, bundle, pack, read_all, to_json, unpack
from engine.trace.recorder import Recorder
from tests.trace.example_events import stamped


def test_the_examples_have_every_kind_and_set_every_field():
    assert {type(event) for event in stamped()} == set(ev.ALL_EVENTS)
    optional = {"step", "src", "request_id", "greedy"}
    for event in stamped():
        written = msgspec.to_builtins(event)
        unset = {f for f in event.__struct_fields__ if f not in written} - optional
        assert unset <= {"index"}, f"{ev.kind(event)}: {unset}"


def test_every_kind_survives_a_file(tmp_path):
    path = tmp_path / "record.jsonl"
    writer = JsonlWriter(path)
    writer(stamped()[:10])
    writer(stamped()[10:])
    writer.close()
    assert read_all(path) == stamped()
    assert len(path.read_bytes().splitlines()) == len(stamped())


def test_every_kind_survives_the_way_between_processes():
    assert unpack(bundle([pack(stamped()[:9]), pack([]), pack(stamped()[9:])])) == stamped()
    with pytest.raises(RecordError, match="hold no events"):
        unpack(b"\xc1")


def test_the_file_is_complete_after_each_batch(tmp_path):
    path = tmp_path / "record.jsonl"
    recorder = Recorder()
    writer = JsonlWriter(path)
    recorder.subscribe(writer)
    recorder.record(ev.RequestWaiting(request_id="a"))
    recorder.flush()
    assert [event.request_id for event in read_all(path)] == ["a"]
    recorder.close()
    writer.close()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"no json at all\n", "malformed"),
        (b'{"kind":"block.vanished"}\n', "block.vanished"),
        (b'{"kind":"block.freed","blocks":"seven"}\n', "blocks"),
        (b'{"kind":"block.freed","blo\n', "malformed"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, problem):
    path = tmp_path / "record.jsonl"
    good = to_json(ev.BlockFreed(seq=1)) + b"\n"
    path.write_bytes(good + b"\n" + line + good)
    with pytest.raises(RecordError, match=f"record.jsonl, line 3: .*{problem}"):
        read_all(path)


def test_a_record_that_was_cut_off_says_so(tmp_path):
    path = tmp_path / "record.jsonl"
    good = to_json(ev.BlockFreed(seq=1, step=4, ts_ns=99))
    path.write_bytes(good + b"\n" + good[:-4])
    first, last = read_all(path)
    assert isinstance(first, ev.BlockFreed)
    assert isinstance(last, ev.EngineWarning) and "line 2" in last.message
    assert (last.step, last.ts_ns) == (4, 99)


def test_a_whole_last_line_without_its_end_counts(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_bytes(to_json(ev.BlockFreed(seq=1)))
    assert len(read_all(path)) == 1


def test_a_full_disk_tears_no_line_and_the_file_goes_on(tmp_path):
    """A limit of the file's size stands for the disk."""
    path = tmp_path / "record.jsonl"
    code = f"""
import resource, signal, sys
from engine.trace.events import EngineWarning
from engine.trace.files import JsonlWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = JsonlWriter({str(path)!r})
writer([EngineWarning(message="first")])
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
try:
    writer([EngineWarning(message="x" * 1000)])
except OSError as error:
    print("full:", error)
writer([EngineWarning(message="small")])
writer.close()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("full:")
    assert [event.message for event in read_all(path)] == ["first", "small"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_was_always_full_says_so_and_ends_in_peace():
    writer = JsonlWriter("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        writer([ev.EngineWarning(message="first")])
    writer.close()
