"""Provide Triton kernels for CUDA, with the arguments, shapes and results of the torch table.

`operations()` is all that others need: the entries of the `Kernels` table, or None where Triton
isn't installed, and then plain torch computes. Read `attention.py` first, it is most of the work;
`start.py` shows how each is launched; `compile_all.py` compiles all of them for every GPU without
one.

Matrix products of more than a few rows are cuBLAS's, through torch; of quantized weights only those
of many rows.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

from engine.kernels.signatures import Replacements


@lru_cache(maxsize=2)
def operations(batch_invariant: bool = False) -> Replacements | None:
    """Return what is better than plain torch here; None where Triton isn't installed.

    batch_invariant: a row's results must not depend on the other rows of its step.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    # Imported here and not above, because each of these imports Triton.
    from engine.kernels.triton import (
        activation,
        angles,
        code_words,
        copy_blocks,
        draw,
        embed,
        greatest,
        host_exchange,
        linear,
        linear_quantized,
        norm,
        paged_attention,
        rotary,
        take_drawn,
        token_mask,
    )

    found: Replacements = {
        "write_kv": rotary.write_kv,
        "paged_attention": paged_attention.paged_attention,
        "qkv_attention": rotary.qkv_attention,
        "embed": embed.embed,
        "angles": angles.angles,
        "linear": linear.linear,
        "logits": linear.logits,
        "pack_quantized": code_words.pack_quantized,
        "quantized_linear": linear_quantized.quantized_linear,
        "quantized_embed": linear_quantized.quantized_embed,
        "rms_norm": norm.rms_norm,
        "add_rms_norm": norm.add_rms_norm,
        "layer_norm": norm.layer_norm,
        "add_layer_norm": norm.add_layer_norm,
        "silu_and_mul": activation.silu_and_mul,
        "greatest": greatest.greatest,
        "mask_logits": token_mask.mask_logits,
        "take_drawn": take_drawn.take_drawn,
        "take_inputs": host_exchange.take_inputs,
        "hand_out": host_exchange.hand_out,
        "reads_lengths": paged_attention.reads_lengths,
        "wants_lengths": paged_attention.wants_lengths,
        "few_rows": linear.few_rows,
        "keeps_sums": True,
        "draw": draw.draw,
        "copy_blocks": copy_blocks.copy_blocks,
    }
    if batch_invariant:
        from engine.kernels.triton import batch_invariant as of_each_row

        found |= of_each_row.operations()
    return found
