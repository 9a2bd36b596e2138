"""Load a model: config.json → the class that serves it → its weights, copied straight into place.

A native model is made with empty parameters in the wanted dtype on the wanted device, and each
tensor of the checkpoint is copied into its view of them, one at a time: there are never two copies
of the weights. Every weight must have its tensor and every tensor its weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.config import EngineConfig
from engine.kernels import Kernels, kernels_for
from engine.layers.linear import Packable
from engine.models import kv_scales
from engine.models.causal_lm import CausalLM
from engine.models.checkpoint import Checkpoint, is_computed, refuse_quantized_numbers
from engine.models.description import Description, read_config, transformers_config
from engine.models.errors import ModelError
from engine.models.hub import Progress, find_model
from engine.models.llama import LlamaModel
from engine.models.opt import OPTModel
from engine.models.registry import native_class
from engine.one_line import one_line
from engine.trace.events import EngineModelLoaded, EngineWarning
from engine.trace.recorder import Recorder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HEAD_OF_ITS_OWN = (
    "config.json ties the head to the embeddings, but the weights have another lm_head.weight: it"
    " is used. Set tie_word_embeddings to false in config.json to say so."
)

DUMMY_STD = 0.02
DUMMY_SEED = 0


def load_model(
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype | None = None,
    recorder: Recorder | None = None,
    progress: Progress | None = None,
) -> CausalLM:
    """Return the model that `config` names, ready to compute on `device`.

    dtype: of weights and activations; None: as `config.dtype` says (`choose_dtype`). Records
    `engine.model_loaded`. Raises `ModelError`, one line: not found, gated, not readable, quantized,
    not servable, weights missing or left over.
    """
    started = time.monotonic()
    folder = find_model(
        config.model, config.revision, config.hf_token, progress, config.download_dir
    )
    description = read_config(folder)
    warnings: list[str] = []
    try:
        dtype = dtype or choose_dtype(config.dtype, description, device)
        model = _make(config, folder, description, device, dtype, progress, warnings.append)
    except ModelError:
        raise
    except Exception as error:  # inconsistent files raise any of torch's and transformers' errors
        name = (description.architectures or [description.model_type])[0]
        raise could_not_be_made(name, error) from error
    if recorder is not None:
        for message in warnings:
            recorder.record(EngineWarning(message=message))
        took_s, kernels = time.monotonic() - started, kernels_for(device)
        recorder.record(_loaded_event(config.model, model, dtype, kernels, took_s))
    return model


def _make(
    config: EngineConfig,
    folder: Path,
    description: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None,
    warn: Callable[[str], None],
) -> CausalLM:
    native = native_class(description)
    _refuse_quantized(folder, description, native is not None)
    checkpoint = None if config.load_format == "dummy" else Checkpoint.open(folder)
    if checkpoint is not None:
        refuse_quantized_numbers(checkpoint)
    if native is not None:
        scales: dict[str, float] = {}
        model = _load_native(native, description, checkpoint, device, dtype, progress, scales, warn)
        said = kv_scales.judge(scales, config.kv_cache_dtype)
        if said:
            warn(said)
        return model
    # Takes seconds to import, and memory that a native model has no use for.
    from engine.models.hf_adapter import TransformersModel

    if isinstance(description, Description):
        description = transformers_config(folder)
    adapter = TransformersModel(folder, description, device, dtype, checkpoint is None)
    if adapter.has_head_of_its_own:
        warn(HEAD_OF_ITS_OWN)
    return adapter


def could_not_be_made(architecture: str, error: Exception) -> ModelError:
    """Make the one-line error for a failure that nobody foresaw."""
    reason = one_line(error).rstrip(".")
    return ModelError(
        f"{architecture} can't be loaded: {type(error).__name__}: {reason or 'no message'}. Are"
        " config.json and the weights of the same model, and does it fit into memory?"
    )


def choose_dtype(wanted: str, description: PretrainedConfig, device: torch.device) -> torch.dtype:
    """Choose `--dtype`, or for "auto" the checkpoint's; float16 on a CPU becomes bfloat16."""
    if wanted != "auto":
        return getattr(torch, wanted)
    stored = description.get_text_config().dtype
    if isinstance(stored, str):
        stored = getattr(torch, stored, None)
    if stored not in (torch.float32, torch.bfloat16, torch.float16):
        stored = torch.float32
    return torch.bfloat16 if stored == torch.float16 and device.type == "cpu" else stored


def _only_kv_scales(stored: object) -> bool:
    """Return whether a quantization_config (of compressed-tensors) is about the KV cache only.

    Then the weights are plain numbers.
    """
    if not isinstance(stored, dict):
        return False
    return bool(stored.get("kv_cache_scheme")) and not stored.get("config_groups")


