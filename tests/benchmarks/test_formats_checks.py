"""What holds others' checkpoints against the engine finds what is equal and what is not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.formats import checks
from benchmarks.formats.__main__ import SAYS, TOOL, markdown
from benchmarks.formats.maker import READERS, TOOLS
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
        assert checks.greedy_equal(folder, tmp_path, 97) == checks.PROMPTS


def test_every_format_can_be_made_read_and_named():
    assert TOOLS.keys() == READERS.keys() == SAYS.keys() == TOOL.keys()


def test_the_table_has_the_best_first_and_what_was_refused_last():
    where = {"cpu": "a CPU", "threads": 2, "torch": "2", "transformers": "5", "date": "today"}
    row = {
        "loads": True, "numbers": 1000, "different": 0, "equal": 4, "prompts": 4, "bytes": 30,
        "plain_bytes": 100, "paces": {"quantized": [4.0, 6.0, 5.0], "plain": [2.0, 2.0, 2.0]},
    }  # fmt: skip
    rows = [
        {**row, "says": "worse", "quality": {"kl": 0.2, "changed": 0.1}},
        {"says": "refused", "loads": False, "refused": "it is of another kind"},
        {**row, "says": "better", "quality": {"kl": 0.1, "changed": 0.05}},
    ]
    table = markdown(rows, where, ["a tool that isn't there"]).splitlines()
    assert [line.split(" | ")[0] for line in table[4:7]] == ["| better", "| worse", "| refused"]
    assert table[4].endswith("| 0 of 1,000 | 4 of 4 | 0.10000 | 5.0% | 30% | 2.50× (2.00–3.00) |")
    assert table[-1] == "Left out: a tool that isn't there"
