"""The engine process is started first, is the server's only child, and ends with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.server.link import engine_start
from engine.server.link.engine_start import EngineStart

POCKET = Path(__file__).resolve().parents[2] / "pocket" / "model"
ROOT = POCKET.parents[1]

STARTS = """
import json, sys
from engine.server import command
from engine.server.link.engine_start import EngineStart

def run(self, config, load=None):
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
    sys.exit(7)

EngineStart.run = run
command.main(["--model", sys.argv[1], "--host", "127.0.0.1", "--port", "0"])
"""

IMPORTS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from engine.config import EngineConfig
from engine.server import lifecycle
from tests.server.fake_engine import fake

def serve(config, engine, listener, listeners):
    print(engine.pid, flush=True)
    try:
        time.sleep(60)
    except BaseException as error:  # as pydantic's code does while a model's class is made
        raise ValueError("no class can be made") from error

if __name__ == "__main__":
    lifecycle._serve = serve
    config = EngineConfig(model=sys.argv[2], uds=sys.argv[3])
    sys.exit(lifecycle.serve(config, fake()))
"""


def test_nothing_that_takes_long_is_imported_before_the_engine_process_starts():
    ran = subprocess.run(
        [sys.executable, "-c", STARTS, str(POCKET)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 7, ran.stderr
    listens, imported = ran.stdout.splitlines()
    assert "listens on" in listens  # the port is bound first: one in use is an error at once
    slow = {"fastapi", "starlette", "uvicorn", "pydantic", "jinja2", "tokenizers", "opentelemetry"}
    assert not (slow | {"torch", "numpy", "loguru"}) & set(json.loads(imported))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_told_to_end_while_it_imports_ends_with_its_engine(tmp_path, number):
    script = tmp_path / "importing.py"
    script.write_text(IMPORTS)
    listens = tmp_path / "socket"
    command = [sys.executable, str(script), str(ROOT), str(POCKET), str(listens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "listens on" in server.stdout.readline()
        engine = int(server.stdout.readline())
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert listens.exists()
        server.send_signal(number)
        assert server.wait(timeout=60) == 0
    assert children == [str(engine)]  # no tracker of shared memory, which nothing here uses
    assert not os.path.exists(f"/proc/{engine}") and not listens.exists()


def test_an_engine_process_that_has_ended_before_it_read_its_config_is_only_dead(monkeypatch):
    monkeypatch.setattr(
        engine_start, "command_of", lambda *_: [sys.executable, "-c", "raise SystemExit(5)"]
    )
    start = EngineStart(2)
    own = [start.end, *start.other_ends, start.record_end]
    try:
        start.run(EngineConfig(api_key=["k" * 2**20]))  # more than a pipe holds
        start.wait()
        assert start.exit_code == 5 and not start.is_alive
        assert start.sentinel is not None and os.read(start.sentinel, 1) == b""
        assert all(end.recv(1) == b"" for end in own)  # the other ends are closed
        start.close()
        start.close()  # twice is as good
        assert start.sentinel is None
    finally:
        for end in own:
            end.close()


def test_each_server_process_has_a_channel_of_its_own():
    start = EngineStart(3)
    ends = [start.end, *start.other_ends, start.record_end]
    try:
        for number, (ours, its) in enumerate(
            zip(ends, [*start._its_ends.orders, start._its_ends.record], strict=True)
        ):
            ours.sendall(bytes([number]))
            assert its.recv(1) == bytes([number]) and its.family == socket.AF_UNIX
    finally:
        for end in (*ends, *start._its_ends.orders, start._its_ends.record):
            end.close()
