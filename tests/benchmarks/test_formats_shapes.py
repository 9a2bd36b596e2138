"""The table of quantized weights by shape says what was measured."""

from __future__ import annotations

import json

import pytest

from benchmarks.formats import checks, shapes
from engine.quantize.__main__ import main as quantize

PACES = {"quantized": [30.0, 20.0, 10.0], "plain": [10.0, 10.0, 5.0]}
ROW = {
    "shape": "qwen3-0.6b",
    "bytes": {"quantized": 40, "plain": 100},
    "bandwidth": [1600.0, 1000.0],
    "paces": {"W1": PACES, "W2": PACES, "W4": PACES},
}
WHERE = {"cpu": "a CPU", "threads": 2, "torch": "2", "date": "today"}


def test_the_table_has_ratios_and_parts_of_the_bandwidth():
    rows = [{**ROW, "format": "q4_0"}, {**ROW, "format": "gptq-int8-activations"}]
    lines = shapes.markdown(rows, WHERE).splitlines()
    figures = "40% | 40% | 2.00× (2.00–3.00) | 2.00× (2.00–3.00) | 2.00× (2.00–3.00) | 50% | 62% |"
    assert lines[4] == f"| qwen3-0.6b | gptq, int8 activations | {figures}"
    assert lines[5] == f"| qwen3-0.6b | q4_0 | {figures}"


def test_what_a_token_does_not_read_is_no_bandwidth():
    """Embeddings beside a head of its own are in the file, but are looked up."""
    row = {**ROW, "format": "gptq-head", "read": {"quantized": 20, "plain": 100}}
    [line] = shapes.markdown([row], WHERE).splitlines()[4:]
    assert line.startswith("| qwen3-0.6b | gptq-head | 40% | 20% |")
    assert line.endswith("| 25% | 62% |")


def test_each_run_is_held_against_the_memory_beside_it():
    """Other users of the machine slow its memory for seconds: no other moment counts."""
    limits = {"quantized": [1.5e-6, 1e-6, 0.5e-6], "plain": [2e-6, 1e-6, 0.1e-6]}
    row = {**ROW, "format": "gptq", "read_gb_s": limits}
    assert shapes.share(row, "quantized") == pytest.approx(40 * 20 / 1000)
    assert shapes.share(row, "plain") == pytest.approx(100 * 10 / 1000)


@pytest.mark.parametrize("form", ["gptq", "q4_0"])
def test_the_embeddings_of_a_model_with_a_head_of_its_own_are_not_read(form, tmp_path):
    read = {}
    for head in ([], ["--head"]):
        folder = tmp_path / f"{form}{len(head)}"
        said = ["pocket", "--weights-only", "--format", form, *head, "--out", str(folder)]
        assert quantize(said) == 0
        read[bool(head)] = checks.num_bytes(folder) - checks.bytes_read(folder)
    assert read[False] == 0
    # the pocket model's table, in bf16 or in Q8_0
    assert read[True] == 2048 * 384 * (2 if form == "gptq" else 34 / 32)


@pytest.mark.slow
def test_a_shape_is_quantized_once_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "KEPT", tmp_path / "kept")
    assert shapes.main(["--shapes", "pocket", "--formats", "q4_0", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "formats_shapes.md").read_text().splitlines()
    assert len(table) == 5 and table[4].startswith("| pocket | q4_0 |")
    [row] = json.loads((tmp_path / "formats_shapes.json").read_text())["rows"]
    assert [len(row["read_gb_s"][of]) for of in row["paces"]["W1"]] == [7, 7]
    [made] = (tmp_path / "kept").glob("pocket-*-q4_0")
    changed = made.stat().st_mtime_ns
    assert shapes.checkpoint("pocket", "pocket", "q4_0") == made
    assert made.stat().st_mtime_ns == changed
