"""Every native kernel against its torch reference, in every variant that this CPU can run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.kernels import torch_attention, torch_ops
from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache, QKNorms
from engine.kernels.cpu.costs import attention_cost
from engine.kernels.cpu.linear_ops import Layout
from engine.placeholders import NO_TOKEN

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
some = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32, spread: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Largest difference relative to the largest value expected."""
    assert found.shape == expected.shape
    if not expected.numel():
        return
    scale = max(float(expected.double().abs().max()), 1e-3)
    assert float((found.double() - expected.double()).abs().max()) <= tolerance * scale


seeds = st.integers(0, 2**20)
dtypes = st.sampled_from(DTYPES)

# ------------------------------------------------------------------------------------- linear


@some
@given(
    seeds, st.integers(0, 19), st.integers(1, 150), st.integers(1, 300), st.booleans(),
    st.sampled_from([(x, w) for x in DTYPES for w in DTYPES if (x, w) != DTYPES[::-1]]),
)  # fmt: skip
def test_linear(ops, seed, rows, outputs, inputs, with_bias, types):
    x_type, w_type = types
    x = numbers(seed, rows, inputs, dtype=x_type)
    weight = numbers(seed + 1, outputs, inputs, dtype=w_type)
    bias = numbers(seed + 2, outputs, dtype=w_type) if with_bias else None
    expected = torch_ops.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    found = ops.product(x, weight, bias)
    assert found.dtype is x_type
    assert_near(found, expected, TOLERANCE[x_type])


@some
@given(
    seeds, st.integers(0, 150), st.integers(1, 7), st.integers(1, 20), st.integers(0, 40),
    st.booleans(),
    st.sampled_from([(x, w) for x in DTYPES for w in DTYPES if (x, w) != DTYPES[::-1]]),
)  # fmt: skip
def test_linear_with_a_packed_weight(ops, seed, rows, blocks, steps, odd, with_bias, types):
    """On tiles x is bf16; panels take any even number of inputs, some take odd ones."""
    x_type, w_type = types
    outputs, inputs = (ops.panel or 32) * blocks, 32 * steps + 2 * odd
    if ops.layout_of(torch.empty(outputs, inputs, dtype=w_type)) is Layout.TILES:
        x_type = w_type
    x = numbers(seed, rows, inputs, dtype=x_type)
    weight = numbers(seed + 1, outputs, inputs, dtype=w_type)
    bias = numbers(seed + 2, outputs, dtype=w_type) if with_bias else None
    expected = torch_ops.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    packed = packed_weight(ops, weight)
    rounded, wide = (ops.linear(x, packed, bias, wide) for wide in (False, True))
    assert_near(rounded, expected, TOLERANCE[x_type])
    assert wide.dtype is torch.float32 and torch.equal(wide.to(x_type), rounded)


