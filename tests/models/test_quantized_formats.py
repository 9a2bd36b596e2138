"""Every quantized format is served: its numbers to the bit, its greedy tokens one by one."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.config.options import Options
from engine.kernels import BACKENDS, TORCH, Backend
from engine.models.errors import ModelError
from engine.models.formats.compressed_tensors import CompressedTensors
from engine.models.formats.find import SCHEMES
from engine.models.formats.method import SAME
from engine.models.loader import load_model
from engine.trace.annotate import describe
from engine.trace.context import Context
from engine.trace.recorder import Recorder
from tests.models.quantized_files import FORMATS, gptq, save
from tests.models.test_gguf_served import answers_of
from tests.models.test_loader import rewrite
from tests.support.engine_on_tokens import TokenEngine

PROMPTS = [[5, 3, 9], [4] * 17, list(range(3, 33))]


@pytest.fixture(scope="module", params=FORMATS)
def served(request, tmp_path_factory):
    """(folder, transformers' model with the numbers that the folder's stand for)"""
    folder = tmp_path_factory.mktemp("model")
    return folder, save(FORMATS[request.param], folder)


def plain(folder, monkeypatch, **options):
    """The model with its weights expanded in the order of the checkpoint."""
    monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    config = EngineConfig(model=str(folder), quantization="none", device="cpu", **options)
    return load_model(config, torch.device("cpu"))


def test_the_numbers_are_equal_to_the_bit(served, monkeypatch):
    folder, reference = served
    ours = dict(plain(folder, monkeypatch).weight_targets())
    for name, wanted in reference.state_dict().items():
        assert torch.equal(ours[name], wanted), name


def test_a_format_that_is_served_may_be_asked_for():
    wanted = get_args(get_args(get_type_hints(Options)["quantization"])[0])
    assert set(wanted) == SCHEMES.keys() | SAME.keys() | {"gguf", "none"}


def test_greedy_equals_transformers(served):
    folder, reference = served
    with TokenEngine(folder, block_size=4) as engine:
        found = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
    assert found == answers_of(reference, PROMPTS)


def test_layers_left_as_they_were_are_served_beside_the_others(tmp_path):
    """Whole layers, and one part of a merged layer."""
    reference = save(gptq(), tmp_path, keep=("layers.1.mlp", "layers.0.self_attn.v_proj"))
    with TokenEngine(tmp_path, block_size=4) as engine:
        found = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
    assert found == answers_of(reference, PROMPTS)


@pytest.mark.parametrize("quantization", [None, "none"])
def test_what_quantizing_tools_write_beside_the_matrices_changes_nothing(quantization, tmp_path):
    """Biases of zeros of layers without one, and SqueezeLLM's counts of outliers."""
    reference = save(FORMATS["squeezellm"], tmp_path)
    layer = "model.layers.0.self_attn.q_proj"

    def add(name, tensor):
        rewrite(tmp_path, lambda tensors: tensors.update({name: tensor}))

    add(f"{layer}.bias", torch.zeros(64))
    add(f"sparse_threshold.{layer}", torch.ones(1))
    with TokenEngine(tmp_path, block_size=4, quantization=quantization) as engine:
        found = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
    assert found == answers_of(reference, PROMPTS)
    add(f"{layer}.bias", torch.ones(64))
    refused(tmp_path, rf"no place for: {layer}\.bias\.", quantization=quantization)


# ------------------------------------------------------------------------------ bad checkpoints


def change(folder, name: str, into) -> None:
    """Write the checkpoint again with one tensor changed, or without it (None)."""
    tensors = load_file(folder / "model.safetensors")
    made = into(tensors.pop(name))
    if made is not None:
        tensors[name] = made.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_config(folder, **changed) -> None:
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"] |= changed
    (folder / "config.json").write_text(json.dumps(said))


def refused(folder, match: str, **options) -> None:
    config = EngineConfig(model=str(folder), device="cpu", dtype="float32", **options)
    with pytest.raises(ModelError, match=match) as error:
        load_model(config, torch.device("cpu"))
    assert "\n" not in str(error.value)


