"""A model that is quantized here is served, with the weights that rounding gave it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.config import POCKET_MODEL, EngineConfig
from engine.kernels import BACKENDS, TORCH, Backend
from engine.models.loader import load_model
from engine.quantize import own_text
from engine.quantize.__main__ import main
from engine.quantize.feedback import round_with_feedback
from engine.quantize.packing import PACKINGS
from engine.quantize.weight_rounding import Grid, round_to_nearest
from engine.text.loading import load_tokenizer
from tests.models.quantized_files import CONFIG


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_each_weight_becomes_the_nearest_code(bits, symmetric):
    weight = random(8, 64)
    grid = Grid(bits, 32, symmetric)
    rounded = round_to_nearest(weight, grid)
    numbers, scales = rounded.numbers(), rounded.scales.float().repeat_interleave(32, 1)
    half_a_step = scales.abs() * (0.5 + 1e-3)
    # of the code beyond the last one there is none: there it may be a whole step
    at_the_end = rounded.codes == grid.last
    assert ((numbers - weight).abs() <= torch.where(at_the_end, 2, 1) * half_a_step).all()
    assert (rounded.zeros == grid.middle).all() == symmetric


def test_a_group_of_zeros_stays_zeros():
    assert not round_to_nearest(torch.zeros(2, 32), Grid(4, 32, False)).numbers().any()


def test_feedback_makes_outputs_better_and_weights_worse():
    # inputs that go together, so that one can stand in for another
    x = random(512, 40) @ random(40, 64)
    weight, grid = 0.1 * random(32, 64), Grid(4, 32, True)
    nearest = round_to_nearest(weight, grid).numbers()
    corrected = round_with_feedback(weight, x.T @ x, grid).numbers()

    def errors(numbers):
        return float((numbers - weight).norm()), float((x @ (numbers - weight).T).norm())

    assert errors(corrected)[0] > errors(nearest)[0]
    assert errors(corrected)[1] < 0.7 * errors(nearest)[1]


def test_feedback_survives_an_input_that_is_always_zero():
    x = random(64, 32)
    x[:, 5] = 0
    rounded = round_with_feedback(random(4, 32), x.T @ x, Grid(4, 32, True))
    assert torch.isfinite(rounded.numbers()).all()


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(own_text, "TEXTS", 2)
    monkeypatch.setattr(own_text, "LENGTH", 12)
    monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))


def weights_of(model: str) -> dict[str, torch.Tensor]:
    config = EngineConfig(model=model, quantization="none", device="cpu", dtype="float32")
    return dict(load_model(config, torch.device("cpu")).weight_targets())


@pytest.mark.parametrize(
    ("form", "feedback"), [("gptq", True), *((form, False) for form in PACKINGS)]
)
def test_what_is_written_is_read_again(form, feedback, tmp_path, few, capsys):
    """A code in a wrong place would be an error of 140 %."""
    torch.manual_seed(0)
    config = LlamaConfig(**CONFIG)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "plain")
    said = [str(tmp_path / "plain"), "--format", form, "--out", str(tmp_path / "out")]
    assert main([*said, *(["--feedback"] if feedback else [])]) == 0
    out = capsys.readouterr().out
    assert "nats a token" in out and re.search(r"down_proj +2 ", out)
    before, after = (weights_of(str(tmp_path / name)) for name in ("plain", "out"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        error = float((after[name] - weight).norm() / weight.norm())
        least, most = (0.001, 0.02) if form == "int8" else (0.05, 0.25)
        least, most = (least, most) if "proj" in name else (0.0, 0.0)
        assert least <= error <= most, (name, error)
    assert main(said) == 2
    assert "is not empty" in capsys.readouterr().err


def test_weights_only_needs_no_text(tmp_path, few, monkeypatch, capsys):
    """The checkpoint is the same; the model is never run, which would take a large one long."""
    config = LlamaConfig(**CONFIG)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "plain")
    said = [str(tmp_path / "plain"), "--format", "gptq", "--out"]
    assert main([*said, str(tmp_path / "measured")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(own_text, "write_text", None)
    monkeypatch.setattr("engine.quantize.make.write_text", None)
    assert main([*said, str(tmp_path / "out"), "--weights-only"]) == 0
    out = capsys.readouterr().out
    assert "error of weights" in out and "outputs" not in out and "nats" not in out
    files = [tmp_path / name / "model.safetensors" for name in ("measured", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(SystemExit):
        main([*said, str(tmp_path / "other"), "--weights-only", "--feedback"])
    assert "leave --weights-only out" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["q4_0", "q8_0"])
def test_a_gguf_file_is_a_whole_model(form, tmp_path, few, monkeypatch, capsys):
    monkeypatch.setattr("engine.models.formats.gguf_folder._kept", lambda: tmp_path / "cache")
    assert main(["pocket", "--format", form, "--out", str(tmp_path / "out")]) == 0
    path = str(tmp_path / "out" / f"model-{form}.gguf")
    before, after = weights_of("pocket"), weights_of(path)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        error = float((after[name] - weight).norm() / weight.norm())
        bound = 0.0 if "norm" in name else 0.12 if form == "q4_0" and "proj" in name else 0.01
        assert error <= bound, (name, error)
    text = "Anna has 12 apples.\n\nHow many?"
    ours, theirs = load_tokenizer(path), load_tokenizer(POCKET_MODEL)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.facts.chat_template == theirs.facts.chat_template


def test_what_cannot_be_quantized_is_told_in_one_line(tmp_path, few, capsys):
    def refused(model, form, says, *more):
        assert main([str(model), "--format", form, "--out", str(tmp_path / "o"), *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert says in error, error

    refused("pocket", "gptq", "are no whole groups of 100", "--group-size", "100")
    refused("pocket", "int8", "--group-size can't be given", "--group-size", "32")
    refused("pocket", "gptq", "codes of (4, 8) bits, not 5", "--bits", "5")
    folder = tmp_path / "odd"
    AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG)).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"architectures": ["OtherModel"]}))
    refused(folder, "gptq", "its architecture is OtherModel")
    (folder / "config.json").write_text(json.dumps(said))
    refused(folder, "q4_0", "has no tokenizer that a GGUF file can hold")
    quantized = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(said | {"quantization_config": quantized}))
    refused(folder, "gptq", f"{folder} is quantized already (awq); name the plain checkpoint.")
    (folder / "config.json").write_text("{bad")
    refused(folder, "gptq", "config.json can't be used")
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "model.safetensors").write_bytes(b"no weights")
    refused(folder, "gptq", f"{folder} can't be loaded: ")
    (folder / "model.safetensors").unlink()
    refused(folder, "gptq", "has no weights: no model.safetensors")


def test_a_gguf_file_is_quantized_already(tmp_path, few, capsys):
    assert main(["pocket", "--format", "q4_0", "--weights-only", "--out", str(tmp_path)]) == 0
    [file] = tmp_path.glob("*.gguf")
    capsys.readouterr()
    assert main([str(file), "--format", "gptq", "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"{file} is quantized already (gguf); name the plain checkpoint.\n")
    assert "Traceback" not in error
