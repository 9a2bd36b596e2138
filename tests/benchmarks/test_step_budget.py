"""The step budget on the pocket model: every part and kernel of a real step is accounted for."""

from __future__ import annotations

import pytest

from benchmarks import step_budget
from engine.kernels import cpu


@pytest.mark.skipif(not cpu.available(), reason=cpu.why())
def test_parts_and_kernels_of_real_steps(monkeypatch):
    monkeypatch.setattr(step_budget, "STEPS", 16)
    budget, prompt = step_budget.measure(["pocket"], [3])
    parts = budget["parts"]
    assert all(parts[part] > 0 for part in step_budget.PARTS)
    assert sum(parts[part] for part in step_budget.PARTS) <= 1.5 * parts["total_us"]
    by_name = {line["kernel"]: line for line in budget["kernels"]}
    assert by_name["paged_attention"]["launches"] == 3, "one for each layer"
    assert by_name["embed"]["launches"] == by_name["argmax"]["launches"] == 1
    assert all(line["us"] > 0 and line["share_of_limit"] > 0 for line in by_name.values())
    assert {line["kernel"] for line in prompt["kernels"]} >= {"paged_attention", "embed"}
    assert all(line["tflop_s"] > 0 for line in prompt["kernels"] if line["kernel"] != "embed")
    limits = {"cpu": "x", "threads": 2, "read_gb_s": 1.0, "gemm_tflop_s": 1.0}
    table = step_budget.markdown([budget, prompt], limits)
    assert table.count("| pocket | 3 |") == 1 + len(by_name)
    assert table.count("| pocket | ") == 1 + len(by_name) + len(prompt["kernels"])
