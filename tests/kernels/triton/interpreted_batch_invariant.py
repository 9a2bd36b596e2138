"""`--batch-invariant` in Triton's interpreter: to the bit the same, alone and in any company."""

from __future__ import annotations

import pytest
import torch

import engine.kernels
from benchmarks.gpu.paged_step import captured, make_step
from engine.kernels import torch_ops
from engine.kernels.batch import AttentionBatch, AttentionSpec
from engine.kernels.triton import batch_invariant, tiled
from tests.kernels.triton.interpreted_quantized import form, packed
from tests.support.cases import pairs

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning")

ATTEND = batch_invariant.operations()["paged_attention"]
MOST = 70  # more rows than a tile has
NEAR = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}


# Whole tiles, and a part of one in each direction, of either width.
@pytest.mark.parametrize(("inputs", "lines", "many"), [(128, 64, 64), (100, 41, 99), (70, 41, 1)])
@pytest.mark.parametrize("dtype", NEAR)
def test_a_product_of_a_row_is_the_same_alone_and_among_any_number(
    dtype, inputs, lines, many, monkeypatch
):
    monkeypatch.setattr(tiled, "MANY_LINES", many)
    torch.manual_seed(0)
    x, weight = torch.randn(MOST, inputs).to(dtype), torch.randn(lines, inputs).to(dtype) / 10
    bias = torch.randn(lines).to(dtype)
    product = batch_invariant.linear(x, weight, bias)
    torch.testing.assert_close(product, torch_ops.linear(x, weight, bias), **NEAR[dtype])
    head = batch_invariant.logits(x, weight)
    torch.testing.assert_close(head, torch_ops.logits(x, weight), **NEAR[dtype])
    assert head.dtype == torch.float32
    for rows in range(1, MOST, 3) if lines == many else (1, 2, 5, 17, 64, 65):
        first = (7 * rows) % (MOST - rows + 1)
        some = slice(first, first + rows)
        assert torch.equal(batch_invariant.linear(x[some], weight, bias), product[some]), rows
    for rows in (1, 63, 65):
        assert torch.equal(batch_invariant.logits(x[5 : 5 + rows], weight), head[5 : 5 + rows])
    assert len(batch_invariant.linear(x[:0], weight, None)) == 0


def test_what_the_kernel_does_not_take_is_multiplied_row_by_row(monkeypatch):
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    sizes = []

    def multiply(x, *others):
        sizes.append(len(x))
        return torch_ops.linear(x, *others)

    monkeypatch.setattr(batch_invariant, "torch_ops", type("", (), {"linear": multiply}))
    found = batch_invariant.linear(x, weight, None)
    torch.testing.assert_close(found, x @ weight.T)
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize("name", ["q4_0", "awq in another order"])
def test_so_is_one_with_quantized_weights(name):
    weight = form(name, 9, 160, 64)
    x = torch.randn(MOST, 160)
    whole = batch_invariant.quantized_linear(x, packed(weight), None)
    torch.testing.assert_close(whole, x @ weight.dequantize().T, rtol=1e-4, atol=1e-4)
    for rows in (1, 5, 65):  # each of which another kernel would take
        assert torch.equal(
            batch_invariant.quantized_linear(x[3 : 3 + rows], packed(weight), None),
            whole[3 : 3 + rows],
        ), rows


OPTIONS = {
    "plain": {},
    "window": {"sliding_window": 70},
    "sinks and cap": {"sinks": torch.tensor([0.5, -3.0]), "soft_cap": 3.0},
}


@pytest.mark.parametrize(("dtype", "kind"), pairs([*NEAR], [*OPTIONS], every=2))
def test_a_token_attends_the_same_alone_in_a_chunk_and_in_company(dtype, kind):
    rows = [(200, 1), (0, 1), (30, 31), (100, 3)]
    cache, batch = make_step(rows, 1, 64, 16, dtype)
    spec = AttentionSpec(2, 1, 64, 0.125, **OPTIONS[kind])
    q = torch.randn(len(batch.positions), 2, 64).to(dtype)
    whole = ATTEND(q, cache, batch, spec)
    again = torch.cat((q, torch.randn(5, 2, 64).to(dtype)))
    assert torch.equal(ATTEND(again, cache, captured(batch, 5, 2), spec)[: len(q)], whole)
    first = 0
    for row, (old, new) in enumerate(rows):
        for begin, end in [(0, new), *((n, n + 1) for n in range(0, new, 10)), (new // 2, new)]:
            alone = one_row(batch, row, old + begin, end - begin)
            own = slice(first + begin, first + end)
            assert torch.equal(ATTEND(q[own], cache, alone, spec), whole[own]), (row, begin, end)
        first += new


def one_row(batch: AttentionBatch, row: int, old: int, new: int) -> AttentionBatch:
    """A step of one of the rows, with `old` tokens before those that are computed."""
    return AttentionBatch(
        positions=torch.arange(old, old + new),
        slot_mapping=torch.zeros(new, dtype=torch.int64),
        block_tables=batch.block_tables[row : row + 1],
        query_start=torch.tensor([0, new], dtype=torch.int32),
        context_lens=torch.tensor([old + new], dtype=torch.int32),
        num_decode_rows=int(new == 1),
        block_size=batch.block_size,
        query_lens=[new],
        context_lens_list=[old + new],
        max_context_len=old + new,
    )


def test_plain_kernels_would_fail_this():
    """So the sums of these shapes do depend on the order in which they are made."""
    torch.manual_seed(0)
    x, weight = torch.randn(MOST, 128), torch.randn(64, 128) / 10
    plain = engine.kernels.on_cuda().linear
    assert not torch.equal(plain(x[:1], weight, None), plain(x, weight, None)[:1])
