"""What isn't a number, or infinite, in one row: it is seen there, and no other row changes."""

from __future__ import annotations

import math

import pytest
import torch

from engine.kernels.batch import AttentionSpec, LayerCache
from tests.kernels.cpu.test_cpu_kernels import DTYPES, numbers, paged
from tests.kernels.cpu.test_quantized_kernels import FORMS, form, packed

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHAPES = [(3, 1, 64), (9, 1, 32), (2, 2, 64), (8, 1, 96), (4, 2, 40), (40, 2, 32)]
"""(heads, key heads, width of a head): read in place, in one tile, in several, copied first."""
MASKS = [(None, None), (20, None), (None, 3.0)]  # window, soft_cap
ROWS = [(0, 1), (16, 1), (63, 1), (300, 1), (599, 1), (0, 40), (30, 70), (290, 9)]
"""(tokens before, tokens): ends within a vector, at a block's end; several parts of a context."""


def attention(heads, kv_heads, dim, window, soft_cap, dtype, sinks=False):
    cache, batch = paged(3, ROWS, heads, kv_heads, dim, 16, dtype)
    sink = numbers(5, heads) if sinks else None
    spec = AttentionSpec(heads, kv_heads, dim, 0.2, window, soft_cap, sink)
    return cache, batch, spec, numbers(1, sum(batch.query_lens), heads, dim)


@pytest.mark.parametrize("heads, kv_heads, dim", SHAPES)
@pytest.mark.parametrize("window, soft_cap", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_is_no_number_stays_so(ops, heads, kv_heads, dim, window, soft_cap, dtype):
    """Each head of a token, each token of a chunk, alone: all others keep their bits."""
    cache, batch, spec, q = attention(
        heads, kv_heads, dim, window, soft_cap, dtype, sinks=window is None
    )
    expected = ops.paged_attention(q, cache, batch, spec)
    assert expected.isfinite().all()
    spoiled = torch.zeros(q.shape[:2], dtype=torch.bool)
    tokens = torch.arange(len(q))
    spoiled[tokens, tokens * 7 % heads] = True
    spoiled[::5] = False
    spoiled[-3] = True
    q[:, :, dim // 2][spoiled] = torch.nan
    found = ops.paged_attention(q, cache, batch, spec)
    assert found[spoiled].isnan().all()
    assert torch.equal(found[~spoiled], expected[~spoiled])


@pytest.mark.parametrize("heads, kv_heads, dim", SHAPES)
@pytest.mark.parametrize("window, soft_cap", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_key_that_is_no_number_is_seen_by_who_sees_it(
    ops, heads, kv_heads, dim, window, soft_cap, dtype
):
    """By all query heads of its key head, from its position on to the window's end."""
    cache, batch, spec, q = attention(heads, kv_heads, dim, window, soft_cap, dtype)
    expected = ops.paged_attention(q, cache, batch, spec)
    keys = cache.k.clone()
    spoiled = torch.zeros(q.shape[:2], dtype=torch.bool)
    for row, (before, new) in enumerate(ROWS):
        place = (before + new - 1) * 2 // 3
        block = int(batch.block_tables[row, place // 16])
        keys[block, place % 16, kv_heads - 1, 1] = torch.nan
        positions = torch.arange(before, before + new)
        sees = (positions >= place) & (positions < place + (window or 1000))
        first = int(batch.query_start[row])
        spoiled[first : first + new, -heads // kv_heads :] |= sees[:, None]
    found = ops.paged_attention(q, LayerCache(keys, cache.v), batch, spec)
    assert found[spoiled].isnan().all()
    assert torch.equal(found[~spoiled], expected[~spoiled])
    assert spoiled.any() and not spoiled.all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_a_context_are_joined_with_what_is_no_number(ops, window, dtype, threads):
    """Also if the others have no score: of a chunk's task, some begin before a query's window."""
    cache, batch = paged(3, [(240, 60)], 4, 2, 64, 16, dtype)
    spec = AttentionSpec(4, 2, 64, 0.2, window)
    q = numbers(1, 60, 4, 64)
    q[-1] = torch.nan
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = ops.paged_attention(q, cache, batch, spec)
    finally:
        torch.set_num_threads(before)
    assert found[-1].isnan().all() and found[:-1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_that_is_no_number_stays_so(ops, dtype):
    x = numbers(1, 3, 80, dtype=dtype)
    expected = ops.silu_and_mul(x)
    x[1, 7] = torch.nan
    found = ops.silu_and_mul(x)
    assert found.isnan().nonzero().tolist() == [[1, 7]]
    assert torch.equal(found.nan_to_num(), torch.where(found.isnan(), 0, expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", FORMS)
def test_an_infinite_activation_is_never_a_finite_output(ops, name, value, dtype):
    """±inf or NaN by the weights' signs; with codes to which something is added, NaN. Other rows
    have their bits, whatever the number of rows; also where one half of the outputs gates the
    other."""
    weight = form(name, 64, 192, 192 if "table" in name or name == "squeezellm" else 32)
    x = numbers(2, 40, 192, dtype=dtype)
    infinite = x.clone()
    infinite[::7, 100] = value
    spoiled = torch.arange(40) % 7 == 0
    for laid_out in (packed(ops, weight, dtype), ops.pack_quantized_gated(weight, dtype)):
        if laid_out is None:
            continue  # of rows with tables of their own nothing is gated
        expected = ops.quantized_linear(x, laid_out, None)
        for rows in (1, 2, 4, 9, 40):
            found = ops.quantized_linear(infinite[:rows], laid_out, None)
            assert torch.equal(found[~spoiled[:rows]], expected[:rows][~spoiled[:rows]])
            assert not found[spoiled[:rows]].isfinite().any()
