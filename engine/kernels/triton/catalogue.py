"""List every kernel in every configuration that the engine can launch, for the compiler.

What shapes the machine code is enumerated: dtypes, head sizes, tiles, which parts are on. What is
only a number at run time (tokens, widths, strides) is not. Where a choice only replaces one
constant by another (page size; group, as long as it fits the same tile) its usual value stands for
all. bf16 stands for fp16 in all but a few, because the two differ only in the names of their
instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.kernels.triton import (
    activation,
    angles,
    copy_blocks,
    draw,
    draw_border,
    embed,
    greatest,
    host_exchange,
    norm,
    skinny,
    take_drawn,
    tiled,
    token_mask,
)
from engine.kernels.triton.catalogue_attention import attention_variants
from engine.kernels.triton.catalogue_quantized import quantized_variants
from engine.kernels.triton.variant import DTYPES, Variant
from engine.rounding import ceil_div

WIDTHS = (768, 4096, 8192)  # of a norm's row: the number of warps changes with it
SHAPES = ((768, 3072), (2048, 2048), (2048, 16384), (4096, 4096), (8192, 2048), (11008, 4096))
"""(K, lines) of a product of few rows: one for each tile that is chosen, and one that K isn't a
multiple of."""
FORMS = {
    "linear": skinny.Form(),
    "linear bias relu": skinny.Form(bias=True, relu=True),
    "linear add": skinny.Form(add=True),
    "norm linear": skinny.Form(norm=True),
    "norm gated": skinny.Form(norm=True, gated=True),
}


def variants() -> Iterator[Variant]:
    """List all variants."""
    yield from attention_variants()
    yield from quantized_variants()
    for dtype in DTYPES:
        yield _silu_and_mul(dtype)
        for add in (False, True):
            yield _embed(dtype, add)
        yield _greatest_of_pieces(dtype)
        for width in WIDTHS if dtype == "bf16" else WIDTHS[1:2]:
            for center in (False, True):
                for add in (False, True):
                    yield _norm(dtype, width, center, add)
                if dtype != "fp32":
                    yield _norm(dtype, width, center, add=True, sums=True)
        for shape in SHAPES if dtype == "bf16" else SHAPES[1:2]:
            for rows in (1, 4) if shape != SHAPES[2] else (1, 2, 4):
                for form in FORMS:
                    wide = "fp32" if form == "norm linear" else None  # attention reads sums
                    yield _skinny(dtype, rows, *shape, form, FORMS[form], wide)
    for rows in (1, 4):  # the two differ in the store
        yield _skinny("bf16", rows, *SHAPES[2], "logits", skinny.Form(), "fp32")
    yield from _tiled_products()
    for vocab in (256, 128256):
        yield _draw("draw weights", draw.weights_kernel, vocab, draw.NUM_WARPS)
        yield _draw("draw", draw.draw_kernel, vocab, draw.NUM_WARPS)
        yield _draw("draw top_p", draw_border.top_p_kernel, vocab, draw_border.NUM_WARPS)
        for search, name in enumerate(("top_k", "top_p")):
            kernel = draw_border.narrow_kernel
            yield _draw(f"draw narrow {name}", kernel, vocab, draw_border.NUM_WARPS, search)
    for vocab in (256, 32000):
        yield _greatest_of_rows(vocab)
    yield _draw("draw exponentials", draw.exponentials_kernel, 128256, draw.NUM_WARPS)
    yield _draw("draw top_k", draw_border.top_k_kernel, 128256, draw_border.NUM_WARPS)
    yield _angles()
    yield _copy()
    yield _mask_logits()
    yield _take_drawn()
    yield from _exchange()


def _silu_and_mul(dtype: str) -> Variant:
    return Variant(
        name=f"silu_and_mul {dtype}",
        kernel=activation.silu_and_mul_kernel,
        types={**dict.fromkeys(("x_ptr", "out_ptr"), f"*{dtype}"), "width": "i32"},
        constants={"BLOCK": activation.PIECE},
        num_warps=activation.NUM_WARPS,
        num_stages=1,
    )


def _embed(dtype: str, add: bool) -> Variant:
    return Variant(
        name=f"embed{' and positions' if add else ''} {dtype}",
        kernel=embed.embed_kernel,
        types={
            **dict.fromkeys(("ids_ptr", "positions_ptr"), "*i64"),
            **dict.fromkeys(("table_ptr", "places_ptr"), f"*{dtype}"),
            "out_ptr": "*fp32",
            **dict.fromkeys(("entries", "width"), "i32"),
        },
        constants={"BLOCK": embed.PIECE, "ADD": int(add)},
        num_warps=embed.NUM_WARPS,
        num_stages=1,
    )


def _exchange() -> Iterator[Variant]:
    """List what a decode step takes from the host and returns to it."""
    for drawn in (False, True):
        yield Variant(
            name=f"take_inputs{' drawn' if drawn else ''}",
            kernel=host_exchange.take_inputs_kernel,
            types={
                **dict.fromkeys(("packed_ptr", "drawn_ptr"), "*i64"),
                "staged": "i64",
                **dict.fromkeys(("rows", "stride"), "i32"),
            },
            constants={"DRAWN": int(drawn), "BLOCK": host_exchange.PIECE},
            num_warps=host_exchange.NUM_WARPS,
            num_stages=1,
        )
    yield Variant(
        name="hand_out",
        kernel=host_exchange.hand_out_kernel,
        types={"tokens_ptr": "*i64", "there": "i64", "rows": "i32"},
        constants={"BLOCK": host_exchange.PIECE},
        num_warps=host_exchange.NUM_WARPS,
        num_stages=1,
    )


def _mask_logits() -> Variant:
    return Variant(
        name="mask_logits",
        kernel=token_mask.mask_logits_kernel,
        types={
            "logits_ptr": "*fp32",
            "masks_ptr": "*i32",
            "rows_ptr": "*i64",
            **dict.fromkeys(("width", "words"), "i32"),
        },
        constants={"BLOCK": token_mask.PIECE},
        num_warps=token_mask.NUM_WARPS,
        num_stages=1,
    )


def _take_drawn() -> Variant:
    return Variant(
        name="take_drawn",
        kernel=take_drawn.take_drawn_kernel,
        types={
            **dict.fromkeys(("token_ids_ptr", "drawn_ptr", "places_ptr"), "*i64"),
            "rows": "i32",
        },
        constants={"BLOCK": take_drawn.PIECE},
        num_warps=take_drawn.NUM_WARPS,
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


def _norm(dtype: str, width: int, center: bool, add: bool, sums: bool = False) -> Variant:
    """Make a variant as the models launch it: the residual stream is in fp32.

    sums: what is added to it, too, as a product adds it up.
    """
    stream = ("residual_ptr", "total_ptr", *["x_ptr"] * sums) if add else ("x_ptr",)
    pointers = ["x_ptr", "residual_ptr", "weight_ptr", "bias_ptr", "out_ptr", "total_ptr"]
    name = ("add " if add else "") + "sums " * sums + ("layer norm" if center else "rms norm")
    constants = norm.constants(width, center, add, weight=True, bias=center)
    return Variant(
        name=f"{name} {dtype} width {width}",
        kernel=norm.norm_kernel,
        types={
            **dict.fromkeys(pointers, f"*{dtype}"),
            **dict.fromkeys(stream, "*fp32"),
            "width": "i32",
            "eps": "fp32",
        },
        constants=constants,
        num_warps=norm.warps_for(constants["BLOCK"]),
        num_stages=1,
    )


def _skinny(
    dtype: str,
    rows: int,
    inputs: int,
    lines: int,
    name: str,
    form: skinny.Form,
    out: str | None = None,
) -> Variant:
    """Make a variant of the skinny product.

    The residual stream is in fp32, all else in `dtype`. out: another dtype of the result.
    """
    stream = ("x_ptr",) * form.norm + ("residual_ptr", "out_ptr") * form.add
    constants = skinny.constants(rows, lines, inputs, form)
    pointers = ["x_ptr", "weight_ptr", "bias_ptr", "norm_ptr", "residual_ptr", "out_ptr"]
    return Variant(
        name=f"{name} {dtype} rows {rows} weight {lines} × {inputs}",
        kernel=skinny.skinny_kernel,
        types={
            **dict.fromkeys(pointers, f"*{dtype}"),
            "out_ptr": f"*{out or dtype}",
            **dict.fromkeys(stream, "*fp32"),
            **dict.fromkeys(("rows", "N"), "i32"),
            "eps": "fp32",
        },
        constants=constants,
        num_warps=skinny.warps(constants),
        num_stages=1,
    )


def _tiled_products() -> Iterator[Variant]:
    """List the batch-invariant product: each dtype and tile; of one K, no tile is a divisor."""
    for dtype in DTYPES:
        shapes = (SHAPES[3],) if dtype == "fp16" else (SHAPES[3], SHAPES[2], (576, 1536))
        for inputs, lines in shapes:
            yield _tiled(dtype, inputs, lines, dtype)
    yield _tiled("bf16", *SHAPES[2], "fp32")


def _tiled(dtype: str, inputs: int, lines: int, out: str) -> Variant:
    """Make a variant of the batch-invariant product. out: dtype of the result."""
    pointers = ("x_ptr", "weight_ptr", "bias_ptr")
    return Variant(
        name=f"tiled {dtype} to {out} weight {lines} × {inputs}",
        kernel=tiled.tiled_kernel,
        types={
            **dict.fromkeys(pointers, f"*{dtype}"),
            "out_ptr": f"*{out}",
            **dict.fromkeys(("rows", "N"), "i32"),
        },
        constants=tiled.constants(lines, inputs, DTYPES[dtype], bias=out == dtype),
        num_warps=tiled.NUM_WARPS,
        num_stages=tiled.NUM_STAGES,
        has_dot=True,
        tensor_cores=dtype != "fp32",
    )


def _draw(name: str, kernel: Any, vocab: int, num_warps: int, search: int = 0) -> Variant:
    types = {
        **dict.fromkeys(("logits_ptr", "greatest_ptr", "sums_ptr", "weights_ptr"), "*fp32"),
        **dict.fromkeys(("top_k_ptr", "words_ptr", "tokens_ptr"), "*i64"),
        **dict.fromkeys(("top_p_ptr", "min_p_ptr"), "*fp64"),
        **dict.fromkeys(("enough_ptr", "lows_ptr", "reach_ptr"), "*i32"),
        **dict.fromkeys(("vocab", "level", "before", "shift"), "i32"),
    }
    constants = draw.constants(vocab) | {"SHIFT": draw_border.SHIFTS[0], "SEARCH": search}
    names = kernel.arg_names
    return Variant(
        name=f"{name} vocabulary {vocab}",
        kernel=kernel,
        types={name: types[name] for name in names if name in types},
        constants={name: constants[name] for name in names if name in constants},
        num_warps=num_warps,
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
        constants={"BLOCK": greatest.block_for(ceil_div(vocab, greatest.PIECE))},
        num_warps=greatest.ROW_WARPS,
        num_stages=1,
    )


def _copy() -> Variant:
    pointers = ("sources_ptr", "targets_ptr", "words_ptr", "pairs_ptr")
    return Variant(
        name="copy_blocks",
        kernel=copy_blocks.copy_blocks_kernel,
        types=dict.fromkeys(pointers, "*i64"),
        constants={"BLOCK": copy_blocks.PIECE},
        num_warps=copy_blocks.NUM_WARPS,
        num_stages=1,
    )
