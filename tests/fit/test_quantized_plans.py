"""The plan of a quantized checkpoint counts the matrices that are quantized, each as it is."""

from __future__ import annotations

import json

import pytest
import torch

from engine.config import EngineConfig
from engine.fit.estimate import make_plan
from engine.fit.known import known_config
from engine.fit.report import report
from engine.fit.shape import PlanError, shape_of
from engine.kernels import BACKENDS, TORCH, Backend
from engine.models.loader import load_model
from engine.trace.events import EngineModelLoaded
from engine.trace.recorder import Recorder
from tests.models.quantized_files import FORMATS, gptq, save

ALL = ("proj.weight", "lm_head.weight")
W4, W8 = FORMATS["compressed-tensors W4A16"], FORMATS["compressed-tensors W8"]
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}


def loaded(folder, monkeypatch) -> EngineModelLoaded:
    """What the engine says that it has loaded, in plain torch."""
    monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    load_model(EngineConfig(model=str(folder)), torch.device("cpu"), recorder=recorder)
    recorder.close()
    [event] = [event for event in events if isinstance(event, EngineModelLoaded)]
    return event


def change_quantization(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def counted_right(folder, monkeypatch) -> str:
    """Compare the plan with what is loaded; return its text."""
    plan, event = make_plan(str(folder)), loaded(folder, monkeypatch)
    assert plan.shape.parameters == event.num_parameters
    assert plan.shape.weight_bytes == pytest.approx(
        event.num_bytes, rel=0.12
    )  # some scales are fp32
    return report(plan)


@pytest.mark.parametrize("ignored", ["re:.*_head$", "re:.*lm_head", "re:lm_.*", "lm_head"])
def test_a_head_that_is_ignored_is_plain(ignored, tmp_path, monkeypatch):
    save(W4, tmp_path, vocab_size=4096)
    change_quantization(tmp_path, ignore=[ignored])
    assert "of attention and feed-forward × (" in counted_right(tmp_path, monkeypatch)


@pytest.mark.parametrize("target", ["re:.*_head$", "re:.*", "re:lm_head", "lm_head", "Linear"])
def test_a_head_that_is_a_target_is_quantized(target, tmp_path, monkeypatch):
    ends = (*ALL, "embed_tokens.weight") if target == "re:.*" else ALL
    save(W4, tmp_path, ends=ends, vocab_size=4096)
    groups = {"group_0": {**W4.config["config_groups"]["group_0"]}}
    groups["group_0"]["targets"] = ["re:.*_proj$", target]
    change_quantization(tmp_path, config_groups=groups, ignore=["re:head", "_head"])
    assert "feed-forward and head × (" in counted_right(tmp_path, monkeypatch).replace(
        "feed-forward, embedding and head", "feed-forward and head"
    )


def test_each_group_of_layers_has_its_own_bits(tmp_path, monkeypatch):
    save(W4, tmp_path, ends=ALL, head=W8, vocab_size=4096)
    groups = {
        "group_0": W4.config["config_groups"]["group_0"],
        "group_1": {"targets": ["re:.*head"], "weights": INT8, "format": "int-quantized"},
    }
    change_quantization(tmp_path, config_groups=groups)
    said = counted_right(tmp_path, monkeypatch)
    assert "of attention and feed-forward × (4 + 16 / 32) bits" in said
    assert "of head × (8) bits" in said
    assert "compressed-tensors, 4 bits in groups of 32 and 8 bits, one scale a row" in said


@pytest.mark.parametrize("ignored", ["re:model\\.layers\\.0\\..*", "re:.*(layers.0|lm_head)"])
def test_layers_that_are_ignored_are_plain(ignored, tmp_path, monkeypatch):
    save(W4, tmp_path, keep=("layers.0.",))
    change_quantization(tmp_path, ignore=["lm_head", ignored])
    counted_right(tmp_path, monkeypatch)


def test_four_bit_floats_keep_scales_in_32_bits():
    config = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    groups = {"group_0": {"targets": ["Linear"], "weights": config}}
    said = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}
    shape = shape_of("a", {**known_config("Llama-3.1-8B"), "quantization_config": said})
    [width] = shape.in_codes
    assert width.bits == 6 == 4 + 32 / 16


