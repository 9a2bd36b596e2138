"""`--quantized-activations`: with which checkpoints, what the record says, and what is refused."""

from __future__ import annotations

import pytest
import torch

from engine.config import ConfigError, EngineConfig
from engine.kernels.cpu.quantized_panels import PackedPanels
from engine.layers.quantized import QuantizedHead, QuantizedLinear
from engine.models.fitting_options import check_rounding
from engine.models.loader import load_model
from engine.trace.annotate import describe
from engine.trace.context import Context
from engine.trace.recorder import Recorder
from tests.models.quantized_files import FORMATS, gptq, save
from tests.models.test_quantized_formats import PROMPTS, change_config
from tests.support.engine_on_tokens import TokenEngine

SAID = "activations rounded to int8 in groups of"


def loaded(folder, **options):
    """Return the model and what the record says of it."""
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    config = EngineConfig(model=str(folder), device="cpu", quantized_activations=True, **options)
    model = load_model(config, torch.device("cpu"), recorder=recorder)
    recorder.close()
    [event] = [one for one in events if type(one).__name__ == "EngineModelLoaded"]
    return model, describe(event, Context())


def groups_of(model) -> set[int]:
    """Return the groups of activations in all products."""
    runs = [run for one in model.modules() if isinstance(one, QuantizedLinear) for run in one.runs]
    runs += [
        run for one in model.modules() if isinstance(one, QuantizedHead) for run in one.own_runs
    ]
    weights = [run.weight for run in runs if not isinstance(run.weight, torch.nn.Parameter)]
    assert weights
    return {one.x_group if isinstance(one, PackedPanels) else 0 for one in weights}


def test_products_take_them_and_the_record_says_so(tmp_path):
    save(gptq(), tmp_path, ends=("proj.weight", "lm_head.weight"))
    model, said = loaded(tmp_path)
    assert f"{SAID} {groups_of(model).pop()})" in said
    with TokenEngine(tmp_path, block_size=4, quantized_activations=True) as engine:
        answers = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
        assert engine.run(PROMPTS[:1], temperature=0.0, max_tokens=12) == answers[:1]


def test_a_checkpoint_that_asks_for_it_is_not_said_to_be_more_exact(tmp_path):
    save(FORMATS["compressed-tensors W8"], tmp_path)
    groups = {"g": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {}}}
    groups["g"]["input_activations"] = {"num_bits": 8, "dynamic": True}
    change_config(tmp_path, config_groups=groups)
    assert SAID in loaded(tmp_path)[1] and "more exact" not in loaded(tmp_path)[1]
    config = EngineConfig(model=str(tmp_path), device="cpu")
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    load_model(config, torch.device("cpu"), recorder=recorder)
    recorder.close()
    assert any("more exact" in describe(event, Context()) for event in events)


@pytest.mark.parametrize("name", ["fp8", "nf4", "squeezellm", "mxfp4"])
def test_without_whole_numbers_it_is_refused(name, tmp_path):
    save(FORMATS[name], tmp_path)
    with pytest.raises(ConfigError, match=r"no weight of .* whole numbers") as caught:
        loaded(tmp_path)
    assert "\n" not in str(caught.value)


def test_with_plain_weights_or_on_another_device_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="plain numbers"):
        loaded("pocket")
    with pytest.raises(ConfigError, match="plain numbers"):
        loaded("pocket", load_format="dummy")
    with pytest.raises(ConfigError, match="for CPUs"):
        check_rounding("cuda", True, "a model")
    for other in ({"device": "cuda"}, {"quantization": "none"}):
        with pytest.raises(ConfigError, match="leave one of them out"):
            EngineConfig(quantized_activations=True, **other)
