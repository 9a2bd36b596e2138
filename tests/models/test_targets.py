"""Targets of compressed-tensors mean the layers that the library itself finds by them."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.models.errors import ModelError
from engine.models.formats.targets import EMBEDDING, LINEAR, scheme_of
from tests.models.quantized_files import CONFIG

FOUR = {"num_bits": 4, "strategy": "group", "group_size": 32}
EIGHT = {"num_bits": 8, "strategy": "channel"}
CASES = {
    "classes": ([(["Linear"], FOUR)], []),
    "the head by its end": ([(["Linear"], FOUR)], ["re:.*_head$"]),
    "the head by its name": ([(["Linear"], FOUR)], ["lm_head"]),
    "the head by a part of its name": ([(["Linear"], FOUR)], ["re:.*lm_head"]),
    "from the first letter on": ([(["Linear"], FOUR)], ["re:head", "re:lm", "re:self_attn"]),
    "no pattern without re:": ([(["Linear"], FOUR)], [".*_head", "head", "layers"]),
    "everything": ([(["re:.*"], FOUR)], []),
    "any module": ([(["Module"], FOUR)], ["Embedding"]),
    "all but a class": ([(["re:.*"], FOUR)], ["Linear"]),
    "a name before a pattern before a class": (
        [
            (["Linear", "re:.*mlp.*"], FOUR),
            (["re:.*down_proj", "model.layers.1.mlp.up_proj", "re:.*lm_head$"], EIGHT),
        ],
        ["re:.*layers.0.self_attn.q_proj"],
    ),
    "a target of two groups": ([(["Linear"], FOUR), (["Linear"], EIGHT)], []),
    "activations only": ([(["Linear"], FOUR), (["re:.*o_proj"], None)], ["lm_head"]),
    "nothing ignored": ([(["re:.*self_attn.*", "re:.*mlp.*"], FOUR)], None),
}


@pytest.mark.parametrize(("groups", "ignore"), CASES.values(), ids=CASES)
def test_the_library_finds_the_same(groups, ignore):
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {"targets": targets, "weights": weights}
            for number, (targets, weights) in enumerate(groups)
        },
        "ignore": ignore,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG))
    # statuses before "compressed" leave modules alone but for their schemes
    theirs = QuantizationConfig(**config | {"quantization_status": "initialized"})
    apply_quantization_config(model, theirs)
    compared = 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            continue
        due = getattr(module, "quantization_scheme", None)
        classes = LINEAR if isinstance(module, torch.nn.Linear) else EMBEDDING
        found = scheme_of(config, name, classes)
        assert (None if due is None or due.weights is None else due.weights.num_bits) == (
            None if found is None or not found["weights"] else found["weights"]["num_bits"]
        ), name
        compared += 1
    assert compared == 2 * 7 + 2


@pytest.mark.parametrize(
    "config",
    [
        {"config_groups": {"group_0": {"targets": ["re:("], "weights": FOUR}}},
        {"config_groups": {"group_0": {"targets": [3], "weights": FOUR}}},
        {"config_groups": {"W8A8": ["Linear"]}},
        {"config_groups": [{"targets": ["Linear"]}]},
        {"config_groups": {"group_0": {"targets": ["Linear"]}}, "ignore": {"lm_head": True}},
    ],
    ids=["no pattern", "a number", "a preset's name", "a list", "an object"],
)
def test_what_is_no_list_of_layers_is_refused(config):
    with pytest.raises(ModelError, match="this compressed-tensors checkpoint") as error:
        scheme_of(config, "lm_head")
    assert "\n" not in str(error.value)
