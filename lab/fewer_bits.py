"""Round one layer to codes of 8 and 4 bits, and decode with all layers in 4 (a chapter)."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from engine.models.checkpoint import Checkpoint
from engine.models.errors import ModelError
from engine.models.formats.find import quantized_by
from engine.models.registry import NATIVE
from engine.quantize.packing import PACKINGS
from engine.quantize.weight_rounding import Grid, Rounded, round_to_nearest
from engine.rounding import ceil_div
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars
from lab.spread import compared
from lab.workbench import Job, Run, Workbench

BITS = (8, 4)
GROUPS = (128, 64, 32)
SHOWN = 6  # weights of the layer
SCALE = 2  # bytes of a group's scale
_MATRIX = re.compile(r"\.layers\.(\d+)\..*\.weight$")


class _Layer(NamedTuple):
    """Hold the layer that is shown, and how the model's layers are cut into groups."""

    name: str
    weight: torch.Tensor  # [N, K], in the checkpoint's dtype
    group: int
    saved: int  # bytes less that a step reads when all layers are in 4 bits


def _open(bench: Workbench) -> Checkpoint:
    architecture = (getattr(bench.description, "architectures", None) or ["?"])[0]
    if architecture not in NATIVE:
        raise CannotShow(f"only {', '.join(NATIVE)} can be served quantized, not {architecture}")
    try:
        said = getattr(bench.description, "quantization_config", None)
        if (method := quantized_by(bench.folder, said)) is not None:
            raise CannotShow(f"this model is quantized already ({method})")
        return Checkpoint.open(bench.folder)
    except ModelError as error:
        raise CannotShow(str(error)) from None


