"""A model divided among ranks computes what the whole one computes: ranks in threads, fp32."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.kernels.ranks import Ranks
from engine.models.dividing import check_divides
from engine.models.errors import ModelError
from engine.models.loader import load_model
from tests.kernels.cpu.test_rank_ops import on_all_ranks
from tests.models import quantized_files, tiny_models
from tests.models.paged_harness import PagedModel, Sequence

CPU = torch.device("cpu")


class Alone:
    """Stands for a rank while its share is loaded, when nothing is joined."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def logits(model) -> torch.Tensor:
    draw = random.Random(3)
    sequence = Sequence([draw.randrange(tiny_models.VOCAB) for _ in range(20)])
    return PagedModel(model).run(sequence, [12, 1, 6, 1])


def divided_logits(config: EngineConfig, size: int, dtype: torch.dtype) -> torch.Tensor:
    stand_ins = [Alone(rank, size) for rank in range(size)]
    models = [load_model(config, CPU, dtype, ranks=one) for one in stand_ins]

    def call(ranks: Ranks) -> torch.Tensor:
        model = models[ranks.rank]
        for module in model.modules():
            if isinstance(getattr(module, "_ranks", None), Alone):
                module._ranks = ranks
        return logits(model)

    return on_all_ranks(size, call)[0]


@pytest.fixture
def config(tmp_path: Path, request) -> EngineConfig:
    kind = request.param
    tiny_models.save((tiny_models.NATIVE.get(kind) or tiny_models.ADAPTED[kind])(), tmp_path)
    return EngineConfig(model=str(tmp_path))


KINDS = ["llama", "llama-biased-tied", "mistral", "qwen2-windows", "qwen3"]


@pytest.mark.parametrize("size", [2, 4])  # 4: two ranks have the same key and value head
@pytest.mark.parametrize("config", KINDS, indirect=True)
def test_a_divided_model_computes_the_same(config, size):
    whole = logits(load_model(config, CPU, torch.float32))
    torch.testing.assert_close(
        divided_logits(config, size, torch.float32), whole, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_bf16_differs_by_little(config):
    """Both round as often: sums of ranks stay in fp32 until all are added."""
    whole = logits(load_model(config, CPU, torch.bfloat16))
    found = divided_logits(config, 2, torch.bfloat16)
    assert not torch.equal(found, whole)
    torch.testing.assert_close(found, whole, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_random_weights_are_those_of_the_whole_model(config):
    config.load_format = "dummy"
    whole = logits(load_model(config, CPU, torch.float32))
    torch.testing.assert_close(
        divided_logits(config, 2, torch.float32), whole, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "config, size, words",
    [
        ("llama", 3, "is 3, by which the 4 query heads and the 2 key and value heads .* 1 or 2 or"),
        ("opt", 2, "OPTForCausalLM can't be divided"),
        ("gpt2", 2, "GPT2LMHeadModel can't be divided"),
    ],
    indirect=["config"],
)
def test_a_model_that_cannot_be_divided_is_refused(config, size, words):
    with pytest.raises(ModelError, match=words):
        load_model(config, CPU, torch.float32, ranks=Alone(0, size))


def test_rows_too_wide_to_be_added_are_refused():
    config = tiny_models.NATIVE["llama"]()
    config.architectures, config.hidden_size = ["LlamaForCausalLM"], 2**16
    check_divides(config, 2)
    config.hidden_size += 4
    with pytest.raises(ModelError, match=r"hidden size is 65,540, .* at most 65,536 numbers"):
        check_divides(config, 2)


def test_quantized_weights_are_refused_unless_they_are_expanded(tmp_path):
    quantized_files.save(quantized_files.FORMATS["gptq"], tmp_path)
    config = EngineConfig(model=str(tmp_path))
    words = r"--tensor-parallel-size divides plain .*--quantization none"
    with pytest.raises(ModelError, match=words):
        load_model(config, CPU, torch.float32, ranks=Alone(0, 2))
    config.quantization = "none"
    whole = logits(load_model(config, CPU, torch.float32))
    torch.testing.assert_close(
        divided_logits(config, 2, torch.float32), whole, rtol=1e-5, atol=1e-5
    )
