"""Write a quantized checkpoint as the command asks for it, and report what that did."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.models.checkpoint import Checkpoint
from engine.models.errors import ModelError
from engine.quantize.gguf_file import BLOCK, TYPES, GGUFFile
from engine.quantize.make import Made, Source, copy_beside, measure, quantize
from engine.quantize.packing import PACKINGS
from engine.quantize.weight_rounding import Grid, Rounded

LAST_WORD = (
    "Tools that calibrate on real text do better: auto-round and llm-compressor for GPTQ's and\n"
    "compressed-tensors' layout, AutoAWQ for AWQ's scaling, llama.cpp's imatrix for GGUF."
)


def write_checkpoint(arguments: argparse.Namespace, out: Path) -> str:
    """Write the model's quantized checkpoint into a folder; return a report of it.

    arguments: the command's, which were checked. Raises `ModelError` where the model can't be
    quantized so.
    """
    source = Source(arguments.model, arguments.head)
    out.mkdir(parents=True, exist_ok=True)
    write = _gguf if arguments.format in TYPES else _safetensors
    make = write(source, arguments, out)
    if arguments.weights_only:
        return _report(make(), None, source, out)
    before, texts = measure(source)
    made = make()
    return _report(made, (before, measure(source, texts)[0]), source, out)


def _safetensors(
    source: Source, arguments: argparse.Namespace, out: Path
) -> Callable[[], list[Made]]:
    """Check what is asked for; return what makes the checkpoint. Raises `ModelError`."""
    packing = PACKINGS[arguments.format]
    bits = arguments.bits or packing.bits[0]
    if packing.whole_rows and arguments.group_size:
        raise ModelError(f"{arguments.format} has one scale a row: --group-size can't be given.")
    group = arguments.group_size or source.group(packing.whole_rows)
    widths = {layer.in_features for layer in source.layers.values()}
    if group and any(width % group or group % 8 for width in widths):
        raise ModelError(f"rows of {sorted(widths)} inputs are no whole groups of {group}.")
    in_a_word = 32 // bits if packing.along_outputs else 1
    for name, layer in source.layers.items():
        if layer.out_features % in_a_word:
            raise ModelError(
                f"{arguments.format} packs {in_a_word} outputs in a word, which the"
                f" {layer.out_features} of {name} don't fill."
            )
    tensors: dict[str, torch.Tensor] = {}

    def take(layer: str, rounded: Rounded, grid: Grid) -> None:
        for end, tensor in packing.store(rounded, grid).items():
            tensors[layer + end] = tensor.contiguous()

    def grid_of(inputs: int) -> Grid:
        return Grid(bits, group or inputs, packing.symmetric)

    def make() -> list[Made]:
        made = _shown(source, grid_of, arguments, take)
        tensors.update(source.rest())
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        said = packing.config(grid_of(min(widths)), source.kept)
        config = {**source.config, "quantization_config": said}
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        copy_beside(source, out)
        return made

    return make


def _gguf(source: Source, arguments: argparse.Namespace, out: Path) -> Callable[[], list[Made]]:
    """Check what is asked for; return what makes the file. Raises `ModelError`."""
    kind, file = TYPES[arguments.format], GGUFFile(source.folder, source.config)
    if arguments.head and source.tied and kind.bits == 8:
        raise ModelError(
            f"{arguments.format} has the table of embeddings and head in 8 bits anyway: leave"
            " --head out."
        )
    widths = {layer.in_features for layer in source.layers.values()}
    if any(width % BLOCK for width in widths) or arguments.bits or arguments.group_size:
        raise ModelError(
            f"{arguments.format} has blocks of {BLOCK} inputs and {kind.bits} bits, rows here have"
            f" {sorted(widths)}: --bits and --group-size can't be given."
        )

    def take(layer: str, rounded: Rounded, grid: Grid) -> None:
        file.add(f"{layer}.weight", rounded, kind)

    def make() -> list[Made]:
        grid = Grid(kind.bits, BLOCK, symmetric=True)
        made = _shown(source, lambda inputs: grid, arguments, take)
        for name, tensor in source.rest():
            file.add_plain(name, tensor)
        file.write(out / f"{source.folder.name}-{arguments.format}.gguf")
        return made

    return make


def _shown(
    source: Source,
    grid_of: Callable[[int], Grid],
    arguments: argparse.Namespace,
    take: Callable[[str, Rounded, Grid], None],
) -> list[Made]:
    """Quantize, and print how far it is."""
    made: list[Made] = []
    on_text = not arguments.weights_only
    for one in quantize(source, grid_of, take, feedback=arguments.feedback, on_text=on_text):
        made.append(one)
        print(f"\r{len(made)} of {len(source.layers)} matrices", end="", file=sys.stderr)
    print(file=sys.stderr)
    return made


def _report(made: list[Made], losses: tuple[float, float] | None, source: Source, out: Path) -> str:
    """Say what quantizing did. losses: before and after, where they were measured."""
    kinds: dict[str, list[Made]] = {}
    for one in made:
        kinds.setdefault(one.layer.rpartition(".")[2], []).append(one)
    on_text = losses is not None
    outputs = f"{'error of outputs':>18}" if on_text else ""
    lines = [f"{'matrix':<12}{'number':>7}{'error of weights':>18}{outputs}"]
    for kind, some in kinds.items():
        weights = sum(one.error for one in some) / len(some)
        errors = [one.output_error for one in some if one.output_error is not None]
        outputs = f"{sum(errors) / len(errors):>18.2%}" if on_text else ""
        lines.append(f"{kind:<12}{len(some):>7}{weights:>18.2%}{outputs}")
    files = [*out.glob("*.safetensors"), *out.glob("*.gguf")]
    size = sum(file.stat().st_size for file in files)
    was = Checkpoint.open(source.folder).num_bytes
    lines += ["", f"bytes of the weights        {was:>14,} → {size:,}"]
    if losses is not None:
        lines.append(
            f"negative log-likelihood     {losses[0]:>14.4f} → {losses[1]:.4f} nats a token, on"
            " text that the model wrote itself"
        )
    lines += [
        "",
        LAST_WORD,
        "",
        f"Serve it: glasshouse serve --model {files[0] if files[0].suffix == '.gguf' else out}",
    ]
    return "\n".join(lines)
