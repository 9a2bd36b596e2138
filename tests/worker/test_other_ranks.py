"""Ranks' processes that end or hang: who tells it, and that none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.child_process import ROOT
from engine.config import ConfigError, EngineConfig
from engine.kernels.ranks import JoinFailed, RankLost, RankSilent
from engine.server.link.engine_client import EXIT_TIMEOUT_S
from engine.worker.memory.kv_sizing import KVMemory
from engine.worker.parallel import rank_processes
from engine.worker.parallel.other_ranks import OtherRanks
from engine.worker.parallel.rank_messages import Measured
from engine.worker.parallel.rank_processes import END_S
from engine.worker.platforms.cpu import CpuPlatform
from engine.worker.platforms.cuda import CudaPlatform
from tests.models import tiny_models

ENDS, HANGS = ["false"], ["sleep", "600"]


def has_ended(others: OtherRanks) -> bool:
    return all(one.returncode is not None for one in others._processes._processes)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Starts these commands as ranks 1, 2, …"""
    monkeypatch.setattr(rank_processes, "END_S", 0.2)
    begun = []

    def start(*commands: list[str], **options) -> OtherRanks:
        left = iter(commands)
        monkeypatch.setattr(rank_processes, "command_of", lambda *_arguments: next(left))
        size = len(commands) + 1
        config = EngineConfig(model="none", tensor_parallel_size=size, **options)
        begun.append(OtherRanks(config, tmp_path, CpuPlatform(torch.device("cpu"))))
        return begun[-1]

    yield start
    for others in begun:
        others.close()
        assert has_ended(others)


def test_one_that_ends_at_once_is_told_though_another_loads(started):
    with pytest.raises(RankLost, match=r"^rank 2 of 3, a process of the model, ended with code 1$"):
        started(HANGS, ENDS).wait_until_loaded()


def test_one_that_takes_no_message_is_told(started):
    others = started(HANGS, engine_timeout=0.02)
    with pytest.raises(RankSilent, match=r"rank 1 of 2, .* taken no message for 0\.1 s"):
        others.tell(b"0" * 2**22)


def test_one_that_does_not_load_is_told(started):
    others = started(HANGS, HANGS, engine_timeout=0.02)
    with pytest.raises(RankSilent, match=r"rank 1 of 3, .* not loaded its share 0\.1 s after"):
        others.wait_until_loaded()


def test_after_a_step_that_was_broken_off_nothing_is_told_to_ranks(started):
    others = started(HANGS, HANGS)
    others.check()
    others.break_off(KeyboardInterrupt())
    assert has_ended(others)
    for call in (others.check, lambda: others.tell("anything")):
        with pytest.raises(RankLost, match=r"broken off by KeyboardInterrupt; .* a new engine"):
            call()


def test_the_server_waits_longer_for_rank_0_than_rank_0_for_the_others():
    assert END_S < EXIT_TIMEOUT_S


def test_a_step_that_does_not_end_is_told(started):
    """On a GPU the device waits for the others, and the host looks."""
    patient, hasty = started(HANGS), started(HANGS, engine_timeout=1e-9)
    patient.patience()()
    with pytest.raises(RankSilent, match=r"a step of 2 ranks has not ended after 5e-09 s"):
        hasty.patience()()
    patient.break_off(KeyboardInterrupt())
    with pytest.raises(RankLost, match="broken off"):
        patient.patience()()


def test_the_rank_with_the_least_memory_decides(started):
    others = started(HANGS, HANGS)
    others._answers.put((2, Measured(300, "the second's", 900)))
    others._answers.put((1, Measured(200, "the first's", 1000)))
    assert others.least_memory(KVMemory(400, "rank 0's", 950)) == (
        *(200, "rank 1 of 3 has the least: the first's", 900),
    )


def test_one_that_does_not_measure_is_told(started):
    with pytest.raises(RankSilent, match=r"has not said how much memory it has after 0\.1 s"):
        started(HANGS, engine_timeout=0.02).least_memory(KVMemory(1, "", 1))


def test_an_error_after_the_end_of_a_rank_is_told_as_that_end(started):
    """What a library says of it means nothing to a user."""
    others = started(HANGS, ENDS)
    with pytest.raises(RankLost):
        others.wait_until_loaded()
    with pytest.raises(RankLost, match=r"^rank 2 of 3, .* ended with code 1$"):
        others.break_off(JoinFailed("connection reset by peer"))


@pytest.mark.parametrize("visible", [None, "0"])
def test_more_ranks_than_gpus_are_refused(visible, monkeypatch):
    platform = CudaPlatform(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("engine.worker.platforms.cuda.why_not", lambda backend: "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    shown = ""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        shown = r" \(CUDA_VISIBLE_DEVICES is '0'\)"
    with pytest.raises(ConfigError, match=rf"is 2, but this machine shows 1 GPU{shown}, and"):
        platform.check_ranks(2)


def test_a_torch_without_nccl_is_told(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_backend_available", lambda backend: False)
    with pytest.raises(ConfigError, match="is 2, but this torch has no NCCL"):
        CudaPlatform(torch.device("cuda")).check_ranks(2)


STARTS = """
import sys, threading, time
from pathlib import Path
from engine.config import EngineConfig
from engine.worker.parallel.other_ranks import OtherRanks
from engine.worker.platforms.cpu import CpuPlatform
import torch

folder = sys.argv[1]
config = EngineConfig(model=folder, tensor_parallel_size=2, device="cpu", cpu_threads=1)
made = []
# as AsyncLLM does, but in a thread that ends
platform = CpuPlatform(torch.device("cpu"))
starting = threading.Thread(target=lambda: made.append(OtherRanks(config, Path(folder), platform)))
starting.start()
starting.join()
others = made[0]
others.wait_until_loaded()
print(others.shares[0].pid, flush=True)
time.sleep(600)
"""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")
def test_a_rank_that_is_stopped_ends_with_rank_0(tmp_path):
    """Started where a file of the user is called like one of Python's."""
    tiny_models.save(tiny_models.NATIVE["llama"](), tmp_path)
    (tmp_path / "queue.py").write_text("raise SystemExit('a file of the user')")
    path = os.pathsep.join([ROOT, *filter(None, sys.path)])
    rank_0 = subprocess.Popen(
        [sys.executable, "-P", "-c", STARTS, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert rank_0.stdout is not None
        pid = int(rank_0.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
    finally:
        rank_0.kill()
        rank_0.communicate()
    deadline = time.monotonic() + 20
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(pid)
