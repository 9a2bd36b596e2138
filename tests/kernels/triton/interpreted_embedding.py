"""Embeddings and rotary angles in Triton's interpreter against their references. What a kernel is
given to write is poisoned: a place that it leaves out shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import on_cuda, torch_ops
from engine.kernels.launch import recording
from engine.kernels.triton import angles, draw, embed
from engine.placeholders import NO_TOKEN
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from tests.support.cases import cases

FEW = settings(max_examples=cases(12), deadline=None, derandomize=True, database=None)
DTYPES = st.sampled_from([torch.float32, torch.float16])


@pytest.fixture(autouse=True, scope="module")
def poison() -> Iterator[None]:
    """Memory that a kernel gets is NaN until it is written."""
    empty = torch.empty
    with pytest.MonkeyPatch.context() as patch:

        def poisoned(*size, **how):
            made = empty(*size, **how)
            return made.fill_(float("nan") if made.is_floating_point() else -1)

        patch.setattr(torch, "empty", poisoned)
        yield


def no_reference(monkeypatch, name: str) -> None:
    """Make any call of plain torch's reference fail from now on."""

    def refuse(*_):
        raise AssertionError(f"plain torch computed {name}")

    monkeypatch.setattr(torch_ops, name, refuse)


@given(st.integers(1, 9), st.integers(1, 2100), DTYPES, st.booleans(), st.integers(0, 99))
@FEW
def test_embed(tokens, width, dtype, with_positions, seed):
    torch.manual_seed(seed)
    table, places = torch.randn(11, width).to(dtype), torch.randn(9, width).to(dtype)
    ids, positions = torch.randint(0, 11, (tokens,)), torch.randint(0, 7, (tokens,))
    more = (positions, places[2:]) if with_positions else ()  # as OPT's, which begin at 2
    expected = torch_ops.embed(ids, table, *more)
    with pytest.MonkeyPatch.context() as patch:
        no_reference(patch, "embed")
        found = embed.embed(ids, table, *more)
    assert found.dtype is torch.float32  # the residual stream begins here
    assert torch.equal(found, expected)


@pytest.mark.parametrize("width", [1023, 1024, 1025])
def test_first_and_last_entries_and_the_padding_of_a_graph(width):
    """Rows that only pad a graph may hold anything from an earlier step: at first token 0 at place
    0."""
    table, places = torch.randn(5, width), torch.randn(3, width)
    ids, positions = torch.tensor([4, 0, 0, 0]), torch.tensor([2, 0, 0, 0])
    found = embed.embed(ids, table, positions, places)
    assert torch.equal(found[0], table[4] + places[2])
    assert torch.equal(found[1:], (table[0] + places[0]).expand(3, width))


@pytest.mark.filterwarnings("ignore:invalid value")  # NaN, in the interpreter's NumPy
def test_a_token_that_is_not_in_the_table():
    """Such as `draw` gives where a logit is NaN: its row is NaN, the others are right."""
    logits = torch.randn(3, 5)
    logits[1] = float("nan")
    one = torch.ones(3, dtype=torch.float64)
    ids = draw.draw(logits, torch.full((3,), 5), one, one * 0, torch.randint(0, 2**32, (3,)))
    assert ids[1] == NO_TOKEN
    table, positions = torch.randn(5, 1030), torch.tensor([2, 1, 0])
    for added, more in ((0, ()), (table[positions], (positions, table))):
        found = embed.embed(ids, table, *more)
        assert found[1].isnan().all()
        expected = table[ids.clamp(min=0)] + added
        assert torch.equal(found[::2], expected[::2])
    assert embed.embed(torch.tensor([-1, 5]), table).isnan().all()


def test_what_the_kernel_does_not_take_is_plain_torchs():
    table, ids = torch.randn(5, 6), torch.tensor([4, 0, 3, 1])
    assert torch.equal(embed.embed(ids[::2], table), table[[4, 3]])
    assert torch.equal(embed.embed(ids, table.double()), table.double()[ids])
    assert torch.equal(embed.embed(ids, table.T.contiguous().T), table[ids])
    assert embed.embed(ids[:0], table).shape == (0, 6)
    mixed = embed.embed(ids, table.half(), ids, table)
    assert mixed.dtype is torch.float32
    assert torch.equal(mixed, table.half()[ids] + table[ids])


@given(
    st.integers(1, 9),
    st.sampled_from([1, 3, 32, 40, 64, 128]),
    st.sampled_from([1.0, 1.3]),
    st.sampled_from([4096, 131_072, 1_000_000]),
    st.integers(0, 99),
)
@FEW
def test_angles(tokens, half, scale, longest, seed):
    torch.manual_seed(seed)
    positions = torch.randint(0, longest, (tokens,))
    inv_freq = 1.0 / 10_000.0 ** (torch.arange(half) / half)
    turned = (positions[:, None, None].float() * inv_freq).double()
    exact = turned.cos() * scale, turned.sin() * scale
    expected = torch.cat((exact[0],) * 2, -1), torch.cat((-exact[1], exact[1]), -1)
    with pytest.MonkeyPatch.context() as patch:
        no_reference(patch, "angles")
        found = angles.angles(positions, inv_freq, scale)
    reference = torch_ops.angles(positions, inv_freq, scale)
    for one, wanted, torchs in zip(found, expected, reference):
        assert one.shape == (tokens, 1, 2 * half) and one.dtype is torch.float32
        torch.testing.assert_close(one.double(), wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(one, torchs, rtol=0, atol=1e-6)


def test_angles_that_the_kernel_does_not_take_are_plain_torchs():
    positions, inv_freq = torch.arange(6), torch.rand(4)
    for less in (positions[::2], positions[:0]):
        for found, wanted in zip(
            angles.angles(less, inv_freq, 1.0), torch_ops.angles(less, inv_freq, 1.0)
        ):
            assert torch.equal(found, wanted)


def test_their_launches_are_recorded():
    recorder = Recorder("full")
    found: list = []
    recorder.subscribe(found.extend)
    ids, table = torch.tensor([1, 0, 2]), torch.randn(4, 1030)
    with recording(recorder):
        on_cuda().embed(ids, table)
        on_cuda().embed(ids, table, ids, table)
        on_cuda().angles(ids, torch.rand(100), 1.0)
    recorder.close()
    alone, added, turned = (event for event in found if isinstance(event, KernelLaunched))
    assert [event.name for event in (alone, added, turned)] == ["embed", "embed", "angles"]
    assert {event.backend for event in (alone, added, turned)} == {"triton"}
    assert alone.grid == added.grid == [3, 2]
    assert [event.constexprs["ADD"] for event in (alone, added)] == [0, 1]
    row = 4 * 1030
    assert alone.num_bytes == 3 * (8 + 2 * row)
    assert added.num_bytes == 3 * (16 + 3 * row)
    assert turned.grid == [2]  # 300 pairs, 256 by the first
    assert turned.num_bytes == 3 * 8 + 400 + 2 * 3 * 4 * 200