LAYER = "model.layers.1.mlp.down_proj"
BAD = {
    "scales missing": ("gptq", ".scales", lambda t: None, "its .scales is missing"),
    "codes cut off": (
        "gptq",
        ".qweight",
        lambda t: t[:-1],
        r"\.qweight has shape \[11, 64\]; \[12",
    ),
    "codes as bytes": (
        "gptq",
        ".qweight",
        lambda t: t.byte(),
        "holds uint8 numbers; int32 are due",
    ),
    "another group size": (
        "gptq",
        ".scales",
        lambda t: t[:1],
        r"\.scales has shape \[1, 64\]; \[3",
    ),
    "g_idx beyond": (
        "gptq asymmetric, act-order",
        ".g_idx",
        lambda t: t + 1,
        "its g_idx names group 3; there are 3",
    ),
    "g_idx below": (
        "gptq asymmetric, act-order",
        ".g_idx",
        lambda t: t - 1,
        "its g_idx names group -1; there are 3",
    ),
    "g_idx uneven": (
        "gptq asymmetric, act-order",
        ".g_idx",
        lambda t: t.clamp(max=1),
        "its g_idx has groups that don't have 32 inputs each",
    ),
    "no zeros": ("awq", ".qzeros", lambda t: None, "its .qzeros is missing"),
    "scales not finite": ("awq", ".scales", lambda t: t * torch.inf, "numbers that aren't finite"),
    "outliers beyond": ("squeezellm with outliers", ".cols", lambda t: t + 96, "its cols name"),
    "outliers uneven": ("squeezellm with outliers", ".rows", lambda t: t + 1, "its rows don't"),
    "rows beyond": (
        "squeezellm with outliers",
        ".full_row_indices",
        lambda t: t + 64,
        "its full_row_indices name outputs outside of 0 to 63",
    ),
    "a small table": ("squeezellm", ".lookup_table", lambda t: t[:, :8], "lookup_table has shape"),
    "a lie about the shape": (
        "compressed-tensors W4A16",
        ".weight_shape",
        lambda t: t * 1000,
        "its weight_shape is",
    ),
    "groups of no size": (
        "compressed-tensors W4A16",
        ".weight_scale",
        lambda t: torch.ones(64, 95),
        "its 96 inputs can't be 95 groups of one size",
    ),
    "floats that are none": (
        "fp8",
        ".weight",
        lambda t: t.view(torch.uint8).fill_(127).view(t.dtype),
        "it has codes that stand for no number",
    ),
    "a grid of another matrix": (
        "fp8 blocks",
        ".weight_scale_inv",
        lambda t: t.repeat(3, 3),
        "has",
    ),
    "absmax of another order": ("nf4", ".weight.absmax", lambda t: t[:, None], "absmax has shape"),
    "a state that is no JSON": (
        "nf4",
        ".weight.quant_state.bitsandbytes__nf4",
        lambda t: t[:-1],
        "its quant_state is not JSON",
    ),
    "rows in a GPU's order": ("bitsandbytes int8", ".weight_format", lambda t: t + 1, "isn't 0"),
    "a scale of 255": ("mxfp4", "_scales", lambda t: t.fill_(255), "stand for no number"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_tensor_is_refused_in_one_line_that_names_it(what, tmp_path):
    form, end, into, says = BAD[what]
    save(FORMATS[form], tmp_path)
    change(tmp_path, f"{LAYER}{end}", into)
    refused(tmp_path, rf"{LAYER}.*{says}")


@pytest.mark.parametrize("quantization", [None, "none"])
@pytest.mark.parametrize("form", ["gptq", "awq", "squeezellm", "mxfp4", "compressed-tensors W4A16"])
def test_a_matrix_that_is_stored_plain_too_is_refused(form, quantization, tmp_path):
    """Which one would be served depended on the order of their names."""
    save(FORMATS[form], tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(64, 96)}))
    says = rf"{LAYER}.* twice, (quantized and as plain numbers|packed and as \.weight)"
    refused(tmp_path, says, quantization=quantization)


