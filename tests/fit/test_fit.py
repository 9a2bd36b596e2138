"""The plan counts as transformers and the engine do, and chooses the smallest GPU that fits."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import ConfigError, EngineConfig
from engine.fit.__main__ import main
from engine.fit.estimate import GB, GPUS, make_plan
from engine.fit.known import known_config, known_models
from engine.fit.report import report
from engine.fit.shape import PlanError, shape_of
from engine.fp8_formats import FP8_FORMATS
from engine.kernels import BACKENDS, TORCH, Backend
from engine.models.formats.find import SCHEMES
from engine.models.loader import load_model
from engine.trace.recorder import Recorder
from engine.worker.memory.kv_cache import bytes_per_block
from engine.worker.memory.kv_dtype import chosen_kv_dtype
from tests.models import quantized_files, tiny_models

PUBLISHED = {  # numbers of parameters on the models' own cards and in their safetensors headers
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-1.3b": 1_315_758_080,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
}


def test_the_embedded_model_is_called_by_its_name(capsys):
    assert main(["pocket"]) == main([]) == 0
    assert (
        re.findall("^.*: LlamaForCausalLM", capsys.readouterr().out, re.M)
        == ["pocket: LlamaForCausalLM"] * 2
    )


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
    assert known_config("someone/Llama-3.1-8B-Instruct-GGUF") is None
    assert known_config("TheBloke/Llama-2-7B-AWQ")["quantization_config"]["bits"] == 4


QUANTIZED = ["gptq", "gptq one group", "gptq 8 bits, act-order", "awq", "fp8 rows", "nf4", "mxfp4",
             "bitsandbytes int8", "compressed-tensors W4A16", "squeezellm"]  # fmt: skip


def test_a_format_that_is_served_is_counted():
    methods = {quantized_files.FORMATS[form].config["quant_method"] for form in QUANTIZED}
    assert methods == SCHEMES.keys() - {"fbgemm_fp8"}  # as "fp8 rows"


@pytest.mark.parametrize("form", QUANTIZED)
def test_counts_what_a_quantized_model_takes(form, tmp_path, monkeypatch):
    """In plain torch. Tables and orders of inputs weigh much in a tiny model."""
    monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    quantized_files.save(quantized_files.FORMATS[form], tmp_path)
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    config = EngineConfig(model=str(tmp_path), device="cpu")
    load_model(config, torch.device("cpu"), recorder=recorder)
    recorder.close()
    plan = make_plan(str(tmp_path))
    assert "\nquantized: " in report(plan)
    least = {"squeezellm": 0.5, "gptq": 0.99}.get(form, 0.85)
    assert least * events[-1].num_bytes <= plan.shape.weight_bytes <= 1.01 * events[-1].num_bytes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["gptq", "awq", "compressed-tensors W4A16"])
def test_counts_a_quantized_head(form, tied, tmp_path, monkeypatch):
    """One of its own, also where config.json ties it: the embeddings are kept beside it."""
    monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    ends = ("proj.weight", "lm_head.weight")
    form = quantized_files.FORMATS[form]
    quantized_files.save(form, tmp_path, ends=ends, tied=tied, vocab_size=4096)
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    load_model(EngineConfig(model=str(tmp_path)), torch.device("cpu"), recorder=recorder)
    recorder.close()
    plan = make_plan(str(tmp_path))
    assert " of attention, feed-forward and head × (" in report(plan)
    assert plan.shape.parameters == events[-1].num_parameters
    assert plan.shape.weight_bytes == pytest.approx(events[-1].num_bytes, rel=0.02)


def test_a_7b_in_4_bits_fits_where_it_would_not_in_16():
    names = "meta-llama/Llama-2-7b-hf", "TheBloke/Llama-2-7B-AWQ"
    plain, small = (make_plan(name, concurrency=3) for name in names)
    assert small.shape.weight_bytes == pytest.approx(0.29 * plain.shape.weight_bytes, rel=0.03)
    assert small.shape.parameters == plain.shape.parameters
    assert small.choice().memory_gb == 20 < plain.choice().memory_gb


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
    assert make_plan(str(tmp_path)).kv_bytes_per_token == values * 4  # saved in fp32


@pytest.mark.parametrize("wanted", FP8_FORMATS)
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_blocks_in_8_bits_are_those_of_the_engine(kind, wanted, tmp_path):
    tiny_models.save(tiny_models.NATIVE[kind](), tmp_path)
    model = load_model(EngineConfig(model=str(tmp_path), device="cpu"), torch.device("cpu"))
    plan, whole = (make_plan(str(tmp_path), kv_cache_dtype=name) for name in (wanted, "auto"))
    held = bytes_per_block(
        model.kv_spec, plan.block_size, getattr(torch, FP8_FORMATS[wanted].torch_name)
    )
    assert plan.block_bytes == held == whole.block_bytes // 4  # saved in fp32
    assert plan.shape.weight_bytes == whole.shape.weight_bytes


def test_every_dtype_of_the_option_is_planned():
    assert {"auto", *FP8_FORMATS} == set(get_args(get_type_hints(EngineConfig)["kv_cache_dtype"]))
    with pytest.raises(PlanError, match="choose one of auto, fp8"):
        make_plan("facebook/opt-125m", kv_cache_dtype="int8")


@pytest.mark.parametrize("wanted", ["auto", *FP8_FORMATS])
def test_only_gpus_that_convert_the_dtype_are_chosen(wanted, monkeypatch):
    """As the engine refuses it, or doesn't, at start on such a GPU."""
    plan = make_plan("facebook/opt-125m", kv_cache_dtype=wanted)
    triton = SimpleNamespace(name="triton")
    monkeypatch.setattr("engine.worker.memory.kv_dtype.kernels_for", lambda device: triton)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    refused = set()
    for gpu in GPUS:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, g=gpu: g.capability)
        try:
            chosen_kv_dtype(wanted, torch.device("cuda"))
        except ConfigError:
            refused.add(gpu.instance_type)
            assert not plan.fits(gpu)
        else:
            assert plan.fits(gpu) == (gpu.memory_gb is not None)
    e4m3 = wanted in ("fp8", "fp8_e4m3")
    assert refused == ({"gpu-nvidia-rtx-a6000", "gpu-nvidia-a100"} if e4m3 else set())
    assert report(plan).count("use fp8_e5m2") == len(refused)