@some
@given(
    seeds, st.integers(0, 40), st.integers(1, 5), st.integers(1, 300), st.booleans(),
    st.sampled_from([(x, w) for x in DTYPES for w in DTYPES if (x, w) != DTYPES[::-1]]),
)  # fmt: skip
def test_logits_are_in_fp32_of_any_layout(ops, seed, rows, blocks, inputs, even, types):
    """Not rounded to the weights' dtype: 1e-6 of what is added up, without regard to signs."""
    x_type, w_type = types
    outputs, inputs = (32 * blocks, 32 * (inputs // 32 + 1)) if even else (blocks, inputs)
    x = numbers(seed, rows, inputs, dtype=x_type)
    weight = numbers(seed + 1, outputs, inputs, dtype=w_type)
    expected = x.double() @ weight.double().T
    layouts = [weight]
    if ops.layout_of(weight) is not Layout.TILES or x_type is w_type:  # as models have them
        layouts.append(ops.pack_weight(weight))
    for laid_out in layouts:
        found = ops.logits(x, laid_out)
        assert found.dtype is torch.float32
        added = x.double().abs() @ weight.double().abs().T
        assert bool(((found - expected).abs() <= 1e-6 * added + 1e-9).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("company", [1, 2, 5, 8, 9, 16, 17, 64])
def test_a_row_of_logits_is_the_same_in_any_company(ops, company, dtype):
    """In fp32 torch multiplies many plain rows of the portable variant; others are ours."""
    x, weight = numbers(1, 64, 96, dtype=dtype), numbers(2, 640, 96, dtype=dtype)
    weight = ops.pack_weight(weight)
    if dtype is torch.float32 and company > ops.max_linear_rows:
        pytest.skip("torch's product")
    alone = torch.cat([ops.logits(row, weight) for row in x.split(1)])
    assert torch.equal(ops.logits(x[:company], weight), alone[:company])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_reference_of_logits_rounds_nothing(dtype, monkeypatch):
    monkeypatch.setattr(torch_ops, "VOCABULARY_PART", 7)
    x, weight = numbers(1, 5, 96, dtype=dtype), numbers(2, 40, 96, dtype=dtype)
    found = torch_ops.logits(x, weight)
    assert found.dtype is torch.float32
    assert_near(found, x.double() @ weight.double().T, 1e-6)


def packed_weight(ops, weight):
    """The weight in another order, or skips the test: no kernel here wants one."""
    packed = ops.pack_weight(weight)
    if packed is weight:
        pytest.skip("this variant, or this machine, reads such weights as they are")
    assert packed.numel() == weight.numel()  # it is not kept twice
    return packed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("company", [0, 1, 2, 3, 4, 5, 7, 16, 17, 33, 64, 97, 129, 700])
def test_a_row_is_the_same_in_any_company(ops, company, dtype):
    """To the bit: else a request's text would depend on how many others share its step."""
    x, weight = numbers(1, 700, 1056, dtype=dtype), numbers(2, 640, 1056, dtype=dtype)
    packed = packed_weight(ops, weight)
    alone = torch.cat([ops.linear(row, packed, None) for row in x.split(1)])
    assert torch.equal(ops.linear(x[:company], packed, None), alone[:company])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("outputs", [1024, 1056])
@pytest.mark.parametrize("wide", [False, True])
def test_a_row_of_a_prompt_is_the_same_in_any_company(ops, gated, outputs, wide):
    """A prompt's outputs are more than a core's caches hold: on tiles they take another way."""
    rows, outputs = 1100, 2 * outputs if gated else outputs
    x, weight = numbers(1, rows, 1216).bfloat16(), numbers(2, outputs, 1216).bfloat16()
    bias = numbers(3, outputs).bfloat16()
    weight, bias = ops.pack_gated(weight, bias) if gated else (ops.pack_weight(weight), bias)
    if weight.dim() == 2:
        pytest.skip("torch's product")
    dtype = torch.float32 if wide else torch.bfloat16
    few = torch.cat([ops.product(some, weight, bias, dtype, gated) for some in x.split(48)])
    for company in (rows, rows - 70):
        assert torch.equal(ops.product(x[:company], weight, bias, dtype, gated), few[:company])


def test_products_of_torch_are_right_after_ours_on_tiles(ops):
    """Tiles are configured anew by each user: neither may disturb the other."""
    x, weight = numbers(1, 40, 256).bfloat16(), numbers(2, 512, 256).bfloat16()
    packed = ops.pack_weight(weight)
    expected = torch_ops.linear(x.double(), weight.double(), None)
    for rows in (40, 3, 40):
        assert_near(ops.linear(x[:rows], packed, None), expected[:rows], 1e-2)
        assert_near(torch_ops.linear(x, weight, None), expected, 1e-2)


@pytest.mark.parametrize("shape", [(33, 64), (65, 33), (31, 31)])
def test_weights_that_do_not_come_out_even_stay_as_they_are(ops, shape):
    weight = numbers(1, *shape).bfloat16()
    assert ops.pack_weight(weight) is weight
    assert_near(ops.linear(weight, weight, None), weight.double() @ weight.double().T, 1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_table_is_embedded_as_the_plain_one(ops, dtype):
    """A tied LM head: one table, read in both ways."""
    table, places = numbers(1, 160, 96, dtype=dtype), numbers(2, 50, 96, dtype=dtype)
    ids, positions = torch.tensor([0, 15, 16, 31, 32, 77, 159]), torch.arange(7) * 7
    packed = packed_weight(ops, table)
    assert torch.equal(ops.embed(ids, packed), torch_ops.embed(ids, table))
    found = ops.embed(ids, packed, positions, places)
    assert torch.equal(found, torch_ops.embed(ids, table, positions, places))


def test_linear_of_a_whole_layer_uses_all_threads(ops):
    x, weight = numbers(1, 5, 576), numbers(2, 1536, 576)
    assert_near(ops.product(x, weight, None), x.double() @ weight.double().T, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_of_a_plain_weight_are_the_same_in_any_company_or_go_to_torch(ops, dtype):
    x, weight = numbers(1, 257, 33, dtype=dtype), numbers(2, 8, 33, dtype=dtype)
    found = ops.linear(x, weight, None)
    if ops.variant != "portable":
        assert torch.equal(found, torch.cat([ops.linear(row, weight, None) for row in x.split(1)]))
    else:
        assert torch.equal(found, torch_ops.linear(x, weight, None))


def test_linear_takes_parts_of_tensors(ops):
    x, weight = numbers(1, 3, 64), numbers(2, 8, 32)
    expected = torch_ops.linear(x[:, 16:48], weight, None)
    assert_near(ops.linear(x[:, 16:48], weight, None), expected, 1e-5)


# ------------------------------------------------------------------------------------- attention


def paged(seed, rows, heads, kv_heads, dim, block_size, dtype):
    """rows: (tokens before this step, tokens of this step). Blocks lie scattered, some tables are
    wider than needed, and pages hold large garbage where nothing was written."""
    rows = sorted(rows, key=lambda row: row[1] != 1)
    contexts = [before + new for before, new in rows]
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-context // block_size) for context in contexts]
    free = torch.randperm(sum(needed) + 3, generator=generator).tolist()
    tables = torch.zeros(len(rows), max([1, *needed]) + 2, dtype=torch.int32)
    k, v = (
        numbers(seed + i, len(free), block_size, kv_heads, dim, dtype=dtype, spread=50.0)
        for i in (1, 2)
    )
    slots: list[int] = []
    for row, (before, new) in enumerate(rows):
        blocks = [free.pop() for _ in range(needed[row])]
        tables[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        places = [
            blocks[p // block_size] * block_size + p % block_size for p in range(before + new)
        ]
        for pages, shift in ((k, 3), (v, 4)):
            written = numbers(seed + shift + 9 * row, before + new, kv_heads, dim, dtype=dtype)
            pages.view(-1, kv_heads, dim)[places] = written
        slots += places[before:]
    lengths = [new for _, new in rows]
    starts = [sum(lengths[:row]) for row in range(len(rows) + 1)]
    batch = AttentionBatch(
        positions=torch.cat([torch.arange(b, b + n) for b, n in rows]),
        slot_mapping=torch.tensor(slots),
        block_tables=tables,
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        num_decode_rows=sum(length == 1 for length in lengths),
        block_size=block_size,
        query_lens=lengths,
        context_lens_list=contexts,
        max_context_len=max(contexts),
    )
    return LayerCache(k, v), batch


def exact_attention(q, cache, batch, spec):
    """In double precision, each query by itself, written from the definition."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    k, v = (pages.double().flatten(0, 1) for pages in (cache.k, cache.v))
    group, size = spec.num_heads // spec.num_kv_heads, batch.block_size
    for row, (new, context) in enumerate(zip(batch.query_lens, batch.context_lens_list)):
        places = torch.arange(context)
        slots = batch.block_tables[row].long()[places // size] * size + places % size
        for token in range(new):
            position = context - new + token
            first = max(0, position + 1 - (spec.sliding_window or context))
            seen = slots[first : position + 1]
            index = int(batch.query_start[row]) + token
            for head in range(spec.num_heads):
                scores = k[seen, head // group] @ q[index, head].double() * spec.scale
                if spec.soft_cap:
                    scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
                if spec.sinks is not None:
                    scores = torch.cat((scores, spec.sinks[head : head + 1].double()))
                weights = torch.softmax(scores, 0)[: len(seen)]
                out[index, head] = weights @ v[seen, head // group]
    return out


@some
@given(
    seed=seeds,
    rows=st.lists(
        st.tuples(st.integers(0, 90), st.one_of(st.just(1), st.integers(1, 40))),
        min_size=1, max_size=4,
    ),
    group=st.integers(1, 8),
    kv_heads=st.integers(1, 3),
    dim=st.sampled_from([32, 36, 40, 64, 80, 128, 256]),
    block_size=st.sampled_from([1, 4, 16, 32]),
    window=st.sampled_from([None, 1, 7, 64]),
    soft_cap=st.sampled_from([None, 5.0]),
    sinks=st.booleans(),
    q_type=dtypes,
    kv_type=dtypes,
)  # fmt: skip
def test_paged_attention(
    ops, seed, rows, group, kv_heads, dim, block_size, window, soft_cap, sinks, q_type, kv_type
):
    heads = group * kv_heads
    cache, batch = paged(seed, rows, heads, kv_heads, dim, block_size, kv_type)
    sink = numbers(seed + 5, heads) if sinks else None
    spec = AttentionSpec(heads, kv_heads, dim, dim**-0.5, window, soft_cap, sink)
    # a part of a wider tensor, as the model's q is a part of qkv
    q = numbers(seed, sum(batch.query_lens), heads + 2, dim, dtype=q_type)[:, :heads]
    found = ops.paged_attention(q, cache, batch, spec)
    assert found.dtype is kv_type
    assert_near(found, exact_attention(q, cache, batch, spec), TOLERANCE[kv_type])


@some
@given(
    seed=seeds,
    rows=st.lists(
        st.tuples(st.integers(0, 40), st.one_of(st.just(1), st.integers(1, 20))),
        min_size=1, max_size=3,
    ),
    group=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    dim=st.sampled_from([8, 32, 36, 64, 128]),
    turned=st.booleans(),
    normed=st.booleans(),
    wide=st.booleans(),
    dtype=dtypes,
    kv_type=dtypes,
)  # fmt: skip
def test_qkv_attention(ops, seed, rows, group, kv_heads, dim, turned, normed, wide, dtype, kv_type):
    """wide: the projection is in fp32."""
    heads = group * kv_heads
    caches = [paged(seed, rows, heads, kv_heads, dim, 4, kv_type) for _ in range(2)]
    spec = AttentionSpec(heads, kv_heads, dim, dim**-0.5)
    tokens = sum(caches[0][1].query_lens)
    projected = torch.float32 if wide else dtype
    qkv = numbers(seed, tokens, (heads + 2 * kv_heads) * dim, dtype=projected)
    angles = tuple(numbers(seed + i, tokens, 1, dim) for i in (1, 2)) if turned else None
    weights = (numbers(seed + i, dim, dtype=dtype) for i in (3, 4))
    norms = QKNorms(*weights, 1e-6) if normed else None
    found = ops.qkv_attention(qkv, angles, norms, *caches[0], spec, dtype)
    expected = torch_attention.qkv_attention(qkv, angles, norms, *caches[1], spec, dtype)
    assert found.dtype is dtype
    exact = dtype is kv_type is torch.float32
    limit = 2e-5 if exact else 3e-2  # the reference rounds q to bf16, the kernel doesn't
    assert_near(found, expected, limit)
    written = caches[0][1].slot_mapping
    for mine, theirs in zip((caches[0][0].k, caches[0][0].v), (caches[1][0].k, caches[1][0].v)):
        mine, theirs = mine.flatten(0, 1), theirs.flatten(0, 1)
        assert_near(mine[written], theirs[written], 1e-5 if exact else 1e-2)
        mine[written] = theirs[written] = 0
        assert torch.equal(mine, theirs)  # all other places stay as they were


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_chunks_beside_decode_rows(ops, dtype):
    cache, batch = paged(3, [(50, 1), (9, 1), (30, 90), (0, 64), (70, 2)], 4, 2, 32, 16, dtype)
    spec = AttentionSpec(4, 2, 32, 0.2, sliding_window=80)
    q = numbers(1, 158, 6, 32, dtype=dtype)[:, :4]
    expected = exact_attention(q, cache, batch, spec)
    assert_near(ops.paged_attention(q, cache, batch, spec), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("block_size", [16, 4])
@pytest.mark.parametrize(
    "heads, kv_heads, dim",
    [(2, 2, 64), (6, 2, 32), (7, 1, 64), (9, 1, 32), (8, 1, 96), (4, 2, 160)],
)
@pytest.mark.parametrize("window, soft_cap", [(None, None), (100, 3.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_attends_alike_in_any_company(
    ops, heads, kv_heads, dim, block_size, window, soft_cap, dtype
):
    """With its whole prompt, in a chunk, or alone, beside others or not: to the bit."""
    length, chunk = 333, 5  # longer than PART of attention_task.h
    cache, whole = paged(3, [(0, length)], heads, kv_heads, dim, block_size, dtype)
    spec = AttentionSpec(heads, kv_heads, dim, 0.3, window, soft_cap)
    q = numbers(1, length, heads, dim)
    expected = ops.paged_attention(q, cache, whole, spec)

    def step(*rows):  # (first token, end)
        lengths, contexts = [end - start for start, end in rows], [end for _, end in rows]
        starts = [sum(lengths[:row]) for row in range(len(rows) + 1)]
        batch = dataclasses.replace(
            whole,
            block_tables=whole.block_tables.repeat(len(rows), 1),
            query_start=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            num_decode_rows=lengths.count(1),
            query_lens=lengths,
            context_lens_list=contexts,
            max_context_len=max(contexts),
            scratch={},
        )
        some = torch.cat([torch.arange(*row) for row in rows])
        assert torch.equal(ops.paged_attention(q[some], cache, batch, spec), expected[some]), rows

    for token in (0, 1, 63, 64, 255, 256, 300, length - 1):
        step((token, token + 1))
    step(*((token, token + 1) for token in range(0, length, 9)))
    for start in range(0, length - chunk, 50):
        step((start, start + chunk))
    step((20, 21), (300, 301), (0, 40), (200, 202), (256, 333))
    step(*((token, token + 1) for token in range(248, 265)))  # proposals are taken as a chunk
    step((9, 10), (70, 71), *((token, token + 1) for token in (10, 11, 71, 73, 74, 75, 75)))


@pytest.mark.parametrize("heads, kv_heads, dim", [(3, 1, 64), (9, 1, 32), (4, 4, 160), (4, 2, 40)])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_never_written_does_not_count(ops, heads, kv_heads, dim, window, dtype):
    """Not even as 0 times not-a-number: positions that end within a vector, a pair, a block."""
    rows = [(context - 1, 1) for context in (1, 2, 15, 16, 17, 63, 64, 65, 90)]
    rows += [(0, 33), (30, 37), (60, 3)]
    cache, batch = paged(3, rows, heads, kv_heads, dim, 16, dtype)
    spec = AttentionSpec(heads, kv_heads, dim, 0.2, window)
    q = numbers(1, sum(batch.query_lens), heads, dim)
    expected = ops.paged_attention(q, cache, batch, spec)
    written = torch.zeros(len(cache.k) * 16, dtype=torch.bool)
    for row, context in enumerate(batch.context_lens_list):
        places = torch.arange(context)
        written[batch.block_tables[row].long()[places // 16] * 16 + places % 16] = True
    for pages in cache.k, cache.v:
        pages.flatten(0, 1)[~written] = torch.nan
    assert torch.equal(ops.paged_attention(q, cache, batch, spec), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_only_seem_to_go_on_are_attended_alone(ops, dtype):
    """Contexts one longer than the one before, but in other blocks: all, or only the last one."""
    lengths = (63, 64, 65, 66)
    cache, batch = paged(3, [(length - 1, 1) for length in lengths], 6, 2, 32, 16, dtype)
    batch.block_tables[3, :4] = batch.block_tables[2, :4]  # all that row 2 has, but for its last
    spec = AttentionSpec(6, 2, 32, 0.2)
    q = numbers(1, 4, 6, 32)
    found = ops.paged_attention(q, cache, batch, spec)
    for row, length in enumerate(lengths):
        alone = dataclasses.replace(
            batch,
            block_tables=batch.block_tables[row : row + 1],
            query_start=torch.tensor([0, 1], dtype=torch.int32),
            context_lens=batch.context_lens[row : row + 1],
            num_decode_rows=1,
            query_lens=[1],
            context_lens_list=[length],
            max_context_len=length,
            scratch={},
        )
        one = ops.paged_attention(q[row : row + 1], cache, alone, spec)
        assert torch.equal(one, found[row : row + 1])


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_long_sequence_is_cut_into_parts(ops, window, dtype):
    cache, batch = paged(3, [(1500, 1)], 3, 1, 64, 16, dtype)
    sinks = torch.tensor([5.0, -1.0, 9.0])  # counted once, not once for each part
    spec = AttentionSpec(3, 1, 64, 0.125, window, sinks=sinks)
    q = numbers(1, 1, 3, 64, dtype=dtype)
    expected = exact_attention(q, cache, batch, spec)
    assert_near(ops.paged_attention(q, cache, batch, spec), expected, TOLERANCE[dtype])


def test_a_group_larger_than_a_task(ops):
    cache, batch = paged(3, [(20, 3), (0, 1)], 71, 1, 32, 16, torch.float32)
    spec = AttentionSpec(71, 1, 32, 0.2)
    q = numbers(1, 4, 71, 32)
    assert_near(
        ops.paged_attention(q, cache, batch, spec), exact_attention(q, cache, batch, spec), 1e-5
    )


@pytest.mark.parametrize(
    "dim, dtype, pairs, said",
    [
        (64, torch.bfloat16, True, "bfloat16"),
        (80, torch.bfloat16, True, "float32"),  # such heads don't fill vectors
        (64, torch.float32, True, "float32"),
        (64, torch.bfloat16, False, "float32"),
    ],
)
def test_a_cost_names_the_dtype_of_the_products(dim, dtype, pairs, said):
    cache, batch = paged(3, [(40, 1), (0, 9)], 4, 2, dim, 16, dtype)
    spec = AttentionSpec(4, 2, dim, 1.0)
    cost = attention_cost(3, numbers(1, 10, 4, dim), cache, batch, spec, range(2), pairs)
    assert cost.flops_type == said and cost.grid == [3]


@pytest.mark.parametrize("window", [None, 20])
def test_a_cost_counts_what_rows_that_go_on_read_once(window):
    """As of the same tokens in one chunk; rows in other blocks read their own."""
    cache, chunk = paged(3, [(60, 5)], 4, 2, 32, 16, torch.float32)
    spec = AttentionSpec(4, 2, 32, 1.0, window)
    contexts = [61, 62, 63, 64, 65]
    rows = dataclasses.replace(
        chunk,
        block_tables=chunk.block_tables.repeat(5, 1),
        query_lens=[1] * 5,
        context_lens_list=contexts,
    )
    q = numbers(1, 5, 4, 32)
    [of_chunk, of_rows] = [
        attention_cost(1, q, cache, batch, spec, range(len(batch.query_lens)), True)
        for batch in (chunk, rows)
    ]
    assert of_rows.num_bytes == of_chunk.num_bytes and of_rows.flops == of_chunk.flops
    rows.block_tables[2, 0] += 1
    apart = attention_cost(1, q, cache, rows, spec, range(5), True)
    again = sum(min(context, window or context) - 1 for context in contexts[2:4])
    assert apart.num_bytes == of_rows.num_bytes + again * 2 * 2 * 32 * 4


def test_large_scores_stay_finite(ops):
    cache, batch = paged(3, [(40, 1), (0, 9)], 4, 2, 64, 16, torch.float32)
    spec = AttentionSpec(4, 2, 64, 1.0)
    q = numbers(1, 10, 4, 64, spread=40.0)
    found = ops.paged_attention(q, cache, batch, spec)
    assert_near(found, exact_attention(q, cache, batch, spec), 1e-4)


def test_the_reference_computes_the_definition():
    cache, batch = paged(3, [(40, 1), (5, 9), (0, 3)], 4, 2, 64, 16, torch.float32)
    spec = AttentionSpec(4, 2, 64, 0.125, 11)
    q = numbers(1, 13, 4, 64)
    assert_near(
        torch_attention.paged_attention(q, cache, batch, spec),
        exact_attention(q, cache, batch, spec),
        1e-5,
    )


@some
@given(
    seeds, st.integers(0, 9), st.integers(1, 4), st.sampled_from([4, 32, 36, 128]), dtypes, dtypes
)
def test_write_kv(ops, seed, tokens, heads, dim, dtype, kv_type):
    wide = numbers(seed, tokens, 3 * heads, dim, dtype=dtype)
    k, v = wide[:, heads : 2 * heads], wide[:, 2 * heads :]
    slots = torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:tokens]
    caches = [
        LayerCache(*(torch.full((6, 4, heads, dim), 7.0, dtype=kv_type) for _ in "kv"))
        for _ in range(2)
    ]
    ops.write_kv(k, v, caches[0], slots)
    torch_attention.write_kv(k, v, caches[1], slots)
    assert torch.equal(caches[0].k, caches[1].k)
    assert torch.equal(caches[0].v, caches[1].v)


# ------------------------------------------------------------------------------------- elementwise


@some
@given(
    *(seeds, st.integers(0, 9), st.integers(1, 300), dtypes, st.booleans(), st.booleans()),
    *(st.booleans(), st.booleans()),
)
def test_norms(ops, seed, rows, width, dtype, wide, added, plain, far):
    """wide, added: the residual stream, and what is added to it, are in fp32, as models have both.

    plain: without weights; then what is added has the dtype of the result."""
    x = numbers(
        seed, rows, width, dtype=torch.float32 if added and not plain else dtype, spread=2.0
    )
    stream = torch.float32 if wide else dtype
    residual = numbers(seed + 1, rows, width, dtype=stream, spread=2.0)
    if far:
        x = x + 30  # a mean far from 0, where careless variances lose their digits
    weight, bias = (
        (None, None) if plain else (numbers(seed + i, width, dtype=dtype) for i in (2, 3))
    )
    ones = torch.ones(width, dtype=dtype) if weight is None else weight
    limit = 1e-4 if dtype is torch.float32 else 2e-2  # of far: 30 / 2e-7 is all that fp32 has
    limit = limit if far else TOLERANCE[dtype]
    pairs = [
        (ops.rms_norm(x, ones, 1e-5), torch_ops.rms_norm(x.double(), ones.double(), 1e-5)),
        (
            ops.layer_norm(x, weight, bias, 1e-5),
            torch_ops.layer_norm(x.double(), *_double(weight, bias), 1e-5),
        ),
    ]
    total = x + residual
    if not plain:
        first = ops.layer_norm(residual, weight, bias, 1e-5)
        exact = torch_ops.layer_norm(residual.double(), *_double(weight, bias), 1e-5)
        pairs.append((first, exact))
    first = ops.rms_norm(residual, ones, 1e-5)
    pairs.append((first, torch_ops.rms_norm(residual.double(), ones.double(), 1e-5)))
    for found, expected in (
        (
            ops.add_rms_norm(x, residual, ones, 1e-5),
            torch_ops.rms_norm(total.double(), ones.double(), 1e-5),
        ),
        (
            ops.add_layer_norm(x, residual, weight, bias, 1e-5),
            torch_ops.layer_norm(total.double(), *_double(weight, bias), 1e-5),
        ),
    ):
        assert found[1].dtype is total.dtype and torch.equal(found[1], total)
        pairs.append((found[0], expected))
    for found, expected in pairs:
        assert found.dtype is dtype
        assert_near(found, expected, limit)


def _double(*tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def test_norm_of_heads(ops):
    x = numbers(1, 5, 9, 16)[:, 2:6]  # [tokens, heads, D], a part of a wider tensor
    weight = numbers(2, 16)
    assert_near(ops.rms_norm(x, weight, 1e-6), torch_ops.rms_norm(x, weight, 1e-6), 1e-5)


@some
@given(seeds, st.integers(0, 9), st.integers(1, 300), dtypes, st.sampled_from([1.0, 60.0]))
def test_silu_and_mul(ops, seed, rows, width, dtype, spread):
    x = numbers(seed, rows, 2 * width, dtype=dtype, spread=spread)
    found = ops.silu_and_mul(x)
    assert found.dtype is dtype
    assert_near(found, torch_ops.silu_and_mul(x.double()), TOLERANCE[dtype])


@some
@example(302929, 1, 1, 1, False, False, DTYPES)  # a gate of -5
@given(
    seeds, st.integers(0, 150), st.integers(1, 12), st.integers(1, 150),
    st.booleans(), st.booleans(),
    st.sampled_from([(x, w) for x in DTYPES for w in DTYPES if (x, w) != DTYPES[::-1]]),
)  # fmt: skip
def test_linear_gated(ops, seed, rows, blocks, inputs, even, with_bias, types):
    """A product of which one half gates the other; of a packed weight, rounded once, at its end."""
    x_type, w_type = types
    half, inputs = (16 * blocks, 32 * (inputs // 32 + 1)) if even else (blocks, inputs)
    weight = numbers(seed + 1, 2 * half, inputs, dtype=w_type, spread=inputs**-0.5)
    layout = ops.layout_of(weight)
    if layout is not Layout.PANELS:
        x_type = w_type
    x = numbers(seed, rows, inputs, dtype=x_type, spread=2.0)
    bias = numbers(seed + 2, 2 * half, dtype=w_type) if with_bias else None
    product = torch_ops.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = ops.linear_gated(x, *ops.pack_gated(weight, bias))
    assert found.dtype is x_type
    expected = torch_ops.silu_and_mul(product)
    rounding = 2.0**-8 if x_type is torch.bfloat16 else 0.0
    near = 1.001 * rounding * expected.abs() + 1e-4
    if layout is Layout.PLAIN:  # gate and up are rounded, too; silu(-5) changes by 4 times as much
        gate, up = product.chunk(2, dim=1)
        sigmoid = gate.sigmoid()
        slope = sigmoid * (1 + gate * (1 - sigmoid))
        near += rounding * (expected.abs() + (slope * gate * up).abs())
    assert bool(((found - expected).abs() <= near).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("company", [1, 2, 3, 4, 5, 9, 17, 33, 150])
def test_a_gated_row_is_the_same_in_any_company(ops, company, dtype):
    x, weight = numbers(1, 150, 96, dtype=dtype), numbers(2, 384, 96, dtype=dtype)
    weight, _ = ops.pack_gated(weight, None)
    if weight.dim() == 2 and company > ops.max_linear_rows:
        pytest.skip("torch's product")
    alone = torch.cat([ops.linear_gated(row, weight, None) for row in x.split(1)])
    assert torch.equal(ops.linear_gated(x[:company], weight, None), alone[:company])


@some
@given(seeds, st.integers(1, 70), st.integers(1, 700), dtypes)
def test_relu(ops, seed, rows, width, dtype):
    x = numbers(seed, rows, width, dtype=dtype)
    expected = x.clone().relu_()
    assert torch.equal(ops.relu(x), expected) and torch.equal(x, expected)
    assert ops.relu(torch.tensor([float("nan"), -1.0])).isnan().tolist() == [True, False]


@some
@given(seeds, st.integers(1, 70), st.integers(1, 700), dtypes, st.booleans())
def test_embed(ops, seed, tokens, width, dtype, with_positions):
    table, places = numbers(seed, 11, width, dtype=dtype), numbers(seed + 1, 9, width, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    ids, positions = (torch.randint(0, n, (tokens,), generator=generator) for n in (11, 7))
    more = (positions, places[2:]) if with_positions else ()
    assert torch.equal(ops.embed(ids, table, *more), torch_ops.embed(ids, table, *more))


@some
@given(seeds, st.integers(1, 70), st.sampled_from([1, 4, 32, 64]), st.sampled_from([1.0, 1.3]))
def test_angles(ops, seed, tokens, half, scale):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 100_000, (tokens,), generator=generator)
    inv_freq = 1.0 / 10_000.0 ** (torch.arange(half) / half)
    for found, expected in zip(
        ops.angles(positions, inv_freq, scale), torch_ops.angles(positions, inv_freq, scale)
    ):
        assert found.shape == expected.shape == (tokens, 1, 2 * half)
        assert_near(found, expected, 3e-7)


@some
@given(seeds, st.integers(0, 9), st.integers(1, 4), st.sampled_from([2, 8, 36, 64, 256]), dtypes)
def test_rotate(ops, seed, tokens, heads, dim, dtype):
    x = numbers(seed, tokens, heads + 2, dim, dtype=dtype)[:, :heads]
    cos, sin = numbers(seed + 1, tokens, 1, dim), numbers(seed + 2, tokens, 1, dim)
    found = ops.rotate(x, cos, sin)
    assert found.dtype is torch.float32
    assert_near(found, torch_ops.rotate(x.double(), cos.double(), sin.double()), 1e-5)


@some
@given(seeds, st.integers(1, 5), st.integers(1, 300), dtypes, st.booleans())
def test_argmax(ops, seed, rows, width, dtype, ties):
    x = numbers(seed, rows, width, dtype=dtype)
    x = x.round() if ties else x
    expected = [row.index(max(row)) for row in x.tolist()]
    assert ops.argmax(x).tolist() == expected


@some
@given(seeds, st.integers(1, 4), st.sampled_from([1, 31, 32, 33, 300, 9000]))
def test_mask_logits(ops, seed, rows, width):
    """Some rows of more, in any order; bits beyond the vocabulary mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    logits = numbers(seed, rows + 2, width)
    lines = torch.randperm(rows + 2, generator=generator)[:rows]
    shape = rows, -(-width // 32)
    masks = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32)
    masks[0] = -1 if seed % 2 else 0
    expected = logits.clone()
    for line, mask in zip(lines.tolist(), masks.tolist()):  # one bit after another
        for token in range(width):
            if not mask[token // 32] >> (token % 32) & 1:
                expected[line, token] = -math.inf
    by_torch = logits.clone()
    torch_ops.mask_logits(by_torch, masks, lines)
    ops.mask_logits(logits, masks, lines)
    assert torch.equal(logits, expected) and torch.equal(by_torch, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5, 37, 1024, 3000])
def test_argmax_of_what_is_not_finite(ops, dtype, width):
    """One NaN anywhere, or an infinite maximum, and there is none; as plain torch has it."""
    x = numbers(1, 6, width, dtype=dtype)
    x[1, width // 2], x[2, -1], x[3, 0] = math.nan, math.nan, math.inf
    x[4], x[5, 1:] = -math.inf, -math.inf
    expected = torch_ops.greatest(x)
    assert (expected == NO_TOKEN).tolist() == [False, True, True, True, True, False]
    assert ops.argmax(x).tolist() == expected.tolist()


def test_a_type_that_no_kernel_takes_goes_to_torch(ops):
    x = numbers(1, 3, 8).double()
    weight = numbers(2, 8).double()
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), torch_ops.rms_norm(x, weight, 1e-6))
    assert torch.equal(ops.silu_and_mul(x), torch_ops.silu_and_mul(x))
    assert math.isclose(float(ops.linear(x, x, None)[0, 0]), float(x[0] @ x[0]))
