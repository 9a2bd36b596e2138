"""Load a model, and show the arithmetic of its memory (a chapter)."""

from __future__ import annotations

from engine.fit.reading import read_config
from engine.fit.shape import PlanError, Shape, shape_of
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, colour
from lab.workbench import Workbench


def _shape(bench: Workbench) -> Shape:
    try:
        return shape_of(*read_config(str(bench.folder)))
    except PlanError as error:
        raise CannotShow(f"config.json does not tell this model's sizes: {error}") from None


def predict(bench: Workbench) -> list[Expectation]:
    shape = _shape(bench)
    size = bench.dtype.itemsize
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    stored = sum(file.stat().st_size for file in bench.folder.glob("*.safetensors"))
    expectations = [
        Expectation(
            "parameters",
            "parameters",
            shape.parameters,
            "",
            "the shapes in config.json: " + ", ".join(part.name for part in shape.parts),
        ),
        Expectation(
            "weights",
            "memory of the weights",
            shape.parameters * size,
            "B",
            f"× {size} bytes each ({str(bench.dtype).removeprefix('torch.')})",
        ),
        Expectation(
            "block",
            f"memory of a block of {bench.config.block_size} tokens",
            bench.config.block_size * per_token,
            "B",
            f"K and V: 2 × {shape.layers} layers × {shape.kv_heads} heads × {shape.head_dim}"
            f" × {size} bytes = {per_token:,} B a token",
        ),
    ]
    if stored:
        expectations.append(
            Expectation(
                "seconds",
                "loading takes at least",
                stored / bench.limits.read_gb_s / 1e9,
                "s",
                f"{quantity(stored, 'B')} of files at the speed of memory; disk and"
                " bookkeeping come on top",
            )
        )
    return expectations


def run(bench: Workbench) -> Outcome:
    loaded, sized, shape = bench.loaded, bench.sized, _shape(bench)
    pool = sized.num_blocks * sized.bytes_per_block
    tokens = sized.num_blocks * sized.block_size
    size = bench.dtype.itemsize
    parts = [part for part in shape.parts if part.numbers]
    weights = [Bar(part.name, [(part.numbers * size, colour(i))]) for i, part in enumerate(parts)]
    longest = sized.max_model_len
    return Outcome(
        {
            "parameters": loaded.num_parameters,
            "weights": loaded.num_bytes,
            "block": sized.bytes_per_block,
            "seconds": loaded.duration_s,
        },
        [
            f"{loaded.architecture}, {loaded.implementation}, {loaded.dtype}",
            f"the KV cache: {sized.why}",
            f"one token's K and V take {quantity(sized.bytes_per_block / sized.block_size, 'B')},"
            f" a sequence of {longest:,} tokens"
            f" {quantity(sized.bytes_per_block * longest / sized.block_size, 'B')}: the pool holds"
            f" {tokens / longest:,.1f} of that length, or {tokens / 200:,.0f} of 200 tokens",
        ],
        [
            Bars("Where the weights are", "B", weights),
            Bars(
                "Memory that the engine plans with",
                "B",
                [Bar("weights", [(loaded.num_bytes, 0)]), Bar("KV cache", [(pool, 1)])],
            ),
        ],
    )


CHAPTER = Chapter(
    "loading",
    "Loading, and the arithmetic of memory",
    "A model's memory is its parameters times the bytes of each, and its shapes are in config.json."
    " What is left is for the KV cache, which costs so many bytes for each token of each"
    " sequence. How many people can be served at once follows from these two sums alone.",
    predict,
    run,
    "engine/worker/memory/kv_sizing.py",
    "how the number of blocks comes about, told in one line",
)
