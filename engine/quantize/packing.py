"""Write rounded matrices as each format stores them, and what its config says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from engine.models.formats.awq import ORDER
from engine.models.formats.packed import nibbles
from engine.models.formats.targets import HEAD_LAYER
from engine.quantize.format_names import SAFETENSORS
from engine.quantize.weight_rounding import Grid, Rounded

Stored = dict[str, torch.Tensor]
"""The tensors of a matrix, by what follows the layer's name."""


class Packing(NamedTuple):
    """Describe a format that is written in safetensors."""

    says: str
    bits: tuple[int, ...]
    symmetric: bool
    store: Callable[[Rounded, Grid], Stored]
    config: Callable[[Grid, list[str]], dict[str, Any]]  # with the names of layers left as they are
    whole_rows: bool = False  # one scale a row
    along_outputs: bool = False  # something is packed so, which must fill words


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes along rows, lowest bits first. uint8 [R, C] → int32 [R, C · bits / 32]."""
    data = nibbles(codes) if bits == 4 else codes
    return data.flatten().view(torch.int32).view(len(data), -1)


def _gptq(rounded: Rounded, grid: Grid) -> Stored:
    inputs = rounded.codes.shape[1]
    return {
        ".qweight": words(rounded.codes, grid.bits).t(),
        ".qzeros": words((rounded.zeros.t() - 1).to(torch.uint8), grid.bits),  # version 1
        ".scales": rounded.scales.t(),
        ".g_idx": torch.arange(inputs, dtype=torch.int32) // grid.group,
    }


def _gptq_config(grid: Grid, kept: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "lm_head": not kept,  # what vLLM and GPTQModel go by; the engine reads the tensors' names
    }


def _awq(rounded: Rounded, grid: Grid) -> Stored:
    place = torch.tensor(ORDER).argsort()  # which output lies in nibble i

    def along_outputs(codes: torch.Tensor) -> torch.Tensor:
        mixed = codes.t().reshape(codes.shape[1], -1, 8)[:, :, place]
        return words(mixed.flatten(1), grid.bits)

    return {
        ".qweight": along_outputs(rounded.codes),
        ".qzeros": along_outputs(rounded.zeros.to(torch.uint8)),
        ".scales": rounded.scales.t(),
    }


def _awq_config(grid: Grid, kept: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": grid.bits,
        "group_size": grid.group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": kept,
        "lm_head": not kept,  # what vLLM goes by
    }


def _packed(rounded: Rounded, grid: Grid) -> Stored:
    return {
        ".weight_packed": words(rounded.codes, grid.bits),
        ".weight_scale": rounded.scales,
        ".weight_shape": torch.tensor(rounded.codes.shape),
    }


def _integers(rounded: Rounded, grid: Grid) -> Stored:
    weight = (rounded.codes ^ grid.middle).view(torch.int8)
    return {".weight": weight, ".weight_scale": rounded.scales}


def _compressed(form: str, strategy: str) -> Callable[[Grid, list[str]], dict[str, Any]]:
    def config(grid: Grid, kept: list[str]) -> dict[str, Any]:
        weights = {
            "num_bits": grid.bits,
            "type": "int",
            "symmetric": True,
            "strategy": strategy,
            "group_size": grid.group if strategy == "group" else None,
        }
        # of "Linear" the head is one to compressed-tensors itself, but not to vLLM
        targets = ["Linear"] if kept else [f"re:.*{HEAD_LAYER}$", "Linear"]
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": targets, "weights": weights, "format": form}},
            "ignore": kept,
        }

    return config


PACKINGS = {
    "gptq": Packing(
        "GPTQ's layout", SAFETENSORS["gptq"], True, _gptq, _gptq_config, along_outputs=True
    ),
    "awq-like": Packing(
        "AWQ's layout (without its scaling by activations)",
        SAFETENSORS["awq-like"],
        False,
        _awq,
        _awq_config,
        along_outputs=True,
    ),
    "w4a16": Packing(
        "compressed-tensors, pack-quantized",
        SAFETENSORS["w4a16"],
        True,
        _packed,
        _compressed("pack-quantized", "group"),
    ),
    "int8": Packing(
        "compressed-tensors, int-quantized",
        SAFETENSORS["int8"],
        True,
        _integers,
        _compressed("int-quantized", "channel"),
        whole_rows=True,
    ),
}
"""By what --format calls them."""
