"""Fill a native model: every weight must have its tensor and every tensor its weight.

Each tensor is copied straight into its place, one at a time, and quantized matrices go into their
slots, whose layer is packed when they are full: there are never two copies of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.quantized import QuantizedEmbedding, QuantizedHead, QuantizedLinear
from engine.layers.slot import Filling, Share, Slot, Target
from engine.models import kv_scales
from engine.models.checkpoint import is_computed
from engine.models.errors import ModelError
from engine.models.formats.targets import HEAD_LAYER
from engine.models.hub import Progress
from engine.models.native import NativeModel
from engine.models.rounded_activations import RoundedActivations
from engine.models.weights import StoredMatrix, WeightSource

HEAD_OF_ITS_OWN = (
    "config.json ties the head to the embeddings, but the checkpoint has another lm_head: it is"
    " used. Set tie_word_embeddings to false in config.json to say so."
)

TABLE_WEIGHT, HEAD_WEIGHT = "embed_tokens.weight", f"{HEAD_LAYER}.weight"
DUMMY_STD = 0.02
DUMMY_SEED = 0


def fill(
    model: NativeModel,
    source: WeightSource,
    progress: Progress | None,
    scales: dict[str, float],
    warn: Callable[[str], None],
    rounding: RoundedActivations | None = None,
) -> None:
    """Copy every tensor to its place, those of the KV cache to `scales`.

    rounding: marks matrices for products with activations in 8 bits. Raises `ModelError` unless
    names and shapes match.
    """
    targets = dict(model.weight_targets())
    layers = _QuantizedLayers(model)
    missing, unexpected = set(targets), []
    head: torch.Tensor | StoredMatrix | None = None
    done, total = 0, source.num_bytes
    for name, tensor in source.tensors():
        name = _called(name, targets)
        done += tensor.nbytes if isinstance(tensor, torch.Tensor) else tensor.num_bytes
        if name in targets:
            is_plain = isinstance(tensor, torch.Tensor) and not isinstance(targets[name], Slot)
            if not is_plain and name not in missing:  # its layer may be packed
                raise ModelError(f"{source.where} has {name} twice; remove one.")
            multiplies = model.lm_head.tied_to is not None or not name.endswith(TABLE_WEIGHT)
            marking = rounding if multiplies else None
            _place(name, tensor, targets[name], source.where, marking)
            layers.placed(targets[name])
            missing.discard(name)
        elif model.lm_head.tied_to is not None and name.endswith(HEAD_WEIGHT):
            head = tensor  # compared later: the embeddings may come after it
        elif not isinstance(tensor, torch.Tensor):
            unexpected.append(name)
        elif kv_scales.is_kv_scale(name):
            scales[name] = float(tensor.max())
        elif not is_computed(name) and not _is_no_bias(name, tensor, targets):
            unexpected.append(name)
        if progress is not None:
            progress("load", min(done, total), total)
    if head is not None:
        missing -= _place_head(model, head, source.where, missing, warn)
    elif model.ties_head and model.lm_head.tied_to is None and not missing:
        _compare_codes(model, rounding, warn)
    if missing:
        raise ModelError(
            f"{source.where} lacks {_some(missing)}; it is not whole, or of another model."
        )
    if unexpected:
        raise ModelError(
            f"{source.where} has weights that {model.architecture} has no place for:"
            f" {_some(unexpected)}."
        )


class _QuantizedLayers:
    """Pack each quantized layer when its last slot is filled.

    So codes are in memory twice for one layer at a time.
    """

    def __init__(self, model: NativeModel) -> None:
        self._of = {
            id(slot): layer
            for layer in model.modules()
            if isinstance(layer, QuantizedLinear)
            for slot in layer.slots.values()
        }

    def placed(self, target: Target) -> None:
        """Note that a target was filled."""
        layer = self._of.pop(id(target), None)
        if layer is not None and layer not in self._of.values():
            layer.pack()


def _place(
    name: str,
    tensor: torch.Tensor | StoredMatrix,
    target: Target,
    where: str,
    rounding: RoundedActivations | None,
) -> None:
    """Put one tensor where it goes. Raises `ModelError` where it has another shape."""
    if isinstance(tensor, torch.Tensor):
        _check_shape(name, tensor, target.shape)
        if isinstance(target, Slot):
            target.fill(Filling(tensor))
        else:
            target.copy_(tensor)
        return
    if len(target.shape) != 2:
        raise ModelError(f"{where}: {name} is quantized, but only matrices may be.")
    filling = _filling(name, tensor, (target.shape[0], target.shape[1]), where)
    if isinstance(target, Slot):
        target.fill(filling if rounding is None else rounding.mark(filling))
    else:  # --quantization none
        target.copy_(expanded(filling))


def _filling(name: str, stored: StoredMatrix, shape: tuple[int, int], where: str) -> Filling:
    """Read a quantized matrix. Raises `ModelError` where it isn't sound."""
    try:
        filling = stored.filling(shape)
        _check_finite(name, filling)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    return filling


