"""A plan counts what a rank of a divided model holds, and says what the engine refuses."""

from __future__ import annotations

import pytest
import torch

from engine.config import EngineConfig
from engine.fit.__main__ import main
from engine.fit.divided import share_of
from engine.fit.estimate import make_plan
from engine.fit.known import known_config
from engine.fit.quantized_bytes import Quantized, no_width
from engine.fit.shape import PlanError
from engine.models.errors import ModelError
from engine.models.fitting_options import check_quantized
from engine.models.loader import load_model
from engine.worker.memory.kv_cache import bytes_per_block
from tests.layers.test_rank_shares import Alone
from tests.models import tiny_models

MODEL = "meta-llama/Llama-3.1-70B"


@pytest.mark.parametrize("size", [2, 4])  # 4: two ranks have the same key and value head
@pytest.mark.parametrize("kind", ["llama", "llama-biased-tied", "qwen2-windows", "qwen3"])
def test_a_share_is_what_a_rank_loads(kind, size, tmp_path):
    tiny_models.save(tiny_models.NATIVE[kind](), tmp_path)
    plan = make_plan(str(tmp_path), ranks=size)
    device = torch.device("cpu")
    for rank in range(size):
        config = EngineConfig(model=str(tmp_path), device="cpu")
        model = load_model(config, device, torch.float32, ranks=Alone(rank, size))
        held = {weight.data_ptr(): weight for weight in model.parameters()}
        assert plan.shape.weight_bytes == sum(weight.nbytes for weight in held.values())
        assert plan.block_bytes == bytes_per_block(model.kv_spec, plan.block_size, torch.float32)


def test_ranks_share_what_one_gpu_would_hold():
    whole, halves, eighths = (make_plan(MODEL, 8192, 4, ranks=n) for n in (1, 2, 8))
    assert halves.shape.weight_bytes == pytest.approx(whole.shape.weight_bytes / 2, rel=0.001)
    assert halves.kv_bytes * 2 == eighths.kv_bytes * 8 == whole.kv_bytes
    assert halves.drawing_bytes == whole.drawing_bytes  # rank 0 draws from all logits
    assert whole.choice() is None
    fitting = make_plan(MODEL, 8192, 4, ranks=4).choice()
    assert fitting.instance(4) == "4-gpu-nvidia-a100"


def test_heads_of_keys_and_values_are_repeated_where_there_are_fewer_than_ranks(tmp_path):
    config = tiny_models.NATIVE["llama"]()
    config.num_key_value_heads = 2
    tiny_models.save(config, tmp_path)
    halves, quarters = (make_plan(str(tmp_path), ranks=size) for size in (2, 4))
    assert halves.kv_bytes_per_token == quarters.kv_bytes_per_token


def test_a_quantized_model_is_divided_with_its_scales():
    plain, codes = (make_plan(name, ranks=2) for name in ("Llama-2-7b", "Llama-2-7B-AWQ"))
    assert codes.shape.weight_bytes == pytest.approx(0.29 * plain.shape.weight_bytes, rel=0.03)
    whole = make_plan("Llama-2-7B-AWQ")
    assert codes.shape.weight_bytes == pytest.approx(whole.shape.weight_bytes / 2, rel=0.01)
    with pytest.raises(PlanError, match=r"1,376 inputs of down, .* whole groups of 128"):
        make_plan("Llama-2-7B-AWQ", ranks=8)


def test_a_file_is_divided_as_its_numbers_are():
    file = Quantized("GGUF", no_width, 256, 10**9)
    config = {**known_config("Llama-3.1-8B"), "quantization_config": file}
    assert share_of("it", config, 4).weight_bytes == pytest.approx(10**9 / 4, rel=0.01)
    config["intermediate_size"] = 14464
    with pytest.raises(PlanError, match=r"3,616 inputs of down, .* whole groups of 256"):
        share_of("it", config, 4)


@pytest.mark.parametrize(
    ("model", "ranks", "message"),
    [
        ("facebook/opt-125m", 2, "OPTForCausalLM can't be divided"),
        ("HuggingFaceTB/SmolLM2-135M", 2, "the 9 query heads and the 3 key and value heads of"),
        (MODEL, 3, "Koyeb has instances of 1, 2, 4, 8 GPUs"),
        (MODEL, 0, "Koyeb has instances of 1, 2, 4, 8 GPUs"),
    ],
)
def test_what_can_not_be_divided_is_refused(model, ranks, message):
    with pytest.raises(PlanError, match=message):
        make_plan(model, ranks=ranks)


def test_a_draft_model_is_not_divided():
    with pytest.raises(PlanError, match="a draft model is not divided"):
        make_plan(MODEL, draft="Llama-3.1-8B", ranks=2)


def test_the_report_says_what_the_engine_refuses(capsys):
    with pytest.raises(ModelError) as refusal:
        check_quantized(EngineConfig(tensor_parallel_size=2), "awq")
    options = ["Llama-2-7B-AWQ", "--max-model-len", "4096", "--tensor-parallel-size", "2"]
    assert main(options) == 1  # nothing that could be started
    text = capsys.readouterr().out
    assert "2-gpu-nvidia-a100 (na) would hold it, but this version does not start so" in text
    assert str(refusal.value) in text.replace("\n", " ")
    assert "Each of 2 ranks" in text and "l40s" not in text and "Smallest" not in text
    assert make_plan("Llama-2-7B-AWQ").refusal == ""


def test_the_report_says_that_several_gpus_were_never_tried(capsys):
    EngineConfig(device="cuda", tensor_parallel_size=4)  # accepted
    options = [MODEL, "--max-model-len", "8192", "--tensor-parallel-size"]
    assert main([*options, "4"]) == 0
    text = capsys.readouterr().out
    assert "Smallest that fits: --instance-type 4-gpu-nvidia-a100" in text
    assert "never run on several GPUs" in text.replace("\n", " ")
    assert all(len(line) <= 100 for line in text.splitlines())
    main([*options, "1"])
    assert "several GPUs" not in capsys.readouterr().out.replace("\n", " ")
