"""Load a model: config.json → the class that serves it → its weights, copied straight into place.

A native model is made with empty parameters in the wanted dtype on the wanted device, and each
tensor of the checkpoint is copied into its view of them, one at a time, then packed layer by layer:
there are never two copies of the weights. Every weight must have its tensor and every tensor its
weight.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.config import ConfigError, EngineConfig
from engine.kernels import Kernels, kernels_for
from engine.kernels.cpu.large_pages import SMALLEST, LargePages
from engine.kernels.ranks import Ranks
from engine.layers.embedding import Embedding, LogitsHead
from engine.layers.kinds import PLAIN, Layers
from engine.layers.linear import Packable, Sized
from engine.layers.quantized import (
    GatedQuantizedLinear,
    QuantizedEmbedding,
    QuantizedHead,
    QuantizedLinear,
)
from engine.layers.rank_shares import divided
from engine.models import kv_scales
from engine.models.causal_lm import CausalLM
from engine.models.checkpoint import Checkpoint, refuse_quantized_numbers
from engine.models.description import Description, read_config, transformers_config
from engine.models.dividing import check_divides
from engine.models.errors import ModelError
from engine.models.filling import (
    HEAD_OF_ITS_OWN,
    HEAD_WEIGHT,
    TABLE_WEIGHT,
    fill,
    fill_randomly,
)
from engine.models.fitting_options import check_architecture, check_quantized, check_rounding
from engine.models.formats import gguf_folder
from engine.models.formats.find import find_scheme
from engine.models.formats.gguf_weights import GGUFWeights
from engine.models.formats.scheme import QuantizedCheckpoint
from engine.models.hub import Progress, find_model
from engine.models.native import NativeModel
from engine.models.registry import native_class
from engine.models.rounded_activations import RoundedActivations
from engine.models.weights import Found, WeightSource
from engine.one_line import one_line
from engine.rank_sizes import PLAIN_ONLY
from engine.trace.events import EngineModelLoaded, EngineWarning
from engine.trace.recorder import Recorder

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def load_model(
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype | None = None,
    recorder: Recorder | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> CausalLM:
    """Return the model that `config` names, ready to compute on `device`.

    dtype: of weights and activations; None: as `config.dtype` says (`choose_dtype`). ranks: load
    the share of one of them. Records `engine.model_loaded`. Raises `ModelError`, one line: not
    found, gated, not readable, quantized, not servable, weights missing or left over; `ConfigError`
    where an option doesn't suit the model.
    """
    started = time.monotonic()
    folder = find_model(
        config.model, config.revision, config.hf_token, progress, config.download_dir
    )
    description = read_config(folder)
    warnings: list[str] = []
    try:
        dtype = dtype or choose_dtype(config.dtype, description, device)
        model, found = _make(
            config, folder, description, device, dtype, progress, warnings.append, ranks
        )
    except (ModelError, ConfigError):
        raise
    except Exception as error:  # inconsistent files raise any of torch's and transformers' errors
        name = (description.architectures or [description.model_type])[0]
        raise could_not_be_made(name, error) from error
    if recorder is not None:
        for message in warnings:
            recorder.record(EngineWarning(message=message))
        took_s, kernels = time.monotonic() - started, kernels_for(device)
        recorder.record(_loaded_event(config.model, model, found, dtype, kernels, took_s))
    return model


def weight_source(
    config: EngineConfig, folder: Path, description: PretrainedConfig, native: bool
) -> WeightSource | None:
    """Open the weights of a folder; None: they are to be random.

    native: one of our classes serves the model. Raises `ModelError`.
    """
    files = gguf_folder.files_in(folder)
    scheme = None
    if files is None:
        scheme = find_scheme(folder, getattr(description, "quantization_config", None))
    found = Found("gguf", "") if files is not None else None if scheme is None else scheme.found
    check_quantized(config, None if found is None else found.method)
    if scheme is not None:
        check_architecture(folder, scheme.found.method, native)
    if config.load_format == "dummy":
        return None
    if files is not None:
        return GGUFWeights(files, json.loads((folder / "config.json").read_text()))
    checkpoint = Checkpoint.open(folder)
    if scheme is not None:
        return QuantizedCheckpoint(checkpoint, scheme)
    refuse_quantized_numbers(checkpoint)
    return checkpoint


def _make(
    config: EngineConfig,
    folder: Path,
    description: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None,
    warn: Callable[[str], None],
    ranks: Ranks | None,
) -> tuple[CausalLM, Found | None]:
    """Return the model and how its checkpoint is quantized."""
    native = native_class(description)
    if ranks is not None:
        check_divides(description, ranks.size)
    source = weight_source(config, folder, description, native is not None)
    found = None if source is None else source.found
    rounding = RoundedActivations() if config.quantized_activations else None
    if rounding is not None:
        check_rounding(device.type, found is not None, config.model)
    if native is not None:
        scales: dict[str, float] = {}
        layers = PLAIN if config.quantization == "none" else _layers(source)
        if ranks is not None:
            if layers is not PLAIN:
                raise ModelError(PLAIN_ONLY)
            layers = divided(ranks, description.num_key_value_heads)
        with _made_as(device, dtype):
            model = native(description, layers)
        if device.type == "cpu":
            _put_in_large_pages(model)
        _fill_native(model, source, device, progress, scales, warn, rounding)
        said = kv_scales.judge(scales, config.kv_cache_dtype)
        if said:
            warn(said)
        if found is not None and rounding is not None:
            found = found._replace(activations=rounding.said(config.model))
        return model, found
    # Takes seconds to import, and memory that a native model has no use for.
    from engine.models.hf_adapter import TransformersModel

    if isinstance(description, Description):
        description = transformers_config(folder)
    adapter = TransformersModel(folder, description, device, dtype, source is None)
    if adapter.has_head_of_its_own:
        warn(HEAD_OF_ITS_OWN)
    return adapter, None


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


# ------------------------------------------------------------------------------------ native models


def _fill_native(
    model: NativeModel,
    source: WeightSource | None,
    device: torch.device,
    progress: Progress | None,
    scales: dict[str, float],
    warn: Callable[[str], None],
    rounding: RoundedActivations | None,
) -> None:
    """Fill and pack the weights. source: None for random weights.

    scales: collects those of an 8-bit KV cache, see `kv_scales`. rounding: see `fill`.
    """
    model.to(device).eval()
    if source is None:
        fill_randomly(model)
    else:
        fill(model, source, progress, scales, warn, rounding)
        for note in sorted(source.notes):
            warn(note)
    for module in model.modules():
        if isinstance(module, Packable):
            module.pack()


def _layers(source: WeightSource | None) -> Layers:
    """Choose plain layers, or those that a checkpoint's quantized matrices need.

    A quantized head has codes of its own though config.json may tie it to the embeddings.
    """
    names = frozenset() if source is None else source.quantized
    if not names:
        return PLAIN
    table = any(name.endswith(TABLE_WEIGHT) for name in names)
    head = any(name.endswith(HEAD_WEIGHT) for name in names)
    embedding = QuantizedEmbedding if table else Embedding

    def make_head(
        vocab_size: int, width: int, tied_to: Embedding | QuantizedEmbedding | None
    ) -> LogitsHead | QuantizedHead:
        if head:
            return QuantizedHead(vocab_size, width, None)
        if isinstance(tied_to, QuantizedEmbedding):
            return QuantizedHead(vocab_size, width, tied_to)
        return LogitsHead(vocab_size, width, tied_to)

    return Layers(
        linear=QuantizedLinear,
        gated=GatedQuantizedLinear,
        row_linear=QuantizedLinear,
        embedding=embedding,
        head=make_head,
    )


def _put_in_large_pages(model: NativeModel) -> None:
    """Give parameters that aren't filled yet memory that goes back when they are packed.

    It goes to the system piece by piece, each with the last layer that shares it; the C library
    keeps what small matrices leave.
    """
    pages = LargePages()
    for parameter in model.parameters():
        if parameter.nbytes >= SMALLEST:
            parameter.data = pages.empty(tuple(parameter.shape), parameter.dtype)


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


def _loaded_event(
    name: str,
    model: CausalLM,
    found: Found | None,
    dtype: torch.dtype,
    kernels: Kernels,
    duration_s: float,
) -> EngineModelLoaded:
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    sizes = [(p.numel(), p.nbytes) for p in parameters]
    if isinstance(model, nn.Module):
        sizes += [module.sizes for module in model.modules() if isinstance(module, Sized)]
    return EngineModelLoaded(
        model=name,
        architecture=model.architecture,
        implementation=model.implementation,
        num_parameters=sum(count for count, _ in sizes),
        num_bytes=sum(size for _, size in sizes),
        dtype=str(dtype).removeprefix("torch."),
        quantization=None if found is None else str(found),
        duration_s=duration_s,
        kernels=kernels.name,
        why=kernels.why,
    )