def test_a_matrix_that_two_shards_have_is_refused(tmp_path):
    """Its layer is packed when it is read first, so the second one would be read for nothing."""
    save(FORMATS["gptq"], tmp_path)
    whole = (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(whole.read_bytes())
    shards = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    refused(tmp_path, r"\.weight twice; remove one")


SAID = {
    "5 bits": ("gptq", {"bits": 5}, "bits is 5; served are 2, 3, 4, 8"),
    "a group of -5": ("gptq", {"group_size": -5}, "group_size is -5"),
    "marlin": ("gptq", {"checkpoint_format": "marlin"}, "packed as 'marlin': gptq and gptq_v2"),
    "gemv": ("awq", {"version": "gemv"}, "packed as 'gemv': gemm is read"),
    "a group that doesn't fit": ("awq", {"group_size": 40}, "groups of 40 inputs"),
    "sparse": (
        "compressed-tensors W8",
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        r"is sparse \(sparse-24-bitmask\): that is not served",
    ),
    "rotated": ("compressed-tensors W8", {"transform_config": {"a": 1}}, "is rotated"),
    "another packing": ("compressed-tensors W8", {"format": "marlin-24"}, "is 'marlin-24'; read"),
    "blocks of text": ("fp8 blocks", {"weight_block_size": "128"}, "weight_block_size is '128'"),
    "blocks beyond every matrix": (
        "compressed-tensors FP8",
        {"config_groups": {"a": {"weights": {"block_structure": [1 << 40, 128]}}}},
        r"block_structure is \[\[1099511627776, 128\]\]",
    ),
    "another method": ("gptq", {"quant_method": "quip"}, "quantized by quip, which is not served"),
}


@pytest.mark.parametrize("what", SAID)
def test_what_is_not_read_is_refused_by_name(what, tmp_path):
    form, changed, says = SAID[what]
    save(FORMATS[form], tmp_path)
    change_config(tmp_path, **changed)
    refused(tmp_path, says)


@pytest.mark.parametrize(("group", "whole"), [(16, torch.ones(1)), (32, None)])
def test_four_bit_floats_have_a_scale_for_each_of_their_inputs(group, whole):
    """A kernel would read the scale of a group that the file doesn't have."""
    kind = torch.float8_e4m3fn if whole is not None else torch.uint8
    scheme = CompressedTensors({"format": "nvfp4-pack-quantized"})
    for inputs, refused in ((4 * group, ""), (4 * group + 8, f"whole groups of {group}")):
        stored = {
            ".weight_packed": torch.zeros(8, inputs // 2, dtype=torch.uint8),
            ".weight_scale": torch.ones(8, inputs // group).to(kind),
        }
        if whole is not None:
            stored[".weight_global_scale"] = whole
        if refused:
            with pytest.raises(ModelError, match=refused):
                scheme.filling("layer", stored, (8, inputs))
        else:
            assert scheme.filling("layer", stored, (8, inputs)).matrix.shape == (8, inputs)
    if whole is not None:
        stored = {**stored, ".weight_packed": stored[".weight_packed"][:, :-4]}
        with pytest.raises(ModelError, match="global_scale has shape"):
            stored[".weight_global_scale"] = torch.ones(8)
            scheme.filling("layer", stored, (8, 4 * group))


def test_the_option_must_name_what_is_found(tmp_path):
    save(FORMATS["gptq"], tmp_path)
    refused(tmp_path, "--quantization is awq, but the checkpoint is gptq", quantization="awq")
    config = EngineConfig(model=str(tmp_path), quantization="gptq_marlin", device="cpu")
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    load_model(config, torch.device("cpu"), recorder=recorder)
    recorder.close()
    assert events[-1].quantization == "gptq: 4 bits, groups of 32"
    assert "quantized (gptq: 4 bits, groups of 32)" in describe(events[-1], Context())
    refused(tmp_path, "random weights", load_format="dummy")
    said = json.loads((tmp_path / "config.json").read_text())
    del said["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    refused(tmp_path, "a quantized checkpoint whose config.json does not say so")
    refused(tmp_path, "but the checkpoint is not quantized", quantization="awq")


def test_old_checkpoints_say_it_beside_config_json(tmp_path):
    names = {"gptq": "quantize_config.json", "awq": "quant_config.json"}
    for form in ("gptq", "awq", "squeezellm"):
        folder = tmp_path / form
        folder.mkdir()
        reference = save(FORMATS[form], folder)
        said = json.loads((folder / "config.json").read_text())
        beside = said.pop("quantization_config")
        del beside["quant_method"]
        (folder / names.get(form, "quant_config.json")).write_text(json.dumps(beside))
        (folder / "config.json").write_text(json.dumps(said))
        if form == "squeezellm":  # its own checkpoints are one file of torch
            torch.save(load_file(folder / "model.safetensors"), folder / "sq-w4.pt")
            (folder / "model.safetensors").unlink()
        with TokenEngine(folder, block_size=4) as engine:
            found = engine.run(PROMPTS[:1], temperature=0.0, max_tokens=8)
        assert found == [[answers_of(reference, PROMPTS[:1])[0][0][:8]]]


def told_by(folder, config: dict, beside: str | None = None) -> None:
    """Let config.json say this of its quantization, or a file beside it."""
    said = json.loads((folder / "config.json").read_text())
    del said["quantization_config"]
    if beside is None:
        said["quantization_config"] = config
    else:
        (folder / beside).write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(said))


def test_what_was_frozen_in_2024_is_compressed(tmp_path):
    """So say the first checkpoints of compressed-tensors, and transformers' own documentation."""
    reference = save(FORMATS["compressed-tensors FP8"], tmp_path)
    change_config(tmp_path, quantization_status="frozen", format="naive-quantized")
    with TokenEngine(tmp_path, block_size=4) as engine:
        found = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
    assert found == answers_of(reference, PROMPTS)
    change_config(tmp_path, quantization_status="calibration")
    refused(tmp_path, "was never compressed")


AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True}
OTHERS = {
    "auto-round": ("gptq", AUTO_ROUND | {"packing_format": "auto_round:auto_gptq"}, None),
    "auto-round, asymmetric": ("gptq v1, asymmetric", AUTO_ROUND | {"sym": False}, None),
    "auto-round as AWQ": (
        "awq",
        AUTO_ROUND | {"sym": False, "packing_format": "auto_round:auto_awq"},
        None,
    ),
    "auto-round, beside": ("gptq", AUTO_ROUND, "quantization_config.json"),
    "modelopt": (
        "fp8",
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"],
         "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        None,
    ),
    "modelopt, beside": (
        "fp8 rows",
        {"producer": {"name": "modelopt"},
         "quantization": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "exclude_modules": []}},
        "hf_quant_config.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("form", "config", "beside"), OTHERS.values(), ids=OTHERS)
def test_what_other_tools_store_alike_is_served(form, config, beside, tmp_path):
    form = gptq(symmetric=False) if form == "gptq v1, asymmetric" else FORMATS[form]
    reference = save(form, tmp_path)
    told_by(tmp_path, config, beside)
    with TokenEngine(tmp_path, block_size=4) as engine:
        found = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
    assert found == answers_of(reference, PROMPTS)


def test_layers_that_auto_round_gave_other_bits(tmp_path):
    """One left plain, and the head in 8 bits."""
    ends = ("proj.weight", "lm_head.weight")
    reference = save(
        gptq(), tmp_path, keep=("layers.1.mlp.up_proj",), ends=ends, head=gptq(8), vocab_size=104
    )
    extra = {"model.layers.1.mlp.up_proj": {"bits": 16}, "lm_head": {"bits": 8}}
    told_by(tmp_path, AUTO_ROUND | {"extra_config": extra})
    with TokenEngine(tmp_path, block_size=4) as engine:
        found = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
    assert found == answers_of(reference, PROMPTS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AUTO_ROUND | {"packing_format": "auto_round:gptq_marlin"}, "packed as 'auto_round:gptq_m"),
        (AUTO_ROUND | {"data_type": "mx_fp"}, "packed as 'mx_fp'"),
        (AUTO_ROUND | {"extra_config": ["lm_head"]}, "this auto-round checkpoint says"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"modelopt \(NVFP4\), which is not"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [1]}, "this modelopt check"),
    ],
)
def test_what_other_tools_store_otherwise_is_refused_by_name(config, message, tmp_path):
    save(gptq(), tmp_path)
    told_by(tmp_path, config)
    refused(tmp_path, message)


def test_symmetric_zeros_that_contradict_the_config_are_believed_and_told(tmp_path):
    """Files exist that say version 1 and store version 2."""
    reference = save(gptq(v2=True), tmp_path)
    change_config(tmp_path, checkpoint_format="gptq")
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    config = EngineConfig(model=str(tmp_path), device="cpu", dtype="float32", quantization="none")
    load_model(config, torch.device("cpu"), recorder=recorder)
    recorder.close()
    assert any("they are all 8, the middle" in getattr(one, "message", "") for one in events)
    with TokenEngine(tmp_path, block_size=4) as engine:
        assert engine.run(PROMPTS, temperature=0.0, max_tokens=12) == answers_of(reference, PROMPTS)


def test_a_truncated_file_is_one_line(tmp_path):
    save(FORMATS["awq"], tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(tmp_path, "model.safetensors can't be read")
    save(FORMATS["squeezellm"], tmp_path)
    torch.save(load_file(path), tmp_path / "sq-w4.pt")  # as the method's own checkpoints are
    path.unlink()
    path = tmp_path / "sq-w4.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(tmp_path, r"sq-w4\.pt can't be read")
