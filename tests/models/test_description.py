"""config.json as another process describes it is transformers' own configuration, name by name."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.models.description import Description, read_config
from engine.models.errors import ModelError
from engine.models.loader import choose_dtype
from engine.models.registry import native_class
from tests.models.tiny_models import ADAPTED, NATIVE
from tests.support.cases import mostly

OLD = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_theta": 500000.0,
    "torch_dtype": "float16",
    "hidden_size": 64,
    "num_attention_heads": 4,
}
AS_WRITTEN = {
    "nothing but its kind": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "names of version 4": OLD,
    "scaled, as in version 4": {**OLD, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "windows": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "num_hidden_layers": 3,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16"},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    "opt": {"architectures": ["OPTForCausalLM"], "model_type": "opt"},
    "opt-350m": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
        "_remove_final_layer_norm": True,
    },
    "scales of the cache": {
        **OLD,
        "quantization_config": {"quant_method": "x", "kv_cache_scheme": {"num_bits": 8}},
    },
}


def written(config) -> str:
    """config.json as a model that is saved has it."""
    architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return json.dumps({**config.to_dict(), "architectures": architectures})


CASES = {name: written(make()) for name, make in NATIVE.items()}
CASES |= {name: json.dumps(values) for name, values in AS_WRITTEN.items()}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """As in the engine process: transformers isn't imported, and nothing is known yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda: monkeypatch.delitem(sys.modules, "transformers", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly([*AS_WRITTEN, "llama", "opt-350m"], "llama", "scales of the cache")
)
def test_another_process_describes_what_transformers_reads(name, tmp_path, alone):
    (tmp_path / "config.json").write_text(CASES[name])
    expected = AutoConfig.from_pretrained(tmp_path)
    alone()
    check(read_config(tmp_path), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_description_is_transformers_configuration(name, tmp_path):
    (tmp_path / "config.json").write_text(CASES[name])
    check(read_config(tmp_path), AutoConfig.from_pretrained(tmp_path))


def check(found, expected):
    if not isinstance(found, Description):
        scaled = (expected.rope_parameters or {}).get("rope_type", "default") != "default"
        assert scaled
        assert found.to_dict() == expected.to_dict()
        return
    cpu = torch.device("cpu")
    assert choose_dtype("auto", found, cpu) == choose_dtype("auto", expected, cpu)
    assert native_class(found) is native_class(expected)
    missing = {"id2label", "dtype"}  # keys that are numbers; a class of torch
    for key, value in vars(expected).items():
        if key not in missing:
            assert getattr(found, key) == value, key
    assert found.model_type == expected.model_type


@pytest.mark.parametrize("name", ADAPTED)
def test_what_the_adapter_serves_stays_transformers_own(name, tmp_path):
    (tmp_path / "config.json").write_text(ADAPTED[name]().to_json_string())
    assert not isinstance(read_config(tmp_path), Description)


def test_what_can_not_be_read_is_said_by_the_other_process_too(tmp_path, alone):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "never heard of"}')
    with pytest.raises(ModelError) as here:
        read_config(tmp_path)
    alone()
    with pytest.raises(ModelError, match=r"config.json can't be used") as there:
        read_config(tmp_path)
    assert str(there.value) == str(here.value)
