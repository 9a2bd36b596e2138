"""What holds others' checkpoints against the engine finds what is equal and what is not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.formats import checks, squeezellm
from benchmarks.formats import made as checkpoints
from benchmarks.formats.forms import AUTO_ROUND, COMPRESSOR, FORMS, MADE, ROUNDED
from benchmarks.formats.maker import READERS, TOOLS, by_description
from benchmarks.formats.table import markdown
from benchmarks.peers.install import Peers
from tests.models.quantized_files import FORMATS, save


@pytest.fixture(scope="module", params=["gptq", "nf4 nested"])
def made(request, tmp_path_factory):
    """(folder of a checkpoint, what its weights stand for)"""
    folder = tmp_path_factory.mktemp("made")
    return folder, save(FORMATS[request.param], folder).state_dict()


def test_numbers_are_compared_bit_by_bit(made, tmp_path):
    folder, expected = made
    ours = dict(checks.numbers_of(folder))
    layers = {name: wanted for name, wanted in expected.items() if "proj" in name}
    save_file({name: wanted.contiguous() for name, wanted in layers.items()}, tmp_path / "all")
    count = sum(wanted.numel() for wanted in layers.values())
    assert checks.compare_numbers(ours, tmp_path / "all") == (count, 0)
    name = next(iter(layers))
    layers[name] = layers[name].clone()
    layers[name][0, 0] += 1
    save_file(layers, tmp_path / "one")
    assert checks.compare_numbers(ours, tmp_path / "one") == (count, 1)


def test_a_plain_checkpoint_of_the_same_numbers(made, tmp_path):
    folder, expected = made
    checks.expand(folder, dict(checks.numbers_of(folder)), tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], expected[name]) for name in written)
    said = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in said
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checks, "POOL", 1 << 20)
        patched.setattr(checks, "ANSWER", 8)
        assert checks.greedy_equal(folder, tmp_path, 97) == checks.PROMPTS


def test_every_format_can_be_made_and_read():
    assert READERS.keys() == MADE.keys() == FORMS.keys() - {f"{name}-int8" for name in ROUNDED}
    of_tools = {name for name, form in MADE.items() if form.tool in (AUTO_ROUND, COMPRESSOR)}
    assert TOOLS.keys() == of_tools


@pytest.mark.parametrize("sparse", [False, True])
def test_k_means_are_stored_as_the_engine_reads_them(sparse, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    plain = save(FORMATS["gptq"], source).state_dict()  # its numbers are taken, not its codes
    checks.expand(source, plain, tmp_path / "plain")
    monkeypatch.setattr(squeezellm, "KEPT", 0.1)
    squeezellm.make(tmp_path / "plain", tmp_path / "made", sparse)
    ours = dict(checks.numbers_of(tmp_path / "made"))
    theirs = {f"{name}.weight": of for name, of in by_description("", str(tmp_path / "made"))}
    save_file(theirs, tmp_path / "library")
    count = sum(of.numel() for of in theirs.values())
    assert checks.compare_numbers(ours, tmp_path / "library") == (count, 0)
    name = "model.layers.0.mlp.down_proj.weight"
    error = float((ours[name] - plain[name]).norm() / plain[name].norm())
    assert error < (0.08 if sparse else 0.12)
    near = [(ours[name][0] - of).abs().amin() for of in plain[name][0]]
    assert max(near) < plain[name].abs().max() / 4


def test_a_model_that_was_trained_again_is_quantized_again(tmp_path, monkeypatch):
    """Else the quality of old weights would stand beside the new ones as a reference."""
    calls = []
    monkeypatch.setattr(checkpoints, "MADE", tmp_path / "kept")
    monkeypatch.setattr(checkpoints.squeezellm, "make", lambda _, out, **how: out.mkdir())
    monkeypatch.setattr(checkpoints, "find_model", lambda *_: tmp_path)
    for weights in (b"first", b"first", b"second"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        calls.append(checkpoints.checkpoint(Peers(), "squeezellm", "pocket"))
    assert calls[0] == calls[1] != calls[2] and all(folder.is_dir() for folder in calls)


def test_what_tables_hold_is_the_mean_of_what_is_near():
    weight = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    table, codes = squeezellm.clusters(weight)
    nearest = (weight[..., None] - table[:, None]).abs().argmin(-1)
    assert torch.equal(codes, nearest)
    for row, row_codes, means in zip(weight, codes, table):
        for code in row_codes.unique():
            assert torch.isclose(means[code], row[row_codes == code].mean(), atol=1e-3)


WHERE = {"cpu": "a CPU", "threads": 2, "torch": "2", "transformers": "5", "date": "today"}
ROW = {
    "exact": {"numbers": 1000, "different": 0, "equal": 4, "prompts": 4},
    "bytes": 30,
    "plain_bytes": 100,
}
TURNS = {"quantized": [4.0, 6.0, 5.0], "plain": [2.0, 2.0, 2.0]}


def test_the_table_has_the_best_first_and_what_was_refused_last():
    rows = [
        {**ROW, "format": "awq", "quality": {"kl": 0.2, "changed": 0.1}},
        {"format": "fp8", "refused": "it is of another kind"},
        {**ROW, "format": "gptq", "quality": {"kl": 0.1, "changed": 0.05}, "paces": {"W1": TURNS}},
    ]
    table = markdown(rows, WHERE, ["a tool that isn't there"]).splitlines()
    says = [FORMS[name].says for name in ("gptq", "awq", "fp8")]
    assert [line.split(" | ")[0] for line in table[4:7]] == [f"| {of}" for of in says]
    expected = "| 0 of 1,000 | 4 of 4 | 0.10000 | 5.0% | 30% | 2.50× (2.00–3.00) | – | – |"
    assert table[4].endswith(expected)
    assert table[-1] == "Left out: a tool that isn't there"


def test_what_was_not_measured_yet_is_a_dash():
    table = markdown([{"format": "gptq", "bytes": 30, "plain_bytes": 100}], WHERE, [])
    assert "| – | – | – | – | 30% | – | – | – |" in table
