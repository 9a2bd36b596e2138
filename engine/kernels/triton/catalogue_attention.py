"""List every configuration of the attention kernels that can be launched: see `catalogue.py`."""

from __future__ import annotations

from collections.abc import Iterator

from engine.kernels.fp8_cache import LARGEST
from engine.kernels.triton import attention, rotary
from engine.kernels.triton.variant import DTYPES, FP8, Variant

HEAD_DIMS = (64, 80, 96, 128, 256)
PAGE = 16


def attention_variants() -> Iterator[Variant]:
    """List attention over pages, and what fills the pages."""
    for dtype in DTYPES:
        head_dims = (128,) if dtype == "fp16" else HEAD_DIMS
        for kind in ("decode", "split", "prefill"):
            for head_dim in head_dims:
                yield _attention(kind, dtype, head_dim, group=4)
            if dtype != "fp16":
                yield _attention(kind, dtype, 128, group=1)
                yield _attention(kind, dtype, 128, 8, attention.Extras(True, True, True))
        yield _attention("decode", dtype, 64, group=32)  # more rows than a tile's least
        for kind in ("decode", "split", "prefill"):
            for head_dim in (64, 128) if dtype == "bf16" else head_dims[:1]:
                yield _attention(kind, dtype, head_dim, group=4, mixed=True)
        for sums in (False, True) if dtype != "fp32" else (False,):
            for head_dim in head_dims:
                yield _rotate(dtype, head_dim, rotated=True, normed=False, sums=sums)
            yield _rotate(dtype, 128, rotated=True, normed=True, sums=sums)
        yield _rotate(dtype, 64, rotated=False, normed=False)
        yield _write_kv(dtype)
    for pages in FP8:
        for kind in ("decode", "split", "prefill"):
            for head_dim in HEAD_DIMS if pages == "fp8e4nv" else (128,):
                yield _attention(kind, "bf16", head_dim, 4, pages=pages)
            yield _attention(kind, "fp32", 64, 4, pages=pages)
            yield _attention(kind, "bf16", 128, 4, pages=pages, mixed=True)
        yield _attention("decode", "fp16", 128, 4, pages=pages)
        for sums in (False, True):
            yield _rotate("bf16", 128, rotated=True, normed=True, pages=pages, sums=sums)
        yield _rotate("bf16", 64, rotated=False, normed=False, pages=pages)
        yield _write_kv("bf16", pages)
    for head_dim in HEAD_DIMS:
        for splits in (2, attention.MAX_SPLITS):
            yield _merge(head_dim, splits)


def _attention(
    kind: str,
    dtype: str,
    head_dim: int,
    group: int,
    extras: attention.Extras = attention.Extras(),  # noqa: B008 (immutable)
    pages: str = "",
    mixed: bool = False,
) -> Variant:
    """Make a variant.

    pages: the cache's dtype, if another. mixed: of a captured step with prompts.
    """
    decode = kind != "prefill"
    stored = (DTYPES | FP8)[pages or dtype]
    tile = attention.tile_for(DTYPES[dtype], head_dim, group, decode, stored)
    more = " window cap sinks" if extras.window else " mixed" if mixed else ""
    split = kind == "split"
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
        constants=attention.constants(tile, head_dim, group, PAGE, decode, split, extras, mixed),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        has_dot=True,
        tensor_cores=dtype != "fp32",
        since=_since(pages),
    )


def _merge(head_dim: int, splits: int) -> Variant:
    return Variant(
        name=f"merge d{head_dim} splits {splits}",
        kernel=attention.merge_kernel,
        types={"part_ptr": "*fp32", "stats_ptr": "*fp32", "out_ptr": "*bf16"},
        constants=attention.merge_constants(head_dim, splits),
        num_warps=attention.MERGE_WARPS,
        num_stages=1,
    )


def _rotate(
    dtype: str, head_dim: int, rotated: bool, normed: bool, pages: str = "", sums: bool = False
) -> Variant:
    """Make a variant. sums: the projection is in fp32, as its product adds it up."""
    floats = ["qkv_ptr", "q_norm_ptr", "k_norm_ptr", "q_ptr"]
    extras = (" rotate" if rotated else "") + (" norm" if normed else "") + " sums" * sums
    return Variant(
        name=f"write{extras} {_named(dtype, pages)} d{head_dim}",
        kernel=rotary.rotate_and_write_kernel,
        types={
            **dict.fromkeys(floats, f"*{dtype}"),
            **dict.fromkeys(("k_ptr", "v_ptr"), f"*{pages or dtype}"),
            **dict.fromkeys(("cos_ptr", "sin_ptr", *["qkv_ptr"] * sums), "*fp32"),
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


def _write_kv(dtype: str, pages: str = "") -> Variant:
    return Variant(
        name=f"write_kv {_named(dtype, pages)}",
        kernel=rotary.write_kv_kernel,
        types={
            **dict.fromkeys(("k_ptr", "v_ptr"), f"*{dtype}"),
            **dict.fromkeys(("k_pages_ptr", "v_pages_ptr"), f"*{pages or dtype}"),
            "slots_ptr": "*i64",
            **dict.fromkeys(("k_stride", "v_stride", "width"), "i32"),
        },
        constants={
            "BLOCK": rotary.PIECE,
            "LARGEST": LARGEST.get((DTYPES | FP8)[pages or dtype], 0),
        },
        num_warps=rotary.WRITE_WARPS,
        num_stages=1,
        since=_since(pages),
    )


def _named(dtype: str, pages: str) -> str:
    return f"{dtype} on {pages}" if pages else dtype


def _since(pages: str) -> int:
    return 89 if pages == "fp8e4nv" else 80
