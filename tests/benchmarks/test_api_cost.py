"""The cost of the process that speaks HTTP is told apart from the engine's, beside peers."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import closing

import pytest

from benchmarks.peers import api_cost, servers
from benchmarks.peers.install import Peers
from benchmarks.peers.results import ENGINE
from benchmarks.token_cost import Streams
from engine.config import POCKET_MODEL


def test_the_table():
    def run(system, api_us, all_us):
        figures = {"tokens_per_s": 100.0, "api_us": api_us, "all_us": all_us}
        return {"system": system, "streams": 16, **figures}

    runs = [run(ENGINE, us, 900.0) for us in (30.0, 20.0, 25.0)] + [run("llama.cpp", None, 950.0)]
    versions = {ENGINE: {}, "llama.cpp": {"llama.cpp": "1"}}
    text = api_cost.markdown({"versions": versions, "runs": runs}, 2, ["vLLM"])
    assert f"| 16 | {ENGINE} | 100 | 25 | 20 | 900 |" in text
    assert "| 16 | llama.cpp | 100 | not apart |  | 950 |" in text
    assert "vLLM is not installed" in text and "llama.cpp 1" in text


def test_a_family_has_children_and_theirs():
    child = multiprocessing.get_context("spawn").Process(target=_wait)
    child.start()
    try:
        found = api_cost.family(os.getpid())
        assert found[0] == os.getpid() and child.pid in found
        assert api_cost.cpu_s(found) >= api_cost.cpu_s([os.getpid()]) > 0
    finally:
        child.kill()
        child.join()


def _wait() -> None:
    import time

    time.sleep(60)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(180)
def test_our_server(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "LOGS", tmp_path)
    for name, value in {"WARM_S": 0.1, "MEASURED_S": 0.4, "TOKENS": 2000}.items():
        monkeypatch.setattr(api_cost, name, value)  # pocket says over 1,000 tokens a second
    with closing(servers.glasshouse(POCKET_MODEL, "bfloat16", 1, Peers())) as server:
        seen = api_cost.run(server, 1)
        with (
            closing(Streams(server.port, "completions", 2, max_tokens=40)) as short,
            pytest.raises(RuntimeError, match="a stream ended"),
        ):
            short.read(60)
    assert 0 < seen["api_us"] < seen["all_us"] and seen["tokens_per_s"] > 0