def expanded(filling: Filling) -> torch.Tensor:
    """Compute the numbers that a matrix stands for: fp32 [N, K]."""
    matrix, outliers = filling
    numbers = matrix if isinstance(matrix, torch.Tensor) else matrix.dequantize()
    return numbers if outliers is None else numbers + outliers.dense(matrix.shape[1])


def _check_finite(name: str, filling: Filling) -> None:
    """Refuse scales and the like that are infinite or not a number, as damaged files have them."""
    matrix = filling.matrix
    parts = [filling.outliers.values] if filling.outliers is not None else []
    if isinstance(matrix, QuantizedWeight):
        parts += [part for part in matrix.tensors if part.dtype.is_floating_point]
    for part in parts:
        part = part.float() if part.dtype is torch.float8_e4m3fn else part
        if not bool(torch.isfinite(part).all()):
            raise ModelError(f"weight {name} has scales or numbers that aren't finite.")


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ModelError(
            f"weight {name} has shape {list(tensor.shape)}, config.json says {list(shape)}; they"
            " are not of the same model."
        )


def _called(name: str, targets: Mapping[str, Target]) -> str:
    """Return the model's name of a tensor: checkpoints of the bare decoder lack "model."."""
    return f"model.{name}" if name not in targets and f"model.{name}" in targets else name


def _is_no_bias(name: str, tensor: torch.Tensor, targets: Mapping[str, Target]) -> bool:
    """Return whether it is a bias of zeros of a layer without one, as quantizing tools write."""
    weight = name.removesuffix("bias") + "weight"
    owner = targets.get(_called(weight, targets))
    is_matrix = owner is not None and len(owner.shape) == 2
    is_matrix |= weight.endswith(HEAD_WEIGHT)  # a tied head has no place of its own
    return name.endswith(".bias") and is_matrix and not tensor.any()


def _place_head(
    model: NativeModel,
    stored: torch.Tensor | StoredMatrix,
    where: str,
    missing: set[str],
    warn: Callable[[str], None],
) -> set[str]:
    """Compare a stored head with the embeddings to which config.json ties it, as transformers does.

    If the numbers are equal, nothing is reported. If they differ, they are used, with a warning. A
    head without embeddings fills both. Returns the missing weights that it has filled.
    """
    if isinstance(model.lm_head, QuantizedHead):  # a quantized head would have its own slot
        assert isinstance(stored, torch.Tensor), "it is tied, so what is stored isn't quantized"
        _check_shape(HEAD_WEIGHT, stored, model.lm_head.slot.shape)
        assert isinstance(model.embed_tokens, QuantizedEmbedding)
        if not missing and not model.embed_tokens.slot.stands_for(stored):
            model.lm_head.untie(stored)
            warn(HEAD_OF_ITS_OWN)
        return set()
    table = model.lm_head.weight
    embeddings = {name for name, target in model.weight_targets() if _parameter(target) is table}
    shape = (model.vocab_size, table.shape[1])
    if isinstance(stored, torch.Tensor):
        head = stored
        _check_shape(HEAD_WEIGHT, head, shape)
    else:  # --quantization none
        head = expanded(_filling(HEAD_WEIGHT, stored, shape, where))
    if embeddings & missing:
        model.lm_head.target(table).copy_(head)
        return embeddings
    own = torch.zeros_like(table)
    model.lm_head.target(own).copy_(head)
    if not torch.equal(own, table):
        model.lm_head.untie(own)
        warn(HEAD_OF_ITS_OWN)
    return set()


def _compare_codes(
    model: NativeModel, rounding: RoundedActivations | None, warn: Callable[[str], None]
) -> None:
    """Compare a quantized head with embeddings to which config.json ties it, as `_place_head`."""
    head, table = model.lm_head, model.embed_tokens
    assert isinstance(head, QuantizedHead)
    if not isinstance(table, QuantizedEmbedding) or not table.slot.stands_for(head.slot):
        warn(HEAD_OF_ITS_OWN)
    elif rounding is None:  # it marks what multiplies, and the embeddings aren't marked
        head.tie(table)


def _parameter(target: Target) -> torch.Tensor | None:
    """Return the parameter that a target is, or that it is a part of."""
    if isinstance(target, Share):
        return target.parameter
    return target if isinstance(target, torch.Tensor) else None


def _some(names: set[str] | list[str]) -> str:
    """List the first three of them, and how many more there are."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fill_randomly(model: NativeModel) -> None:
    """Fill with normal weights, equal in every run on one kind of device; norms with ones."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, target in model.weight_targets():
        if isinstance(target, Slot):
            raise ModelError("random weights (--load-format dummy) are plain, not quantized.")
        if target.dim() == 1:
            target.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        device = target.device  # drawn on the device: a CPU takes a minute for 7 billion
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(DUMMY_SEED)
        drawn = torch.randn(target.shape, generator=generators[device], device=device)
        target.copy_(drawn.mul_(DUMMY_STD))
