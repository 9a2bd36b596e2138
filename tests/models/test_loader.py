"""The loader: every format of a checkpoint, and one clear line for what can't be loaded."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import EngineConfig
from engine.models.errors import ModelError
from engine.models.loader import choose_dtype, load_model
from engine.text.loading import load_tokenizer
from engine.trace.events import EngineModelLoaded, EngineWarning
from engine.trace.recorder import Recorder
from tests.models.paged_harness import PagedModel, Sequence
from tests.models.tiny_models import ADAPTED, NATIVE, save

CPU = torch.device("cpu")
TEXT = [5, 9, 44, 3, 71, 20]


def load(folder, **options):
    return load_model(EngineConfig(model=str(folder), **options), CPU)


def logits(model) -> torch.Tensor:
    return PagedModel(model).run(Sequence(TEXT), [len(TEXT)])


def assert_loaded_as(model, reference) -> None:
    with torch.inference_mode():
        expected = reference(torch.tensor([TEXT])).logits[0]
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)


def rewrite(folder, change) -> None:
    """Apply `change` to the dict of weights in model.safetensors."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


# --------------------------------------------------------------------------------- formats


def test_sharded_safetensors(tmp_path):
    reference = save(NATIVE["llama"](), tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_loaded_as(load(tmp_path), reference)


@pytest.mark.parametrize("zipped", [True, False])
def test_bin(tmp_path, zipped):
    reference = save(NATIVE["opt"](), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(
        reference.state_dict(),
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    assert_loaded_as(load(tmp_path), reference)


def test_sharded_bin(tmp_path):
    reference = save(NATIVE["qwen3"](), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights, index = list(reference.state_dict().items()), {}
    for shard in range(3):
        file = f"pytorch_model-{shard + 1:05}-of-00003.bin"
        torch.save(dict(weights[shard::3]), tmp_path / file)
        index |= dict.fromkeys((name for name, _ in weights[shard::3]), file)
    index_file = tmp_path / "pytorch_model.bin.index.json"
    index_file.write_text(json.dumps({"weight_map": index}))
    assert_loaded_as(load(tmp_path), reference)


def test_safetensors_are_preferred(tmp_path):
    reference = save(NATIVE["llama"](), tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    assert_loaded_as(load(tmp_path), reference)


def test_bin_that_runs_code_is_refused(tmp_path):
    save(NATIVE["llama"](), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin can't be read"):
        load(tmp_path)


def test_bare_decoder_names(tmp_path):
    """Old OPT checkpoints name their weights "decoder.…", without "model."."""
    reference = save(NATIVE["opt"](), tmp_path)

    def shorten(weights):
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)

    rewrite(tmp_path, shorten)
    assert_loaded_as(load(tmp_path), reference)


def test_tied_embeddings_are_one_tensor(tmp_path):
    reference = save(NATIVE["llama-biased-tied"](), tmp_path)
    model = load(tmp_path)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert_loaded_as(model, reference)
    # some checkpoints store the head again: it is not another one
    rewrite(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 0}))
    assert_loaded_as(load(tmp_path), reference)


def with_another_head(folder, kind):
    """A checkpoint whose config.json ties the head, and which has a different one."""
    save({**NATIVE, **ADAPTED}[kind](), folder)
    table = {"opt": "model.decoder.embed_tokens.weight", "gpt2": "transformer.wte.weight"}
    name = table.get(kind, "model.embed_tokens.weight")
    rewrite(folder, lambda w: w.update({"lm_head.weight": w[name].flip(0) + 0.5}))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert reference.lm_head.weight is not reference.get_input_embeddings().weight
    return reference.eval()


@pytest.mark.parametrize("kind", ["llama-biased-tied", "qwen2", "opt", "gpt2"])
def test_another_head_than_the_tied_one_is_used_and_told_about(tmp_path, kind):
    reference = with_another_head(tmp_path, kind)
    recorder, events = Recorder(), []
    recorder.subscribe(events.extend)
    model = load_model(EngineConfig(model=str(tmp_path)), CPU, recorder=recorder)
    recorder.close()
    assert_loaded_as(model, reference)
    [warning] = [event.message for event in events if isinstance(event, EngineWarning)]
    assert "another lm_head: it is used" in warning
    [loaded] = [event for event in events if isinstance(event, EngineModelLoaded)]
    assert loaded.num_parameters == reference.num_parameters()


@pytest.mark.parametrize("kind", ["llama-biased-tied", "opt"])
def test_a_head_without_embeddings_is_both(tmp_path, kind):
    reference = save(NATIVE[kind](), tmp_path)
    table = "model.decoder.embed_tokens.weight" if kind == "opt" else "model.embed_tokens.weight"
    rewrite(tmp_path, lambda w: w.update({"lm_head.weight": w.pop(table)}))
    model = load(tmp_path)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert_loaded_as(model, reference)


COMPUTED = {
    "llama": "model.layers.0.self_attn.rotary_emb.inv_freq",
    "gpt2": "transformer.h.0.attn.bias",
    "gpt-neox": "gpt_neox.layers.1.attention.masked_bias",
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_tensors_of_old_checkpoints_are_skipped(tmp_path, kind):
    reference = save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    rewrite(tmp_path, lambda weights: weights.update({COMPUTED[kind]: torch.ones(4)}))
    assert_loaded_as(load(tmp_path), reference)


def test_dummy_needs_config_alone_and_is_the_same_each_time(tmp_path):
    NATIVE["qwen2"]().save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["Qwen2ForCausalLM"])
    first, second = (load(tmp_path, load_format="dummy") for _ in range(2))
    assert torch.equal(logits(first), logits(second))
    assert float(first.layers[0].qkv.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(first.norm.weight, torch.ones(32))


def test_dummy_adapter(tmp_path):
    ADAPTED["gpt2"]().save_pretrained(tmp_path)
    first, second = (load(tmp_path, load_format="dummy") for _ in range(2))
    assert torch.equal(logits(first), logits(second))


# --------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_float16_becomes_bfloat16_on_a_cpu(tmp_path, kind):
    save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    edit_config(tmp_path, dtype="float16")
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.bfloat16}
    config = AutoConfig.from_pretrained(tmp_path)
    assert choose_dtype("auto", config, torch.device("cuda")) == torch.float16
    assert choose_dtype("float32", config, CPU) == torch.float32
    assert {p.dtype for p in load(tmp_path, dtype="float32").parameters()} == {torch.float32}


def test_default_dtype_is_left_alone(tmp_path):
    save(NATIVE["llama"](), tmp_path)
    load(tmp_path, dtype="bfloat16")
    assert torch.get_default_dtype() == torch.float32


# --------------------------------------------------------------------------------- the record


@pytest.mark.parametrize("kind", ["llama-biased-tied", "gpt2"])
def test_event_and_progress(tmp_path, kind):
    reference = save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    recorder, events, progress = Recorder(), [], []
    recorder.subscribe(events.extend)
    load_model(
        EngineConfig(model=str(tmp_path)),
        CPU,
        recorder=recorder,
        progress=lambda *report: progress.append(report),
    )
    recorder.flush()
    (event,) = [e for e in events if isinstance(e, EngineModelLoaded)]
    recorder.close()
    assert event.num_parameters == reference.num_parameters()
    assert event.num_bytes == 4 * reference.num_parameters()
    assert (event.architecture, event.dtype) == (type(reference).__name__, "float32")
    assert event.duration_s > 0
    if kind == "llama-biased-tied":
        assert event.implementation == "native"
        assert [stage for stage, _, _ in progress] == ["load"] * len(progress)
        done = [done for _, done, _ in progress]
        assert done == sorted(done) and done[-1] >= 0.9 * progress[-1][2] > 0


# --------------------------------------------------------------------------------- refusals


def refused(folder, match: str, **options) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
    refused(tmp_path / "nothing", "is not a folder; name a model's folder or a hub id")
    refused(tmp_path, "has no config.json")


def test_no_weights(tmp_path):
    NATIVE["llama"]().save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["LlamaForCausalLM"])
    refused(tmp_path, "has no weights: no model.safetensors")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_missing_weight_is_named(tmp_path, kind):
    save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    name = {"llama": "model.layers.1.mlp.up_proj.weight", "gpt2": "transformer.h.1.ln_1.weight"}
    rewrite(tmp_path, lambda weights: weights.pop(name[kind]))
    refused(tmp_path, name[kind].removeprefix("transformer.").replace(".", r"\."))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_unexpected_weight_is_named(tmp_path, kind):
    save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    rewrite(tmp_path, lambda weights: weights.update({"extra.gate.weight": torch.ones(2, 2)}))
    refused(tmp_path, r"extra\.gate\.weight")


def test_wrong_shape_is_named(tmp_path):
    save(NATIVE["llama"](), tmp_path)
    rewrite(tmp_path, lambda w: w.update({"model.norm.weight": torch.ones(16)}))
    refused(tmp_path, r"model\.norm\.weight has shape \[16\], config\.json says \[32\]")


def test_missing_shard_is_named(tmp_path):
    save(NATIVE["llama"](), tmp_path, max_shard_size="10KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, rf"lacks 1 of \d+ weight files, first of them {shard.name}")


def test_damaged_file(tmp_path):
    save(NATIVE["llama"](), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(tmp_path, "model.safetensors can't be read")


def test_quantized_checkpoint(tmp_path):
    save(NATIVE["llama"](), tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "hqq", "bits": 4})
    refused(tmp_path, r"is quantized by hqq, which is not served; served are gptq, awq")
    edit_config(tmp_path, quantization_config={"quant_method": "awq", "bits": 4})
    refused(tmp_path, r"is awq by its config, but no matrix in it is: none has \.qweight")


SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor"}
FOR_8_BITS = {"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME, "config_groups": {}}


def save_with_scales(folder, greatest: float, name: str = "k_scale"):
    """A checkpoint that was calibrated for an 8-bit KV cache, as compressed-tensors saves it."""
    reference = save(NATIVE["llama"](), folder)

    def add(weights):
        for layer, scale in enumerate((0.02, greatest)):
            weights[f"model.layers.{layer}.self_attn.{name}"] = torch.tensor([scale])
            weights[f"model.layers.{layer}.self_attn.v_scale"] = torch.tensor([0.01])

    rewrite(folder, add)
    edit_config(folder, quantization_config=FOR_8_BITS)
    return reference


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8", "fp8_e5m2"])
@pytest.mark.parametrize("name", ["k_scale", "k_proj.k_scale", "kv_scale"])
def test_scales_of_an_8_bit_cache_are_told_about(tmp_path, kv_cache_dtype, name):
    reference = save_with_scales(tmp_path, 0.5, name)
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    config = EngineConfig(model=str(tmp_path), kv_cache_dtype=kv_cache_dtype)
    assert_loaded_as(load_model(config, CPU, recorder=recorder), reference)
    recorder.close()
    told = [event.message for event in events if isinstance(event, EngineWarning)]
    if kv_cache_dtype == "auto":  # they don't concern such a cache
        assert told == []
    else:
        [line] = told
        assert (
            "4 scales for an 8-bit KV cache are not used" in line
            and "by them they reach 224" in line
        )


def test_scales_that_would_be_needed_are_refused(tmp_path):
    save_with_scales(tmp_path, 2.5)
    line = r"layers.1.self_attn.k_scale is 2.5: numbers up to 1,120, but .*; use fp8_e5m2 or auto\."
    refused(tmp_path, line, kv_cache_dtype="fp8")
    load(tmp_path, kv_cache_dtype="fp8_e5m2")
    load(tmp_path)
    for name, change in (("wide", float("inf")), ("broken", float("nan"))):
        (tmp_path / name).mkdir()
        save_with_scales(tmp_path / name, change)
        refused(tmp_path / name, "use auto", kv_cache_dtype="fp8_e5m2")


def test_weights_in_8_bits_beside_scales_are_still_refused(tmp_path):
    save_with_scales(tmp_path, 0.5)
    edit_config(tmp_path, quantization_config={**FOR_8_BITS, "config_groups": {"group_0": {}}})
    refused(tmp_path, "this compressed-tensors checkpoint is 'None'; read are pack-quantized")


STORED = {
    "llama": "model.layers.0.mlp.up_proj.weight",
    "gpt2": "transformer.h.0.mlp.c_fc.weight",
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int64"])
@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_quantized_tensors_without_a_word_in_config(tmp_path, kind, dtype, file):
    save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    name = STORED[kind]
    rewrite(tmp_path, lambda w: w.update({name: w[name].to(getattr(torch, dtype))}))
    if file == "bin":
        weights = load_file(tmp_path / "model.safetensors")
        torch.save(weights, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, f"weight {re.escape(name)} holds {dtype} numbers: a quantized checkpoint")


@pytest.mark.parametrize("kind", STORED)
def test_an_old_gptq_or_awq_folder(tmp_path, kind):
    save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    name = STORED[kind].removesuffix("weight") + "qweight"
    packed = torch.ones(4, 48, dtype=torch.int32)
    rewrite(tmp_path, lambda w: (w.pop(STORED[kind]), w.update({name: packed})))
    refused(tmp_path, f"{re.escape(name)} is packed as GPTQ and AWQ pack weights")
    served = r"its \..* is due|its \.scales is missing" if kind == "llama" else "none of Llama"
    for file, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        (tmp_path / file).write_text('{"bits": 4, "group_size": 16}')
        refused(tmp_path, f"{method}.* ({served})")
        (tmp_path / file).unlink()


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("layers", [-1, 0, 10**9])
def test_a_number_of_layers_that_no_model_has(tmp_path, kind, layers):
    save({**NATIVE, **ADAPTED}[kind](), tmp_path)
    edit_config(tmp_path, **{"num_hidden_layers" if kind == "llama" else "n_layer": layers})
    refused(tmp_path, rf"num_hidden_layers {layers:,}; it must be 1 to 10,000")
    refused(tmp_path, rf"num_hidden_layers {layers:,}; it must", load_format="dummy")


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_attention_heads"])
def test_other_sizes_that_no_model_has(tmp_path, name):
    save(NATIVE["llama"](), tmp_path)
    edit_config(tmp_path, **{name: -8 if name != "vocab_size" else 10**12})
    refused(tmp_path, name)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", 5])
def test_an_index_that_leads_out_of_the_folder(tmp_path, kind, name):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sub").mkdir()
    save({**NATIVE, **ADAPTED}[kind](), tmp_path / "model")
    stored = tmp_path / "model" / "model.safetensors"
    shutil.copy(stored, tmp_path / "x.safetensors")
    stored.rename(tmp_path / "model" / "sub" / "x.safetensors")
    index = {"metadata": {}, "weight_map": {STORED[kind]: name}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path / "model", "which is not in the model's folder")


def test_errors_that_nobody_foresaw_are_one_line(tmp_path, monkeypatch):
    save(NATIVE["llama"](), tmp_path)

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("tried to allocate\n 5 GiB.")

    monkeypatch.setattr("engine.models.loader.fill", out_of_memory)
    refused(tmp_path, "LlamaForCausalLM can't be loaded: OutOfMemoryError: tried to allocate 5 GiB")


# ------------------------------------------------------------------ folders of other formats


def other_format(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"{}  ")


OTHERS = {
    ("model-q4.gguf",): "is no sound GGUF file: it doesn't begin with GGUF",
    ("config.json", "model-q4.GGUF"): "is no sound GGUF file",
    ("adapter_config.json", "adapter_model.safetensors"): "is a LoRA adapter, not a whole model",
    ("config.json", "adapter_config.json", "adapter_model.bin"): "is a LoRA adapter",
    ("params.json", "consolidated.00.pth"): "in its maker's own format",
}


@pytest.mark.parametrize("names", OTHERS)
def test_other_formats_are_named_by_loader_and_tokenizer_alike(tmp_path, names):
    other_format(tmp_path, *names)
    refused(tmp_path, OTHERS[names])
    with pytest.raises(ModelError, match=OTHERS[names]):
        load_tokenizer(str(tmp_path))


def test_a_gguf_file_and_an_adapters_base(tmp_path):
    (tmp_path / "model").write_bytes(b"GGUF\x03\0\0\0")
    refused(tmp_path / "model", "is no sound GGUF file: it ends in the middle of its header")
    (tmp_path / "model").unlink()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "small/base"}')
    refused(tmp_path, "is a LoRA adapter of small/base, not a whole model")


def test_a_whole_model_may_lie_beside_other_files(tmp_path):
    reference = save(NATIVE["llama"](), tmp_path)
    other_format(tmp_path, "adapter_config.json", "model-q4.gguf", "params.json")
    assert_loaded_as(load(tmp_path), reference)


def test_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    refused(tmp_path, "config.json can't be used: .*no_such_type")