@pytest.mark.parametrize(
    ("form", "changes", "keep"),
    [
        ("gptq", {"dynamic": {"-:.*layers\\.0": {}}}, "layers.0."),
        ("gptq", {"modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]]},
         "k_proj v_proj o_proj gate_proj down_proj"),
        ("awq", {"modules_to_not_convert": ["down_proj"]}, "down_proj"),
        ("fp8 rows", {"modules_to_not_convert": ["model.layers.1.mlp", "lm_head"]}, "layers.1.mlp"),
        ("nf4", {"llm_int8_skip_modules": ["o_proj", "lm_head"]}, "o_proj"),
    ],
    ids=lambda case: case if isinstance(case, str) else next(iter(case)),
)  # fmt: skip
def test_what_other_methods_leave_out_is_plain(form, changes, keep, tmp_path, monkeypatch):
    save(FORMATS[form], tmp_path, keep=tuple(keep.split()), hidden_size=128, intermediate_size=256)
    change_quantization(tmp_path, **changes)
    plan, event = make_plan(str(tmp_path)), loaded(tmp_path, monkeypatch)
    assert plan.shape.weight_bytes == pytest.approx(event.num_bytes, rel=0.02)


def test_other_bits_by_gptqs_dynamic(tmp_path, monkeypatch):
    save(gptq(), tmp_path, ends=ALL, head=gptq(8, group=16), vocab_size=4096)
    change_quantization(tmp_path, dynamic={"+:lm_head": {"bits": 8, "group_size": 16}})
    assert "of head × (8 + 16 / 16) bits" in counted_right(tmp_path, monkeypatch)


def test_layers_that_other_tools_leave_out_are_plain(tmp_path, monkeypatch):
    """By auto-round's names, and by modelopt's wildcards."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    save(gptq(), tmp_path / "a", keep=("layers.1.mlp.up_proj",))
    extra = {"model.layers.1.mlp.up_proj": {"bits": 16}}
    change_quantization(tmp_path / "a", quant_method="auto-round", extra_config=extra)
    counted_right(tmp_path / "a", monkeypatch)
    save(FORMATS["fp8"], tmp_path / "b", keep=("layers.0.",))
    ignored = ["lm_head", "model.layers.0.*"]
    change_quantization(tmp_path / "b", quant_method="modelopt", quant_algo="FP8", ignore=ignored)
    counted_right(tmp_path / "b", monkeypatch)


def test_what_is_said_beside_config_json_is_read(tmp_path, monkeypatch):
    """As the engine reads it: older GPTQ and AWQ checkpoints have a file of their own for it."""
    save(gptq(), tmp_path, vocab_size=4096)
    config = json.loads((tmp_path / "config.json").read_text())
    said = config.pop("quantization_config")
    del said["quant_method"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "quantize_config.json").write_text(json.dumps(said))
    assert "quantized: gptq, 4 bits" in counted_right(tmp_path, monkeypatch)


def test_a_scheme_for_the_kv_cache_alone_quantizes_no_matrix(tmp_path, monkeypatch):
    save(gptq(), tmp_path, ends=())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "quantized:" not in counted_right(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_groups": {"group_0": {"targets": ["re:("], "weights": INT8}}}, "no regular"),
        ({"config_groups": {"W8A8": ["Linear"]}}, "config_groups is"),
        ({"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": "x"}}}},
         "says of its quantization what can't be read"),
        ({"quant_method": "gptq", "dynamic": {"-:(": {}}}, "what can't be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(changes, message, tmp_path):
    save(W4, tmp_path)
    change_quantization(tmp_path, **changes)
    with pytest.raises(PlanError, match=message) as error:
        make_plan(str(tmp_path))
    assert "\n" not in str(error.value)


def test_an_architecture_that_is_not_served_quantized_is_refused(tmp_path):
    """The engine refuses it, too; its matrices were counted as plain."""
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        PlanError, match=r"is quantized .*its architecture is none of LlamaForCausalLM"
    ):
        make_plan(str(tmp_path))
