"""`make gpu` with parts that are made up: what fails, hangs, is left out or runs again; the parts
themselves are in triton/test_gpu_dry_run.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import record
from benchmarks.gpu.parts import PARTS

ROOT = Path(__file__).parents[2]
CARD = {
    "device": "NVIDIA H200",
    "torch": "2.11",
    "triton": "3.6",
    "cuda": "13.0",
    "python": "3.12",
    "date": "2026-11-21",
    "copy_gb_s": 4300.0,
    "matrix_tflop_s": 780.0,
}
CHECK = {"kernel": "x", "dtype": "float32", "error": 0.0, "allowed": 0.1}
PROMPTS = {"prompts": 2, "equal": 2, "model": "m"}
SAYS = {
    "limits": [("limits", CARD)],
    "kernels": [("kernels", CHECK), ("kernels", CHECK)],
    "parity": [("parity", PROMPTS), ("bf16_logits", {**CHECK, "model": "m"})],
    "decode_attention": [
        (
            "decode_attention",
            {"rows": 1, "context": 2, "cache": "float16", "us": 1.0, "share_of_limit": 0.9},
        )
    ],
}


def making(then: dict[str, str] | None = None, **says):
    """A `command` whose parts print what they are told to, and then do what they are told to."""
    heard: list[tuple] = []

    def command(part, dry, limits=None):
        heard.append((part, dry, limits))
        results = {**SAYS, **says}.get(part, [])
        lines = [json.dumps({"where": where, "result": found}) for where, found in results]
        script = f"import sys, time, os\nfor line in {lines!r}: print(line, flush=True)\n"
        return [sys.executable, "-c", script + (then or {}).get(part, "")]

    return command, heard


def read(folder) -> dict:
    return json.loads((folder / "gpu-nvidia-h200.json").read_text())


def test_every_part_runs_in_order_with_the_measured_limits(tmp_path):
    command, heard = making()
    assert gpu.main(["--out", str(tmp_path)], command) == 0
    assert [part for part, *_ in heard] == ["limits", *PARTS]
    rates = {"copy_gb_s": 4300.0, "matrix_tflop_s": 780.0}
    assert all(limits == rates for _, _, limits in heard[1:])
    found = read(tmp_path)
    assert found["device"] == "NVIDIA H200" and found["limits"] == rates
    assert found["kernels"] == [CHECK, CHECK] and found["parity"] == [PROMPTS]
    assert {state["ended"] for state in found["parts"].values()} == {"complete"}
    page = (tmp_path / "gpu-nvidia-h200.md").read_text()
    assert "2 of 2 within" in page and "A dry run" not in page


def test_a_part_that_fails_does_not_stop_the_rest(tmp_path, capsys):
    command, _ = making({"kernels": "print('CUDA error: 700'); sys.exit(3)"})
    assert gpu.main(["--only", "kernels,decode_attention", "--out", str(tmp_path)], command) == 1
    found = read(tmp_path)
    assert found["parts"]["kernels"]["ended"] == "failed"
    assert found["parts"]["kernels"]["why"] == "exit status 3: CUDA error: 700"
    assert len(found["kernels"]) == 2  # what it had found before
    assert found["parts"]["decode_attention"]["ended"] == "complete"
    assert len(found["decode_attention"]) == 1
    assert '"part": "kernels"' in capsys.readouterr().err
    assert "**kernels: failed**: exit status 3: CUDA error" in (
        (tmp_path / "gpu-nvidia-h200.md").read_text()
    )


def test_a_part_that_hangs_is_ended_with_what_it_started(tmp_path, monkeypatch):
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    child = f"import subprocess; subprocess.run([sys.executable, {str(sleeper)!r}])"
    monkeypatch.setitem(PARTS, "kernels", PARTS["kernels"]._replace(limit_s=3))
    monkeypatch.setattr(gpu, "LEAST_S", 1)
    command, _ = making({"kernels": child})
    assert gpu.main(["--only", "kernels", "parity", "--out", str(tmp_path)], command) == 1
    found = read(tmp_path)
    assert found["parts"]["kernels"]["ended"] == "out of time"
    assert len(found["kernels"]) == 2
    assert found["parts"]["parity"]["ended"] == "complete"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid):
        assert time.monotonic() < deadline, "the hanging child still runs"
        time.sleep(0.05)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_no_part_is_begun_without_time_for_it(tmp_path, capsys):
    command, heard = making()
    arguments = ["--within", str(gpu.LEAST_S - 1), "--only", "kernels", "--out", str(tmp_path)]
    assert gpu.main(arguments, command) == 0
    assert [part for part, *_ in heard] == ["limits"]
    assert "no time is left for kernels" in capsys.readouterr().err
    assert "kernels" not in read(tmp_path)["parts"]


def test_results_are_on_the_disk_as_they_come(tmp_path):
    """The whole run is killed while a part still works."""
    script = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from tests.kernels import test_gpu_run as here
        command, _ = here.making({{"kernels": "time.sleep(60)"}})
        here.gpu.main(["--only", "kernels", "--out", {str(tmp_path)!r}], command)
    """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        path = tmp_path / "gpu-nvidia-h200.json"
        while not path.exists() or len(read(tmp_path).get("kernels", [])) < 2:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(run.pid, signal.SIGTERM)
        run.wait(10)
    found = read(tmp_path)
    assert found["kernels"] == [CHECK, CHECK]
    assert found["parts"]["kernels"]["ended"] == "unfinished"


