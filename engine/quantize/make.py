"""Quantize a model's matrices one by one, and say what that did to them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.models.checkpoint import Checkpoint
from engine.models.description import read_config
from engine.models.errors import ModelError
from engine.models.filling import TABLE_WEIGHT
from engine.models.formats.find import quantized_by
from engine.models.formats.targets import HEAD_LAYER
from engine.models.hub import find_model
from engine.models.registry import NATIVE
from engine.one_line import one_line
from engine.quantize.feedback import round_with_feedback
from engine.quantize.own_text import inputs_of, loss, write_text
from engine.quantize.weight_rounding import Grid, Rounded, round_to_nearest

GROUPS = (128, 64, 32)
_BLOCK = re.compile(r"\.layers\.(\d+)\.")


class Made(NamedTuple):
    """Say what quantizing did to one matrix."""

    layer: str
    shape: tuple[int, int]
    error: float  # of the weights: root of mean squares, as part of the weights' own
    output_error: float | None  # of the outputs on the model's own text, where it was measured


def _loaded(model: str, folder: Path) -> Any:
    """Load transformers' model. Raises `ModelError`."""
    Checkpoint.open(folder)  # says in a line what is missing
    from transformers import AutoModelForCausalLM  # takes seconds to import

    try:
        made = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # of many kinds: files that are damaged or of another shape, …
        raise ModelError(f"{model} can't be loaded: {one_line(error)}") from None
    return made.eval()


class Source:
    """Hold the model to be quantized, as transformers computes it in fp32."""

    def __init__(self, model: str, head: bool = False) -> None:
        """Load it. Raises `ModelError` where it can't be, or its kind can't be served quantized.

        head: the head is to be quantized, too. A tied one gets a matrix of its own for it, and the
        embeddings stay as they are; the config is that of the model with this head.
        """
        self.folder = find_model(model, None, None)
        read_config(self.folder)
        self.config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        method = quantized_by(self.folder, self.config.get("quantization_config"))
        if method is not None:
            raise ModelError(f"{model} is quantized already ({method}); name the plain checkpoint.")
        architecture = (self.config.get("architectures") or ["?"])[0]
        if architecture not in NATIVE or "quantization_config" in self.config:
            raise ModelError(
                f"{model} can't be quantized here: its architecture is {architecture}, and plain"
                f" checkpoints of {', '.join(NATIVE)} are taken."
            )
        self.model = _loaded(model, self.folder)
        self.tied = self.model.lm_head.weight is self.model.get_input_embeddings().weight
        if head and self.tied:
            weight = self.model.lm_head.weight.clone()
            self.model.lm_head.weight = torch.nn.Parameter(weight, requires_grad=False)
        if head or not self.tied:
            # a config may tie a head that isn't the embeddings: vLLM and GGUF files would drop it
            self.config["tie_word_embeddings"] = False
        self.layers = {
            name: layer
            for name, layer in self.model.named_modules()
            if isinstance(layer, torch.nn.Linear)
            and (_BLOCK.search(name) or (head and name == HEAD_LAYER))
        }
        self.first = self.config.get("bos_token_id") or 0
        self.kept = [] if head else [HEAD_LAYER]

    def group(self, whole_rows: bool) -> int:
        """Choose how many inputs share a scale: the most that divides all rows; 0: a row."""
        if whole_rows:
            return 0
        widths = {layer.in_features for layer in self.layers.values()}
        fitting = [group for group in GROUPS if all(width % group == 0 for width in widths)]
        if not fitting:
            raise ModelError(f"rows of {sorted(widths)} inputs are no whole groups of {GROUPS}.")
        return fitting[0]

    def blocks(self) -> Iterator[dict[str, torch.nn.Linear]]:
        """Yield the layers of each block of the model, by name, and then its head."""
        by_block: dict[float, dict[str, torch.nn.Linear]] = {}
        for name, layer in self.layers.items():
            found = _BLOCK.search(name)
            number = math.inf if found is None else int(found[1])
            by_block.setdefault(number, {})[name] = layer
        for _, block in sorted(by_block.items()):
            yield block

    def rest(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor as it is stored) of all that isn't quantized.

        Of a tied head and its embeddings a checkpoint may have stored the head alone.
        """
        checkpoint, embeddings = Checkpoint.open(self.folder), self.model.get_input_embeddings()
        table = next(name for name, module in self.model.named_modules() if module is embeddings)
        stored = {name for name, _ in checkpoint.contents()}
        alone = self.tied and not any(name.endswith(TABLE_WEIGHT) for name in stored)
        for name, tensor in checkpoint.tensors():
            layer = name.removesuffix(".weight")
            # checkpoints of the bare decoder lack the outermost "model."
            if layer not in self.layers and f"model.{layer}" not in self.layers:
                yield name, tensor
            elif layer == HEAD_LAYER and alone:
                yield f"{table}.weight", tensor


def quantize(
    source: Source,
    grid_of: Callable[[int], Grid],
    take: Callable[[str, Rounded, Grid], None],
    *,
    feedback: bool = False,
    on_text: bool = True,
) -> Iterator[Made]:
    """Round all matrices, block after block, each on what the rounded ones before it give.

    grid_of: for a number of inputs. take: called with each layer's name and rounded matrix.
    feedback: as GPTQ rounds, which needs on_text. on_text: compare outputs on text that the model
    writes first. The source's model has the rounded weights afterwards.
    """
    texts = write_text(source.model, "calibrate", source.first) if on_text else None
    for block in source.blocks():
        seen = inputs_of(source.model, dict(block), texts) if texts is not None else {}
        for name, layer in block.items():
            weight, grid = layer.weight.data, grid_of(layer.in_features)
            if feedback:
                rounded = round_with_feedback(weight, seen[name], grid)
            else:
                rounded = round_to_nearest(weight, grid)
            numbers = rounded.numbers()
            take(name, rounded, grid)
            changed = numbers - weight
            yield Made(
                name,
                (layer.out_features, layer.in_features),
                float(changed.norm() / weight.norm()),
                _part(changed, weight, seen[name]) if on_text else None,
            )
            layer.weight.data.copy_(numbers)


def measure(source: Source, texts: torch.Tensor | None = None) -> tuple[float, torch.Tensor]:
    """Return (loss of a token in nats, on which texts): the model's own, of before."""
    if texts is None:
        texts = write_text(source.model, "measure", source.first)
    return loss(source.model, texts), texts


def copy_beside(source: Source, out: Path) -> None:
    """Copy the tokenizer and the like, everything but config and weights."""
    kinds = ("*.json", "*.txt", "*.model", "*.jinja")
    for path in {path for kind in kinds for path in source.folder.glob(kind)}:
        if path.name != "config.json" and not path.name.endswith(".index.json"):
            (out / path.name).write_bytes(path.read_bytes())


def _part(changed: torch.Tensor, weight: torch.Tensor, seen: torch.Tensor) -> float:
    """Return the root of mean squares of the outputs' error, as part of that of the outputs."""

    def squares(matrix: torch.Tensor) -> float:
        return float(((matrix @ seen) * matrix).sum())

    return (squares(changed) / max(squares(weight), 1e-30)) ** 0.5