def test_nothing_but_python_is_needed():
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'httpx'));"
        "from engine.fit.__main__ import main;"
        "sys.exit(main(['Llama-3.1-8B', '--max-model-len', '8192', '--kv-cache-dtype', 'fp8']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Smallest that fits" in found.stdout


def test_8_bits_fit_where_16_do_not(capsys):
    options = ["meta-llama/Llama-3.1-8B", "--max-model-len", "8192", "--concurrency", "4"]
    assert main(options) == 0
    assert "--instance-type gpu-nvidia-rtx-a6000" in capsys.readouterr().out
    assert main([*options, "--kv-cache-dtype", "fp8"]) == 0
    text = capsys.readouterr().out
    assert "--instance-type gpu-nvidia-l4 " in text
    assert "KV cache, in fp8" in text
    assert "2 × 32 layers × 8 heads × 128 × 1 byte " in text
    assert "65,536 bytes" in text
    assert "8,030,261,248 × 2 bytes" in text  # the weights stay as they are
    assert all(len(line) <= 100 for line in text.splitlines())
    assert main([*options, "--kv-cache-dtype", "fp16"]) == 2
    assert "--kv-cache-dtype is 'fp16'" in capsys.readouterr().err


def test_the_sum_by_hand():
    plan = make_plan("meta-llama/Llama-2-7b-hf", 2000, 3)
    assert plan.kv_bytes_per_token == 2 * 32 * 32 * 128 * 2
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
        (json.dumps({"quantization_config": {}}), "is quantized by no method, which the engine"),
        (json.dumps({"quantization_config": {"quant_method": "hqq"}}), "is quantized by hqq"),
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


@pytest.mark.parametrize("layers", [-1, 0, 10**9, 2.5, "many"])
def test_a_size_that_no_model_has_is_refused(layers):
    config = {**known_config("Qwen/Qwen3-0.6B"), "num_hidden_layers": layers}
    with pytest.raises(PlanError, match=r"config.json of it says num_hidden_layers .*1 to 10,000"):
        shape_of("it", config)


def test_a_draft_model_takes_memory_twice():
    model, draft = "HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-135M"
    plain, drafting, alone = make_plan(model), make_plan(model, draft=draft), make_plan(draft)
    assert drafting.kv_bytes_per_token == plain.kv_bytes_per_token + alone.kv_bytes_per_token
    blocks = plain.blocks * plain.block_size
    more = alone.shape.weight_bytes + blocks * alone.kv_bytes_per_token
    assert drafting.needed - plain.needed == more
    text = report(drafting)
    assert "SmolLM2-135M: 134,515,008 parameters" in text and "of the draft" in text
    assert "draft" not in report(plain)
    with pytest.raises(PlanError, match="it can't propose for it"):
        make_plan(model, draft="pocket")
