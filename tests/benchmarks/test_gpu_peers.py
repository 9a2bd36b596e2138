"""Results beside transformers are written one by one: a run that is stopped keeps those it has."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import peers
from benchmarks.workloads import Run

CPU = torch.device("cpu")


class Peer:
    """Transformers whose runs take a second; it can't batch continuously."""

    def __init__(self, told: list[str]):
        self.told = told

    def one_by_one(self, work):
        return self._ran(work.name)

    def static(self, work, size):
        return self._ran(f"static {size}")

    def continuous(self, work):
        raise RuntimeError("no kernels\nfor it")

    def _ran(self, what: str) -> Run:
        self.told.append(what)
        return Run(1.0, 0.1, [1.0])


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What was loaded and run, in order."""
    told: list[str] = []
    speeds = {9: 60.0, 4: 30.0, 8: 48.0}  # tokens/s by requests
    ours = [
        {"system": "Glasshouse", "ran": True, "requests": requests, "tokens_per_s": speed}
        for requests, speed in speeds.items()
    ]

    def peer(*_):
        told.append("loaded")
        return Peer(told)

    monkeypatch.setattr(peers, "_ours", lambda *_: told.append("ours") or ours)
    monkeypatch.setattr(peers, "Transformers", peer)
    return told


def test_each_result_is_there_before_the_next_run(told, tmp_path):
    results = peers.beside_transformers("tiny", CPU, tmp_path, 9, (3, 3))
    assert told == []
    for _ in range(3):
        first = next(results)
        assert (first["system"], first["engine_is"]) == ("Glasshouse", 1.0)
    assert told == ["ours"]  # the peer isn't even loaded
    second = next(results)
    assert (second["system"], second["requests"]) == ("transformers, one by one", 4)
    assert second["engine_is"] == 30 / 12  # 4 requests with 3 tokens each, in a second
    assert told == ["ours", "loaded", "warm", "few"]
    third, fourth, last = results
    assert (third["ran"], third["why"]) == (False, "no kernels for it")
    assert "engine_is" not in third
    assert (fourth["requests"], fourth["engine_is"]) == (9, 60 / 27)
    assert (last["requests"], last["engine_is"]) == (8, 48 / 24)
    assert told[4:] == ["static 32", "static 8"]


def test_a_run_that_is_stopped_runs_no_more(told, tmp_path):
    results = peers.beside_transformers("tiny", CPU, tmp_path, 9, (3, 3))
    next(results)
    results.close()
    assert told == ["ours"]