def _refuse_quantized(folder: Path, description: PretrainedConfig, native: bool) -> None:
    stored = getattr(description, "quantization_config", None)
    if stored is not None and not (native and _only_kv_scales(stored)):
        method = stored.get("quant_method", "unknown") if isinstance(stored, dict) else stored
        method = getattr(method, "quant_method", method)
        raise ModelError(
            f"quantized checkpoints ({getattr(method, 'value', method)}) are not supported yet;"
            " use the model's unquantized checkpoint."
        )
    for name in ("quantize_config.json", "quant_config.json"):
        if (folder / name).is_file():
            raise ModelError(
                f"{folder} is a GPTQ or AWQ checkpoint, in the old form ({name} beside"
                " config.json): quantized checkpoints are not supported yet; use the model's"
                " unquantized checkpoint."
            )


# ------------------------------------------------------------------------------------ native models


def _load_native(
    native: type[LlamaModel] | type[OPTModel],
    description: PretrainedConfig,
    checkpoint: Checkpoint | None,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None,
    scales: dict[str, float],
    warn: Callable[[str], None],
) -> LlamaModel | OPTModel:
    """Make the model and fill its weights. checkpoint: None for random weights.

    scales: collects those of an 8-bit KV cache, see `kv_scales`.
    """
    with _made_as(device, dtype):
        model = native(description)
    model.to(device).eval()
    if checkpoint is None:
        _fill_randomly(model)
    else:
        _fill(model, checkpoint, progress, scales, warn)
    for module in model.modules():
        if isinstance(module, Packable):
            module.pack()
    return model


@contextmanager
def _made_as(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Give parameters made inside this dtype and device from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _fill(
    model: LlamaModel | OPTModel,
    checkpoint: Checkpoint,
    progress: Progress | None,
    scales: dict[str, float],
    warn: Callable[[str], None],
) -> None:
    """Copy every tensor to its place, those of the KV cache to `scales`.

    Raises `ModelError` unless names and shapes match.
    """
    targets = dict(model.weight_targets())
    missing, unexpected = set(targets), []
    head: torch.Tensor | None = None
    done, total = 0, checkpoint.num_bytes
    for name, tensor in checkpoint.tensors():
        # checkpoints of the bare decoder lack the outermost "model."
        name = name if name in targets else f"model.{name}"
        done += tensor.nbytes
        if name in targets:
            _copy(name, tensor, targets[name])
            missing.discard(name)
        elif kv_scales.is_kv_scale(name):
            scales[name] = float(tensor.max())
        elif model.lm_head.tied_to is not None and name.endswith("lm_head.weight"):
            head = tensor  # compared later: the embeddings may come after it
        elif not is_computed(name):
            unexpected.append(name.removeprefix("model.model."))
        if progress is not None:
            progress("load", min(done, total), total)
    if head is not None:
        missing -= _place_head(model, head, missing, warn)
    where = f"the checkpoint in {checkpoint.folder}"
    if missing:
        raise ModelError(f"{where} lacks {_some(missing)}; it is not whole, or of another model.")
    if unexpected:
        raise ModelError(
            f"{where} has weights that {model.architecture} has no place for: {_some(unexpected)}."
        )


def _copy(name: str, tensor: torch.Tensor, target: torch.Tensor) -> None:
    if tensor.shape != target.shape:
        raise ModelError(
            f"weight {name} has shape {list(tensor.shape)}, config.json says"
            f" {list(target.shape)}; they are not of the same model."
        )
    target.copy_(tensor)


def _place_head(
    model: LlamaModel | OPTModel,
    head: torch.Tensor,
    missing: set[str],
    warn: Callable[[str], None],
) -> set[str]:
    """Compare a stored head with the embeddings to which config.json ties it, as transformers does.

    If the numbers are equal, nothing is reported. If they differ, they are used, with a warning. A
    head without embeddings fills both. Returns the missing weights that it has filled.
    """
    table = model.lm_head.weight
    embeddings = {name for name, target in model.weight_targets() if target is table}
    if embeddings & missing:
        _copy("lm_head.weight", head, table)
        return embeddings
    own = torch.empty_like(table)
    _copy("lm_head.weight", head, own)
    if not torch.equal(own, table):
        model.lm_head.untie(own)
        warn(HEAD_OF_ITS_OWN)
    return set()


def _some(names: set[str] | list[str]) -> str:
    """List the first three of them, and how many more there are."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fill_randomly(model: LlamaModel | OPTModel) -> None:
    """Fill with normal weights, equal in every run on one kind of device; norms with ones."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, target in model.weight_targets():
        if target.dim() == 1:
            target.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        device = target.device  # drawn on the device: a CPU takes a minute for 7 billion
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(DUMMY_SEED)
        drawn = torch.randn(target.shape, generator=generators[device], device=device)
        target.copy_(drawn.mul_(DUMMY_STD))


def _loaded_event(
    name: str, model: CausalLM, dtype: torch.dtype, kernels: Kernels, duration_s: float
) -> EngineModelLoaded:
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    sizes = [(p.numel(), p.nbytes) for p in parameters]
    return EngineModelLoaded(
        model=name,
        architecture=model.architecture,
        implementation=model.implementation,
        num_parameters=sum(count for count, _ in sizes),
        num_bytes=sum(size for _, size in sizes),
        dtype=str(dtype).removeprefix("torch."),
        duration_s=duration_s,
        kernels=kernels.name,
        why=kernels.why,
    )
