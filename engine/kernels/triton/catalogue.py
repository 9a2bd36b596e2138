"""Every kernel in every configuration that the engine can launch, as the compiler wants them.

What shapes the machine code is enumerated: dtypes, head sizes, tiles, which parts are on. What is
a mere number at run time (tokens, widths, strides) is not. Where a choice only swaps one constant
for another (page size; group, as long as it fits the same tile) its usual value stands for all; and
bf16 stands for fp16 in all but a few, for the two differ in the names of their instructions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from engine.kernels.fp8 import LARGEST
from engine.kernels.triton import (
    activation,
    angles,
    attention,
    blocks,
    draw,
    embed,
    greatest,
    norm,
    rotary,
    skinny,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FP8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}  # of the cache only
HEAD_DIMS = (64, 80, 96, 128, 256)
PAGE = 16
WIDTHS = (768, 4096, 8192)  # of a norm's row: the number of warps changes with it
INPUTS = (768, 2048, 11008)  # K of a product of few rows: below, of, and no multiple of its tile
FORMS = {
    "linear": skinny.Form(),
    "linear bias relu": skinny.Form(bias=True, relu=True),
    "linear add": skinny.Form(add=True),
    "norm linear": skinny.Form(norm=True),
    "norm gated": skinny.Form(norm=True, gated=True),
}


@dataclass(frozen=True)
class Variant:
    """One compilation. `types` and `constants` together name every parameter of the kernel."""

    name: str  # unique: "attention decode bf16 d128"
    kernel: Any  # what triton.jit made
    types: dict[str, str]  # of run-time parameters: "*bf16", "i32", "fp32"
    constants: dict[str, int]
    num_warps: int
    num_stages: int
    has_dot: bool = False
    since: int = 80  # compute capability that has what it needs
    tensor_cores: bool = False  # fp32 products don't use them


def variants() -> Iterator[Variant]:
    """All of them."""
    for dtype in DTYPES:
        head_dims = (128,) if dtype == "fp16" else HEAD_DIMS
        for kind in ("decode", "split", "prefill"):
            for head_dim in head_dims:
                yield _attention(kind, dtype, head_dim, group=4)
            if dtype != "fp16":
                yield _attention(kind, dtype, 128, group=1)
                yield _attention(kind, dtype, 128, 8, attention.Extras(True, True, True))
        yield _attention("decode", dtype, 64, group=32)  # more rows than a tile's least
        for head_dim in head_dims:
            yield _rotate(dtype, head_dim, rotated=True, normed=False)
        yield _rotate(dtype, 128, rotated=True, normed=True)
        yield _rotate(dtype, 64, rotated=False, normed=False)
        yield _elementwise("write_kv", dtype)
        yield _elementwise("silu_and_mul", dtype)
        for add in (False, True):
            yield _embed(dtype, add)
        yield _greatest_of_pieces(dtype)
        for width in WIDTHS if dtype == "bf16" else WIDTHS[1:2]:
            for center in (False, True):
                for add in (False, True):
                    yield _norm(dtype, width, center, add)
        for rows in (1, 2, 4) if dtype == "bf16" else (4,):
            for inputs in INPUTS if dtype == "bf16" else INPUTS[1:2]:
                for form in FORMS:
                    yield _skinny(dtype, rows, inputs, form, FORMS[form])
    for pages in FP8:
        for kind in ("decode", "split", "prefill"):
            for head_dim in HEAD_DIMS if pages == "fp8e4nv" else (128,):
                yield _attention(kind, "bf16", head_dim, 4, pages=pages)
            yield _attention(kind, "fp32", 64, 4, pages=pages)
        yield _attention("decode", "fp16", 128, 4, pages=pages)
        yield _rotate("bf16", 128, rotated=True, normed=True, pages=pages)
        yield _rotate("bf16", 64, rotated=False, normed=False, pages=pages)
        yield _elementwise("write_kv", "bf16", pages)
    for head_dim in HEAD_DIMS:
        for splits in (2, attention.MAX_SPLITS):
            yield _merge(head_dim, splits)
    for vocab in (256, 32000):
        yield _draw(vocab)
        yield _greatest_of_rows(vocab)
    yield _angles()
    yield _copy()


def _attention(
    kind: str,
    dtype: str,
    head_dim: int,
    group: int,
    extras: attention.Extras = attention.Extras(),  # noqa: B008 (immutable)
    pages: str = "",
) -> Variant:
    """pages: dtype of the cache, where it is another."""
    decode = kind != "prefill"
    stored = (DTYPES | FP8)[pages or dtype]
    tile = attention.tile_for(DTYPES[dtype], head_dim, group, decode, stored)
    more = " window cap sinks" if extras.window else ""
    return Variant(
        name=f"attention {kind} {_named(dtype, pages)} d{head_dim} group {group}{more}",
        kernel=attention.attention_kernel,
        types={
            **dict.fromkeys(("q_ptr", "out_ptr"), f"*{dtype}"),
            **dict.fromkeys(("k_ptr", "v_ptr"), f"*{pages or dtype}"),
            **dict.fromkeys(("part_ptr", "stats_ptr", "sinks_ptr"), "*fp32"),
            **dict.fromkeys(("tables_ptr", "query_start_ptr", "context_lens_ptr"), "*i32"),
            **dict.fromkeys(("scale_log2", "soft_cap"), "fp32"),
            **dict.fromkeys(("window", "first_row", "last_row"), "i32"),
            **dict.fromkeys(("q_stride", "table_width", "kv_heads"), "i32"),
        },
        constants=attention.constants(tile, head_dim, group, PAGE, decode, kind == "split", extras),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        has_dot=True,
        tensor_cores=dtype != "fp32",
        since=_since(pages),
    )


def _named(dtype: str, pages: str) -> str:
    return f"{dtype} on {pages}" if pages else dtype


def _since(pages: str) -> int:
    return 89 if pages == "fp8e4nv" else 80


def _merge(head_dim: int, splits: int) -> Variant:
    return Variant(
        name=f"merge d{head_dim} splits {splits}",
        kernel=attention.merge_kernel,
        types={"part_ptr": "*fp32", "stats_ptr": "*fp32", "out_ptr": "*bf16"},
        constants=attention.merge_constants(head_dim, splits),
        num_warps=attention.MERGE_WARPS,
        num_stages=1,
    )


def _rotate(dtype: str, head_dim: int, rotated: bool, normed: bool, pages: str = "") -> Variant:
    floats = ["qkv_ptr", "q_norm_ptr", "k_norm_ptr", "q_ptr"]
    extras = (" rotate" if rotated else "") + (" norm" if normed else "")
    return Variant(
        name=f"write{extras} {_named(dtype, pages)} d{head_dim}",
        kernel=rotary.rotate_and_write_kernel,
        types={
            **dict.fromkeys(floats, f"*{dtype}"),
            **dict.fromkeys(("k_ptr", "v_ptr"), f"*{pages or dtype}"),
            **dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32"),
            "slots_ptr": "*i64",
            **dict.fromkeys(("heads", "kv_heads"), "i32"),
            "eps": "fp32",
        },
        constants=rotary.rotate_constants(
            head_dim, rotated, normed, (DTYPES | FP8)[pages or dtype]
        ),
        num_warps=rotary.rotate_warps(head_dim),
        num_stages=1,
        since=_since(pages),
    )


def _elementwise(name: str, dtype: str, pages: str = "") -> Variant:
    pointer = f"*{dtype}"
    if name == "silu_and_mul":
        kernel, warps = activation.silu_and_mul_kernel, activation.NUM_WARPS
        types = {"x_ptr": pointer, "out_ptr": pointer, "width": "i32"}
        constants = {"BLOCK": activation.PIECE}
    else:
        kernel, warps = rotary.write_kv_kernel, rotary.WRITE_WARPS
        types = dict.fromkeys(("k_ptr", "v_ptr"), pointer)
        types |= dict.fromkeys(("k_pages_ptr", "v_pages_ptr"), f"*{pages or dtype}")
        types["slots_ptr"] = "*i64"
        types |= {"k_stride": "i32", "v_stride": "i32", "width": "i32"}
        largest = LARGEST.get((DTYPES | FP8)[pages or dtype], 0)
        constants = {"BLOCK": rotary.PIECE, "LARGEST": largest}
    name = f"{name} {_named(dtype, pages)}"
    return Variant(name, kernel, types, constants, warps, 1, since=_since(pages))


def _embed(dtype: str, add: bool) -> Variant:
    return Variant(
        name=f"embed{' and positions' if add else ''} {dtype}",
        kernel=embed.embed_kernel,
        types={
            **dict.fromkeys(("ids_ptr", "positions_ptr"), "*i64"),
            **dict.fromkeys(("table_ptr", "places_ptr", "out_ptr"), f"*{dtype}"),
            **dict.fromkeys(("entries", "width"), "i32"),
        },
        constants={"BLOCK": embed.PIECE, "ADD": int(add)},
        num_warps=embed.NUM_WARPS,
        num_stages=1,
    )


def _angles() -> Variant:
    return Variant(
        name="angles",
        kernel=angles.angles_kernel,
        types={
            "positions_ptr": "*i64",
            **dict.fromkeys(("inv_freq_ptr", "cos_ptr", "sin_ptr"), "*fp32"),
            **dict.fromkeys(("tokens", "half"), "i32"),
            "scale": "fp32",
        },
        constants={"BLOCK": angles.PIECE},
        num_warps=angles.NUM_WARPS,
        num_stages=1,
    )


def _norm(dtype: str, width: int, center: bool, add: bool) -> Variant:
    pointers = ["x_ptr", "residual_ptr", "weight_ptr", "bias_ptr", "out_ptr", "total_ptr"]
    name = ("add " if add else "") + ("layer norm" if center else "rms norm")
    constants = norm.constants(width, center, add, weight=True, bias=center)
    return Variant(
        name=f"{name} {dtype} width {width}",
        kernel=norm.norm_kernel,
        types={**dict.fromkeys(pointers, f"*{dtype}"), "width": "i32", "eps": "fp32"},
        constants=constants,
        num_warps=norm.warps_for(constants["BLOCK"]),
        num_stages=1,
    )


def _skinny(dtype: str, rows: int, inputs: int, name: str, form: skinny.Form) -> Variant:
    pointers = ["x_ptr", "weight_ptr", "bias_ptr", "norm_ptr", "residual_ptr", "out_ptr"]
    return Variant(
        name=f"{name} {dtype} rows {rows} inputs {inputs}",
        kernel=skinny.skinny_kernel,
        types={
            **dict.fromkeys(pointers, f"*{dtype}"),
            **dict.fromkeys(("rows", "N"), "i32"),
            "eps": "fp32",
        },
        constants=skinny.constants(rows, inputs, form),
        num_warps=skinny.NUM_WARPS,
        num_stages=1,
    )


def _draw(vocab: int) -> Variant:
    return Variant(
        name=f"draw vocabulary {vocab}",
        kernel=draw.draw_kernel,
        types={
            "logits_ptr": "*fp32",
            "weights_ptr": "*i32",
            "top_k_ptr": "*i64",
            "top_p_ptr": "*fp64",
            "min_p_ptr": "*fp64",
            "words_ptr": "*i64",
            "tokens_ptr": "*i64",
            "vocab": "i32",
        },
        constants={"BLOCK": draw.block_for(vocab)},
        num_warps=draw.NUM_WARPS,
        num_stages=1,
    )


def _greatest_of_pieces(dtype: str) -> Variant:
    return Variant(
        name=f"greatest of pieces {dtype}",
        kernel=greatest.greatest_of_pieces_kernel,
        types={
            "x_ptr": f"*{dtype}",
            "values_ptr": "*fp32",
            "places_ptr": "*i32",
            "width": "i32",
        },
        constants={"BLOCK": greatest.PIECE},
        num_warps=greatest.PIECE_WARPS,
        num_stages=1,
    )


def _greatest_of_rows(vocab: int) -> Variant:
    return Variant(
        name=f"greatest of rows vocabulary {vocab}",
        kernel=greatest.greatest_of_rows_kernel,
        types={
            "values_ptr": "*fp32",
            "places_ptr": "*i32",
            "out_ptr": "*i64",
            "pieces": "i32",
        },
        constants={"BLOCK": greatest.block_for(-(-vocab // greatest.PIECE))},
        num_warps=greatest.ROW_WARPS,
        num_stages=1,
    )


def _copy() -> Variant:
    pointers = ("sources_ptr", "targets_ptr", "words_ptr", "pairs_ptr")
    return Variant(
        name="copy_blocks",
        kernel=blocks.copy_blocks_kernel,
        types=dict.fromkeys(pointers, "*i64"),
        constants={"BLOCK": blocks.PIECE},
        num_warps=blocks.NUM_WARPS,
        num_stages=1,
    )
