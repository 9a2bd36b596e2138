"""List the kernels for quantized weights in the configurations that formats of checkpoints need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.kernels.triton import expand, skinny_quantized, tiled_quantized
from engine.kernels.triton.code_words import CodeKind, format_constants
from engine.kernels.triton.variant import Variant


class Stored(NamedTuple):
    """State how a format stores weights. group: None: one for each row."""

    bits: int
    kind: CodeKind
    group: int | None
    zero: int = 0
    zeros: bool = False
    offsets: bool = False
    tables: bool = False
    scales: str = "fp16"
    factor: bool = False


FORMATS = {
    "q4_0": Stored(4, CodeKind.INTEGER, 32, 8),
    "awq": Stored(4, CodeKind.INTEGER, 128, zeros=True),
    "q4_1": Stored(4, CodeKind.INTEGER, 32, offsets=True),
    "nf4": Stored(4, CodeKind.TABLE, 64, scales="fp32"),
    "squeezellm": Stored(4, CodeKind.TABLE, None, tables=True, scales="bf16"),
    "q8_0": Stored(8, CodeKind.INTEGER, 32, 128),
    "q6_k": Stored(8, CodeKind.INTEGER, 16, 32, scales="fp32"),
    "gptq of 8 bits": Stored(8, CodeKind.INTEGER, 128, zeros=True),
    "fp8": Stored(8, CodeKind.FLOAT8, 128, scales="fp32"),
    "bitsandbytes int8": Stored(8, CodeKind.INTEGER, None, 128, scales="fp32", factor=True),
}
INPUTS = 4096
MORE_INPUTS = (576, 11008)
"""K of a small model, and one that no tile divides."""


def quantized_variants() -> Iterator[Variant]:
    """List all variants for quantized weights."""
    for name in FORMATS:
        for rows in (1, skinny_quantized.MAX_ROWS):
            yield _skinny(name, rows)
        yield _tiled(name, 16)
        yield _expand(name, ids=False)
    for inputs in MORE_INPUTS:
        yield _skinny("q4_0", 2, inputs)
    for dtype in ("fp16", "fp32"):
        yield _skinny("awq", 1, dtype=dtype)
    yield _skinny("q8_0", 1, out="fp32")  # a head's
    for rows in (32, tiled_quantized.MOST_ROWS):
        yield _tiled("awq", rows)
    yield _tiled("q4_0", 16, MORE_INPUTS[0])
    yield _tiled("awq", 16, dtype="fp16")
    yield _expand("q8_0", ids=True)


def _format(name: str, inputs: int) -> dict[str, int]:
    stored = FORMATS[name]
    return format_constants(
        inputs,
        stored.group or inputs,
        *stored[:2],
        stored.zero,
        stored.zeros,
        stored.offsets,
        stored.tables,
        stored.factor,
    )


def _types(name: str, dtype: str, out: str) -> dict[str, str]:
    """Return the types of what all kernels take."""
    scales = f"*{FORMATS[name].scales}"
    return {
        "words_ptr": "*i32",
        **dict.fromkeys(("scales_ptr", "offsets_ptr"), scales),
        "zeros_ptr": "*i16",
        "table_ptr": "*fp32",
        **dict.fromkeys(("x_ptr", "bias_ptr"), f"*{dtype}"),
        "out_ptr": f"*{out}",
        **dict.fromkeys(("rows", "N", "out_stride"), "i32"),
        "factor": "fp32",
    }


def _skinny(
    name: str, rows: int, inputs: int = INPUTS, dtype: str = "bf16", out: str | None = None
) -> Variant:
    stored = _format(name, inputs)
    cut = skinny_quantized.tile(rows, inputs * stored["BITS"] // 32)
    into = f" to {out}" if out else ""
    return Variant(
        name=f"linear {name} {dtype}{into} rows {rows} inputs {inputs}",
        kernel=skinny_quantized.skinny_quantized_kernel,
        types=_types(name, dtype, out or dtype),
        constants={**stored, "BIAS": 0, **cut},
        num_warps=skinny_quantized.warps(cut),
        num_stages=1,
    )


def _tiled(name: str, rows: int, inputs: int = INPUTS, dtype: str = "bf16") -> Variant:
    return Variant(
        name=f"linear {name} {dtype} up to {rows} rows inputs {inputs}",
        kernel=tiled_quantized.tiled_quantized_kernel,
        types=_types(name, dtype, dtype),
        constants={**_format(name, inputs), "BIAS": 0, **tiled_quantized.tile(rows)},
        num_warps=tiled_quantized.NUM_WARPS,
        num_stages=tiled_quantized.NUM_STAGES,
        has_dot=True,
        tensor_cores=True,
    )


def _expand(name: str, ids: bool) -> Variant:
    types = _types(name, "bf16", "fp32" if ids else "bf16")
    for absent in ("x_ptr", "bias_ptr", "rows", "out_stride"):
        del types[absent]
    return Variant(
        name=f"expand {name}{' ids' if ids else ''}",
        kernel=expand.expand_kernel,
        types={**types, "ids_ptr": "*i64", "first": "i32"},
        constants={**_format(name, INPUTS), "IDS": int(ids), "BLOCK_W": expand.PIECE},
        num_warps=expand.NUM_WARPS,
        num_stages=1,
    )
