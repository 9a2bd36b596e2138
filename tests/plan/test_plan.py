"""The plan counts as transformers and the engine do, and chooses the smallest GPU that fits."""

from __future__ import annotations

import http.server
import json
import threading

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import EngineConfig
from engine.models.loader import load_model
from engine.plan.__main__ import main
from engine.plan.fit import GB, GPUS, make_plan
from engine.plan.known import known_config, known_models
from engine.plan.report import report
from engine.plan.shape import PlanError, shape_of

PUBLISHED = {  # numbers of parameters on the models' own cards and in their safetensors headers
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-1.3b": 1_315_758_080,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_well_known_models_have_their_published_size(model):
    assert make_plan(model).shape.parameters == PUBLISHED[model]


def test_the_table_has_no_untested_entry():
    assert {known_config(name)["vocab_size"] for name in known_models()}  # every key finds itself
    assert len(known_models()) == len(PUBLISHED)


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B",
        "Llama-3.1-8B",
    ],
)
def test_endings_and_owners_do_not_hide_a_known_shape(name):
    assert make_plan(name).shape.parameters == PUBLISHED["meta-llama/Llama-3.1-8B"]


def test_a_quantized_variant_is_not_taken_for_the_known_model():
    assert known_config("someone/Llama-3.1-8B-Instruct-AWQ") is None


@pytest.mark.parametrize("kind", [*tiny_models.NATIVE, *tiny_models.ADAPTED])
def test_counts_what_transformers_makes(kind, tmp_path):
    config = {**tiny_models.NATIVE, **tiny_models.ADAPTED}[kind]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    shape = make_plan(str(tmp_path)).shape
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.positions == AutoConfig.from_pretrained(tmp_path).max_position_embeddings


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt", "gpt2"])
def test_kv_bytes_are_those_of_the_engine(kind, tmp_path):
    config = {**tiny_models.NATIVE, **tiny_models.ADAPTED}[kind]()
    tiny_models.save(config, tmp_path)
    model = load_model(EngineConfig(model=str(tmp_path), device="cpu"), torch.device("cpu"))
    values = sum(2 * layer.num_kv_heads * layer.head_dim for layer in model.kv_spec)
    assert make_plan(str(tmp_path)).shape.kv_bytes_per_token == values * 4  # saved in fp32


def test_the_sum_by_hand():
    plan = make_plan("meta-llama/Llama-2-7b-hf", 2000, 3)
    assert plan.shape.kv_bytes_per_token == 2 * 32 * 32 * 128 * 2
    assert plan.blocks == 3 * 125
    assert plan.kv_bytes == 3 * 125 * 16 * 524_288
    assert plan.needed == plan.shape.weight_bytes + plan.kv_bytes + plan.beside
    l4 = next(gpu for gpu in GPUS if gpu.instance_type == "gpu-nvidia-l4")
    left = int(24 * GB * 0.9) - plan.shape.weight_bytes - plan.beside
    assert plan.left_for_kv(l4) == left
    assert plan.fits(l4) == (left >= plan.kv_bytes)


def test_the_choice_is_the_smallest_that_fits():
    small = make_plan("facebook/opt-125m").choice()
    large = make_plan("meta-llama/Llama-3.1-8B", 8192, 16).choice()
    assert small.instance_type == "gpu-nvidia-rtx-4000-sff-ada"
    assert large.instance_type == "gpu-nvidia-rtx-a6000"
    assert not any(
        make_plan("meta-llama/Llama-3.1-8B", 8192, 16).fits(gpu)
        for gpu in GPUS[: GPUS.index(large)]
    )


def test_gpus_of_unknown_memory_are_never_chosen():
    assert make_plan("meta-llama/Llama-3.1-8B", 131072, 1000).choice() is None
    assert "check on your account" in report(make_plan("facebook/opt-125m"))


def test_the_report_holds_every_part_of_the_sum():
    plan = make_plan("Qwen/Qwen3-0.6B", 4096, 2)
    text = report(plan)
    assert all(f"{part.numbers:,}" in text for part in plan.shape.parts)
    for needed in (f"{plan.shape.parameters:,}", f"{plan.blocks:,}", f"{plan.block_bytes:,}"):
        assert needed in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_exit_codes(capsys):
    assert main(["facebook/opt-125m"]) == 0
    assert main(["meta-llama/Llama-3.1-8B", "--concurrency", "100"]) == 1
    assert "lower --max-model-len or --concurrency" in capsys.readouterr().out
    assert main(["facebook/opt-125m", "--max-model-len", "4096"]) == 2
    assert "has only 2048 positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        (json.dumps({"architectures": ["LlamaForCausalLM"]}), "does not say 'hidden_size'"),
        (json.dumps({"quantization_config": {}}), "is quantized"),
        (json.dumps({"model_type": "never-heard-of"}), "can't tell the sizes"),
    ],
)
def test_folders_that_can_not_be_planned(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(PlanError, match=message):
        make_plan(str(tmp_path))


@pytest.fixture
def hub(monkeypatch):
    """A hub that knows one public and one gated model."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({**known_config("opt-125m"), "num_hidden_layers": 6}).encode()
            code = {"/mine/open/resolve/main/config.json": 200}.get(self.path, 404)
            if "gated" in self.path:
                code = 200 if self.headers.get("Authorization") == "Bearer right" else 401
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body if code == 200 else b"no")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_config_of_the_hub(hub, monkeypatch):
    assert make_plan("mine/open").shape.layers == 6
    with pytest.raises(PlanError, match="there is no such model"):
        make_plan("mine/absent")
    with pytest.raises(PlanError, match="set HF_TOKEN"):
        make_plan("mine/gated")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert make_plan("mine/gated").shape.layers == 6


def test_no_hub_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PlanError, match="check the network"):
        make_plan("some/model")


def test_a_dtype_that_config_json_lacks_is_counted_as_the_engine_loads_it():
    shape = shape_of("x", {k: v for k, v in known_config("opt-125m").items() if k != "dtype"})
    assert shape.dtype == "float32"
