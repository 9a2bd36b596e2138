"""A head is quantized when asked for, a tied one, too: then the embeddings stay as they are."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from engine.config import POCKET_MODEL
from engine.kernels import BACKENDS, TORCH, Backend
from engine.quantize import own_text
from engine.quantize.__main__ import main
from engine.quantize.packing import PACKINGS
from tests.models.quantized_files import CONFIG
from tests.models.test_loader import rewrite
from tests.quantize.test_quantize import weights_of

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
VOCABULARY = 104  # GPTQ and AWQ pack 8 outputs in a word


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(own_text, "TEXTS", 2)
    monkeypatch.setattr(own_text, "LENGTH", 12)
    monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))


def saved(folder, *, tied: bool, vocab_size: int = VOCABULARY):
    torch.manual_seed(0)
    config = LlamaConfig(**CONFIG | {"vocab_size": vocab_size}, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def quantized(folder, form: str, out, *more: str) -> int:
    return main([str(folder), "--format", form, "--head", *more, "--out", str(out)])


def error(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("form", "feedback"), [("gptq", True), *((form, False) for form in PACKINGS)]
)
def test_a_quantized_head_is_read_again(form, feedback, tied, tmp_path, capsys):
    plain, out = saved(tmp_path / "plain", tied=tied), tmp_path / "out"
    assert quantized(plain, form, out, *(["--feedback"] if feedback else [])) == 0
    assert re.search(r"lm_head +1 +\d+\.\d+% +\d+\.\d+%\n", capsys.readouterr().out)
    before, after = weights_of(str(plain)), weights_of(str(out))
    assert after.keys() == before.keys() | {HEAD}
    assert torch.equal(after[TABLE], before[TABLE])
    least, most = (0.001, 0.02) if form == "int8" else (0.05, 0.25)
    assert least < error(after[HEAD], before[TABLE if tied else HEAD]) < most


@pytest.mark.parametrize("form", PACKINGS)
def test_config_json_says_it_as_each_reader_asks(form, tmp_path):
    for head in (True, False):
        plain, out = saved(tmp_path / f"{head}", tied=True), tmp_path / f"out {head}"
        asked = [str(plain), "--format", form, "--weights-only", "--out", str(out)]
        assert main([*asked, *["--head"] * head]) == 0
        said = json.loads((out / "config.json").read_text())
        assert said["tie_word_embeddings"] == (not head)
        of = said["quantization_config"]
        if of["quant_method"] == "compressed-tensors":
            [group] = of["config_groups"].values()
            assert of["ignore"] == ["lm_head"] * (not head)
            assert any(re.match(one[3:], "lm_head") for one in group["targets"]) == head
        else:
            assert of["lm_head"] == head
            assert of.get("modules_to_not_convert", []) in ([], ["lm_head"] * (not head))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("form", ["w4a16", "int8"])
def test_transformers_reads_the_same_numbers(form, head, tmp_path):
    """By compressed-tensors itself: GPTQ's and AWQ's readers need a GPU's kernels."""
    plain, out = saved(tmp_path / "plain", tied=True), tmp_path / "out"
    asked = [str(plain), "--format", form, "--weights-only", "--out", str(out)]
    assert main([*asked, *["--head"] * head]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 3, 9]])
    with torch.inference_mode():
        theirs(ids)  # takes the codes apart
    found = theirs.state_dict()
    if not head:
        assert theirs.lm_head.weight is theirs.get_input_embeddings().weight
    for name, weight in weights_of(str(out)).items():
        torch.testing.assert_close(found[name], weight, rtol=2e-3, atol=1e-6)  # scales in f16


def test_the_loss_is_measured_with_it(tmp_path, monkeypatch):
    heads = []

    def loss(model, texts):
        heads.append(model.lm_head.weight.clone())
        return 0.0

    monkeypatch.setattr("engine.quantize.make.loss", loss)
    plain, out = saved(tmp_path / "plain", tied=True), tmp_path / "out"
    assert quantized(plain, "gptq", out) == 0
    before, after = heads
    assert torch.equal(before, weights_of(str(plain))[TABLE])
    assert torch.equal(after, weights_of(str(out))[HEAD])