def _is_layer(name: str, tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and _MATRIX.search(name) is not None


def _layer(bench: Workbench) -> _Layer:
    """Find the largest matrix of the first block, the last of those that are equal."""
    found, widths, saved = ("", torch.empty(0)), set(), 0.0
    for name, tensor in _open(bench).tensors():
        if _is_layer(name, tensor):
            widths.add(tensor.shape[1])
            saved += tensor.numel() * bench.dtype.itemsize
            if ".layers.0." in name and tensor.numel() >= found[1].numel():
                found = name, tensor
    fitting = [group for group in GROUPS if all(width % group == 0 for width in widths)]
    if not fitting or not found[0]:
        raise CannotShow(f"rows of {sorted(widths)} inputs are no whole groups of {GROUPS[-1]}")
    kept = (4 / 8 + SCALE / fitting[0]) / bench.dtype.itemsize
    return _Layer(*found, fitting[0], int(saved * (1 - kept)))


def _bytes(layer: _Layer, bits: int) -> int:
    count = layer.weight.numel()
    return count * bits // 8 + SCALE * count // layer.group


def _expected_greatest(count: int) -> float:
    """Return the mean of the greatest magnitude of `count` normal numbers of variance 1.

    It is the integral of the probability that one of them exceeds x.
    """
    step = 1 / 64
    return sum(step * (1 - math.erf(i * step / math.sqrt(2)) ** count) for i in range(8 * 64))


def _expected_error(group: int, bits: int) -> float:
    return _expected_greatest(group) / 2 ** (bits - 1) / math.sqrt(12)


def _expected_step(bench: Workbench, before: float, saved: int) -> tuple[float, str]:
    """Return the seconds of a step that reads `saved` bytes less, and why.

    A small model lies in the processor's caches, which are faster than memory: there a step can't
    save more than the bytes' share of all weights, whatever memory would take for them.
    """
    whole = bench.loaded.num_bytes
    by_memory = before - saved / bench.limits.read_gb_s / 1e9
    by_share = before * (1 - saved / whole)
    if by_memory >= by_share:
        speed = quantity(bench.limits.read_gb_s, "GB/s")
        return by_memory, f"a step reads {quantity(saved, 'B')} less, at {speed}"
    return by_share, (
        f"a step reads {quantity(saved, 'B')} of {quantity(whole, 'B')} less, and so much of its"
        " time is saved at most: where the weights come from caches, and codes cost nothing"
    )


def _tokens(bench: Workbench) -> int:
    return 16 if bench.quick else 48


def predict(bench: Workbench) -> list[Expectation]:
    layer = _layer(bench)
    rows, inputs = layer.weight.shape
    before = bench.step_cost.decode(1)
    faster, because = _expected_step(bench, before, layer.saved)
    greatest = _expected_greatest(layer.group)
    was = layer.weight.numel() * bench.dtype.itemsize
    expectations = []
    for bits in BITS:
        expectations += [
            Expectation(
                f"bytes-{bits}", f"{layer.name} in {bits} bits", _bytes(layer, bits), "B",
                f"{rows:,} × {inputs:,} codes, and a scale of {SCALE} bytes for every"
                f" {layer.group}; it was {quantity(was, 'B')}",
            ),
            Expectation(
                f"error-{bits}", f"error of a weight in {bits} bits",
                _expected_error(layer.group, bits), "share",
                f"normal numbers: the greatest of {layer.group} is {greatest:.2f} times a usual"
                f" one; steps of 1/{2 ** (bits - 1)} of it miss by 1/√12 of a step",
            ),
        ]  # fmt: skip
    return [
        *expectations,
        Expectation(
            "plain", "one request: as it is", 1 / before, "tokens/s",
            f"a step takes {quantity(before, 's')}, as measured when the lab began",
        ),
        Expectation(
            "quantized", "one request: all layers in 4 bits", 1 / faster, "tokens/s", because
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    layer = _layer(bench)
    weight = layer.weight.float()
    outcome = Outcome()
    was = layer.weight.numel() * bench.dtype.itemsize
    bars = [Bar(f"{8 * bench.dtype.itemsize} bits", [(was, 0)])]
    outcome.findings.append(f"the first weights of {layer.name}: {_numbers(weight[0])}")
    for number, bits in enumerate(BITS, 1):
        rounded = round_to_nearest(weight, Grid(bits, layer.group, symmetric=True))
        numbers = rounded.numbers()
        codes = rounded.codes.numel() * bits // 8
        outcome.measured[f"bytes-{bits}"] = codes + rounded.scales.nbytes
        outcome.measured[f"error-{bits}"] = float((numbers - weight).norm() / weight.norm())
        outcome.findings.append(_after(bits, rounded, numbers))
        parts = [(codes, number), (rounded.scales.nbytes, 3)]
        bars.append(Bar(f"{bits} bits", parts))
    outcome.drawings.append(Bars(f"What {layer.name} takes: codes, and scales", "B", bars))
    with tempfile.TemporaryDirectory() as folder:
        _make(bench, layer.group, Path(folder))
        _race(bench, Path(folder), outcome)
    return outcome


def _numbers(row: torch.Tensor) -> str:
    # + 0.0, because a code in the middle times a negative scale is −0
    return " ".join(f"{value + 0.0:.4f}".replace("-", "−") for value in row[:SHOWN].tolist())


def _after(bits: int, rounded: Rounded, numbers: torch.Tensor) -> str:
    codes = " ".join(map(str, rounded.codes[0, :SHOWN].tolist()))
    scale = f"{float(rounded.scales[0, 0]):.5f}".replace("-", "−")
    return (
        f"in {bits} bits: codes {codes}, less {int(rounded.zeros[0, 0])}, times {scale} ="
        f" {_numbers(numbers[0])}"
    )


def _make(bench: Workbench, group: int, folder: Path) -> None:
    """Write the model into a folder with all layers of its blocks in 4 bits, as GPTQ stores them.

    Each weight is rounded to the nearest code.
    """
    grid, packing = Grid(4, group, symmetric=True), PACKINGS["gptq"]
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _open(bench).tensors():
        if _is_layer(name, tensor):
            rounded = round_to_nearest(tensor, grid)
            for end, part in packing.store(rounded, grid).items():
                tensors[name.removesuffix(".weight") + end] = part.contiguous()
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((bench.folder / "config.json").read_text())
    config["quantization_config"] = packing.config(grid, [])
    (folder / "config.json").write_text(json.dumps(config))
    for path in bench.folder.glob("generation_config.json"):
        shutil.copy(path, folder)


def _race(bench: Workbench, folder: Path, outcome: Outcome) -> None:
    """Decode one request with both models in turns, and compare speed and tokens."""
    output = min(_tokens(bench), bench.kv.max_model_len // 2)
    prompt = bench.prompt(output)
    blocks = ceil_div(len(prompt) + output, bench.kv.block_size) + 1
    other = bench.beside(folder, blocks)
    ways = {
        "plain": lambda: bench.run([[Job("bits", prompt, output)]]),
        "quantized": lambda: other.run([[Job("bits", prompt, output)]]),
    }
    for way in ways.values():
        way()
    tries = bench.tries(ways)
    for name, runs in tries.items():
        outcome.tries[name] = [1 / _step_seconds(run) for run in runs]
        outcome.measured[name] = statistics.median(outcome.tries[name])
    plain, quantized = (runs[0].tokens["bits"] for runs in tries.values())
    same = next((i for i, pair in enumerate(zip(plain, quantized)) if pair[0] != pair[1]), output)
    seconds = [[_step_seconds(run) for run in runs] for runs in tries.values()]
    outcome.findings += [
        compared("a step as it is", seconds[0], "in 4 bits", seconds[1]),
        f"all weights: {quantity(bench.loaded.num_bytes, 'B')} as they are,"
        f" {quantity(other.loaded.num_bytes, 'B')} with the layers in 4 bits",
        f"{_first_difference(same, output)}: every weight became the nearest code; GPTQ and AWQ"
        " choose codes by what they do to outputs",
    ]
    outcome.drawings.append(
        Bars(
            "Tokens a second, one request",
            "tokens/s",
            [
                Bar(name, [(outcome.measured[name], number)], spread=_ends(outcome.tries[name]))
                for number, name in enumerate(ways)
            ],
        )
    )  # fmt: skip


def _first_difference(same: int, output: int) -> str:
    if same == output:
        return f"all {output} greedy tokens are those of the plain model"
    return f"of {output} greedy tokens, number {same + 1} is the first that the plain model has not"


def _ends(tries: list[float]) -> tuple[float, float]:
    return min(tries), max(tries)


def _step_seconds(run: Run) -> float:
    """Return the median time of a step that decodes."""
    return statistics.median(step.finished.total_us for step in run.steps[1:]) / 1e6


CHAPTER = Chapter(
    "fewer-bits",
    "Fewer bits: a layer in codes of 8 and 4",
    "A step of one request waits for the weights, so weights of a quarter of the bytes come in a"
    " quarter of the time. Each group of weights shares a scale, and each weight becomes the"
    " nearest of 256 or 16 multiples of it. What that costs is an error, which follows from the"
    " greatest weight of a group and the number of steps.",
    predict,
    run,
    "engine/kernels/quantized_weight.py",
    "what a quantized weight is: one formula, which all formats are read into",
)
