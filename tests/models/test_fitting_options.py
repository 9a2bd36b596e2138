"""Options that a model can't take are refused from its folder, as the worker would refuse them."""

from __future__ import annotations

import json
import re
from importlib import import_module

import pytest

from engine.config import ConfigError, EngineConfig
from engine.models.description import read_config
from engine.models.dividing import check_divides
from engine.models.errors import ModelError
from engine.models.fitting_options import check_fitting, check_local
from engine.models.formats.find import SCHEMES, find_scheme
from engine.models.formats.method import SAME, SERVED, method_of, quantization_said
from engine.models.registry import DIVIDED, NATIVE
from tests.models import quantized_files, tiny_models


def folder_of(tmp_path, **said):
    """Write a folder that has nothing but a config.json."""
    known = {"architectures": ["LlamaForCausalLM"], **quantized_files.CONFIG}
    (tmp_path / "config.json").write_text(json.dumps({**known, **said}))
    return tmp_path


def refused(folder, **options):
    with pytest.raises((ModelError, ConfigError)) as caught:
        check_local(EngineConfig(model=str(folder), **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("said", "options", "words"),
    [
        ({}, {"tensor_parallel_size": 3}, "the 4 query heads and the 2 key and value heads"),
        ({}, {"quantized_activations": True}, "those of .* are plain numbers"),
        ({}, {"quantization": "awq"}, "the checkpoint is not quantized"),
        ({}, {"max_model_len": 65}, "the model has only 64 positions"),
        ({"architectures": ["OPTForCausalLM"]}, {"tensor_parallel_size": 2}, "can't be divided"),
        ({"hidden_size": 65_540}, {"tensor_parallel_size": 2}, "rows of at most 65,536"),
        ({"quantization_config": GPTQ}, {"tensor_parallel_size": 2}, "divides plain weights only"),
        ({"quantization_config": GPTQ}, {"quantization": "awq"}, "the checkpoint is gptq"),
        ({"quantization_config": GPTQ}, {"load_format": "dummy"}, "are plain, not quantized"),
        ({"quantization_config": {"quant_method": "hqq"}}, {}, "by hqq, which is not served"),
        ({"quantization_config": GPTQ, "architectures": ["GPT2LMHeadModel"]}, {}, "is none of"),
    ],
)
def test_what_config_json_tells_is_refused_before_anything_is_read(said, options, words, tmp_path):
    """The folder has no weights, and no tokenizer."""
    message = refused(folder_of(tmp_path, **said), **options)
    assert re.search(words, message), message


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ({}, {"tensor_parallel_size": 2, "max_model_len": 64}),
        ({"num_key_value_heads": None}, {"tensor_parallel_size": 3}),  # transformers knows it
        ({"rope_scaling": {"factor": 4.0}}, {"max_model_len": 200}),
        ({"quantization_config": GPTQ}, {"tensor_parallel_size": 2, "quantization": "none"}),
        ({"quantization_config": GPTQ}, {"load_format": "dummy", "quantization": "none"}),
        ({"quantization_config": GPTQ}, {"quantized_activations": True, "device": "cpu"}),
        ({"architectures": None}, {"tensor_parallel_size": 2}),
    ],
)
def test_what_may_work_is_left_to_the_worker(said, options, tmp_path):
    check_local(EngineConfig(model=str(folder_of(tmp_path, **said)), **options))


def test_a_file_that_is_no_json_is_left_to_the_worker(tmp_path):
    (tmp_path / "config.json").write_text("{")
    check_local(EngineConfig(model=str(tmp_path), tensor_parallel_size=2))
    check_local(EngineConfig(model=str(tmp_path / "none"), tensor_parallel_size=2))
    check_local(EngineConfig(model="smollm2", tensor_parallel_size=2))


@pytest.mark.parametrize("name", quantized_files.FORMATS)
def test_the_method_is_the_one_that_its_reader_names(name, tmp_path):
    config = quantized_files.FORMATS[name].config
    said = quantization_said(tmp_path, config)
    scheme = find_scheme(tmp_path, config)
    assert said is not None and scheme is not None
    method = method_of(tmp_path, said)
    assert SAME.get(method, method) == scheme.found.method


def test_every_method_has_a_reader():
    assert set(SERVED) == set(SCHEMES)


@pytest.mark.parametrize("architecture", NATIVE)
def test_the_architectures_that_can_be_divided_are_known(architecture):
    module, _, name = NATIVE[architecture].partition(":")
    assert getattr(import_module(module), name).divides == (architecture in DIVIDED)


@pytest.mark.parametrize(
    "name", ["llama", "llama-yarn", "mistral", "qwen2", "qwen3", "opt", "gpt2"]
)
def test_the_worker_says_the_same(name, tmp_path):
    """What one refuses the other does, in the same words."""
    tiny_models.save({**tiny_models.NATIVE, **tiny_models.ADAPTED}[name](), tmp_path)
    for ranks in (2, 3, 4, 8):
        config = EngineConfig(model=str(tmp_path), tensor_parallel_size=ranks)
        early = said_by(check_fitting, config, tmp_path)
        assert early == said_by(check_divides, read_config(tmp_path), ranks)


def said_by(check, *arguments) -> str:
    """Return a check's refusal; none: ""."""
    try:
        check(*arguments)
    except ModelError as error:
        return str(error)
    return ""