def test_words_that_the_vocabulary_does_not_fill_are_refused(tmp_path, capsys):
    plain = saved(tmp_path / "plain", tied=False, vocab_size=97)
    for form in ("gptq", "awq-like"):
        assert quantized(plain, form, tmp_path / form) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{form} packs 8 outputs in a word, which the 97 of lm_head don't fill." in told
    assert quantized(plain, "w4a16", tmp_path / "w4a16", "--weights-only") == 0
    before, after = weights_of(str(plain)), weights_of(str(tmp_path / "w4a16"))
    assert 0.05 < error(after[HEAD], before[HEAD]) < 0.25


def test_embeddings_that_are_stored_as_the_head_alone_are_kept(tmp_path):
    plain, out = saved(tmp_path / "plain", tied=True), tmp_path / "out"
    rewrite(plain, lambda tensors: tensors.update({HEAD: tensors.pop(TABLE)}))
    assert quantized(plain, "gptq", out, "--weights-only") == 0
    before, after = weights_of(str(plain)), weights_of(str(out))
    assert torch.equal(after[TABLE], before[TABLE])
    assert 0.05 < error(after[HEAD], before[TABLE]) < 0.25


def test_names_of_the_bare_decoder_are_no_other_matrices(tmp_path):
    """Old OPT checkpoints name their weights "decoder.…", without "model."."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    plain, out = tmp_path / "plain", tmp_path / "out"
    AutoModelForCausalLM.from_config(config).save_pretrained(plain)

    def shorten(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(plain, shorten)
    assert quantized(plain, "gptq", out) == 0
    before, after = weights_of(str(plain)), weights_of(str(out))
    for name, weight in before.items():
        if ("proj" in name or "fc" in name) and name.endswith("weight"):
            assert 0.05 < error(after[name], weight) < 0.25, name
        else:
            assert torch.equal(after[name], weight), name


@pytest.mark.parametrize("form", ["gptq", "q4_0"])
@pytest.mark.parametrize("head", [True, False])
def test_another_head_than_the_embeddings_is_kept_though_config_json_ties_it(
    head, form, tmp_path, monkeypatch
):
    monkeypatch.setattr("engine.models.formats.gguf_folder._kept", lambda: tmp_path / "cache")
    plain, out = tmp_path / "plain", tmp_path / "out"
    shutil.copytree(POCKET_MODEL, plain)
    rewrite(plain, lambda tensors: tensors.update({HEAD: -tensors[TABLE]}))
    asked = [str(plain), "--format", form, "--weights-only", "--out", str(out)]
    assert main([*asked, *["--head"] * head]) == 0
    before = weights_of(str(plain))
    after = weights_of(str(out / "plain-q4_0.gguf" if form == "q4_0" else out))
    assert not torch.equal(before[HEAD], before[TABLE])
    least, most = (0.05, 0.25) if head else (0, 0.01)  # in a GGUF file Q8_0
    assert least <= error(after[HEAD], before[HEAD]) < most
    if form == "gptq":
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_gguf_file_has_a_head_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("engine.models.formats.gguf_folder._kept", lambda: tmp_path / "cache")
    assert quantized("pocket", "q4_0", tmp_path / "out") == 0
    assert re.search(r"lm_head +1 ", capsys.readouterr().out)
    before, after = weights_of("pocket"), weights_of(str(tmp_path / "out" / "model-q4_0.gguf"))
    assert error(after[TABLE], before[TABLE]) < 0.01  # Q8_0
    assert 0.05 < error(after[HEAD], before[TABLE]) < 0.12
    assert quantized("pocket", "q8_0", tmp_path / "other") == 2
    assert "in 8 bits anyway: leave --head out" in capsys.readouterr().err