def test_a_part_that_runs_again_replaces_its_own_results_only(tmp_path):
    gpu.main(["--only", "kernels,parity", "--out", str(tmp_path)], making()[0])
    newer = {**CARD, "date": "2026-12-01"}
    command, _ = making(limits=[("limits", newer)], parity=[("parity", {**PROMPTS, "equal": 1})])
    assert gpu.main(["--only", "parity", "--out", str(tmp_path)], command) == 1
    found = read(tmp_path)
    assert found["kernels"] == [CHECK, CHECK]
    assert found["parity"] == [{**PROMPTS, "equal": 1}] and "bf16_logits" not in found
    assert found["date"] == "2026-12-01"
    assert "- kernels: with date 2026-11-21" in (tmp_path / "gpu-nvidia-h200.md").read_text()


def test_records_of_several_machines_are_joined(tmp_path):
    """As when each part ran on a machine that kept nothing."""
    files = []
    for place, only in enumerate(("kernels,parity", "decode_attention", "parity")):
        folder = tmp_path / str(place)
        again = {"parity": [("parity", {**PROMPTS, "model": "again"})]} if place == 2 else {}
        gpu.main(["--only", only, "--out", str(folder)], making(**again)[0])
        files.append(folder / "gpu-nvidia-h200.json")
    out = tmp_path / "all"
    assert gpu.main(["--join", *map(str, files), "--out", str(out)]) == 0
    found = read(out)
    assert set(found["parts"]) == {"kernels", "parity", "decode_attention"}
    assert found["kernels"] == [CHECK, CHECK] and len(found["decode_attention"]) == 1
    assert found["parity"] == [{**PROMPTS, "model": "again"}] and "bf16_logits" not in found
    with pytest.raises(ValueError, match="different cards"):
        record.joined([found, {**found, "device": "another"}])


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--only", "kernels,spead"], making()[0])
    assert "no part spead" in capsys.readouterr().err


def test_a_card_that_can_not_be_measured_ends_the_run(tmp_path, capsys):
    command, heard = making(
        {"limits": "print('there is no CUDA device here'); sys.exit(2)"}, limits=[]
    )
    assert gpu.main(["--out", str(tmp_path)], command) == 1
    assert len(heard) == 1 and not list(tmp_path.iterdir())
    assert "there is no CUDA device here" in capsys.readouterr().err
