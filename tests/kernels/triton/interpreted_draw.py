"""The draw in Triton's interpreter: the same tokens as `worker/sampling/exact_draw.py` defines. All
memory that it allocates is full of nonsense at first, as freed memory is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.triton import draw, draw_border
from engine.placeholders import NO_TOKEN
from engine.worker.sampling import exact_draw as definition
from tests.support.cases import cases, mostly

INF, NAN = float("inf"), float("nan")
LAST_WORD = 2**32 - 1
empty = torch.empty


def nonsense(*shape, **options) -> torch.Tensor:
    tensor = empty(*shape, **options)
    return tensor.fill_(NAN if tensor.is_floating_point() else -123_456_789)


def cuts_of(*rows: tuple[int, float, float]) -> definition.Cuts:
    """Of (top_k, top_p, min_p) of each row."""
    top_k, top_p, min_p = zip(*rows)
    floats = (torch.tensor(values, dtype=torch.float64) for values in (top_p, min_p))
    return definition.Cuts(torch.tensor(top_k), *floats)


def drawn(logits, cuts, words) -> list[int]:
    """The tokens, after comparing them with the definition's."""
    expected = definition.draw(definition.cut(definition.integer_weights(logits), cuts), words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", nonsense)
        found = draw.draw(logits, *cuts, words)
    assert found.tolist() == expected.tolist()
    return found.tolist()


@given(st.integers(1, 2600), st.integers(0, 1000), st.data())
@settings(max_examples=cases(6), deadline=None, derandomize=True, database=None)
def test_random_rows_with_cuts_of_their_own(vocab, seed, data):
    torch.manual_seed(seed)
    rows = 4
    logits = torch.randn(rows, vocab) * data.draw(st.sampled_from([0.5, 3, 20]))
    logits[1] = logits[1].round()  # ties
    logits[2, : vocab // 2] = -INF  # tokens that aren't allowed
    cut = st.tuples(
        st.one_of(st.just(vocab), st.integers(1, vocab + 2)),
        st.one_of(st.just(1.0), st.floats(1e-9, 1.0)),
        st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    )
    cuts = cuts_of(*(data.draw(cut) for _ in range(rows)))
    word = st.one_of(st.sampled_from([0, LAST_WORD]), st.integers(0, LAST_WORD))
    drawn(logits, cuts, torch.tensor([data.draw(word) for _ in range(rows)]))


@pytest.mark.parametrize("word", mostly([2**31 + 12345, LAST_WORD], 2**31 + 12345))
def test_rows_that_stand_on_a_border(word):
    vocab = 2500  # two pieces and a part of one
    torch.manual_seed(1)
    equal, normal = torch.zeros(vocab), torch.randn(vocab) * 3
    tied = torch.full((vocab,), 2.0)  # all but three are equal, in all pieces
    tied[[7, 1500, 2499]] = torch.tensor([6.0, 5.0, 1.0])
    sure = torch.full((vocab,), -50.0)
    sure[1100] = 60.0  # its weight is 2^30
    single = torch.full((vocab,), -INF)
    single[2048] = -3.0  # the first of its piece, and the only one
    rows = [
        (equal, (vocab, 1.0, 0.0)),
        (equal, (1700, 1.0, 0.0)),  # the ties end in the second piece
        (equal, (5, 0.5, 0.0)),
        (equal, (vocab, 0.7, 1.0)),
        (tied, (10, 1.0, 0.0)),
        (tied, (1030, 0.6, 0.0)),
        (tied, (vocab, 0.999, 0.001)),
        (sure, (1, 1.0, 0.0)),
        (sure, (50, 0.9, 1.0)),
        (sure, (vocab, 1e-12, 0.0)),
        (single, (vocab, 0.5, 0.0)),
        (single, (3, 1.0, 0.5)),
        (normal, (1, 1.0, 0.0)),
        (normal, (vocab + 9, 1e-12, 0.0)),
        (normal, (vocab - 1, 1.0 - 1e-12, 0.0)),
        (normal, (vocab, 1.0, 0.03)),
        (normal, (50, 0.9, 0.0)),
        (normal, (2, 0.99, 1.0)),
    ]
    cuts = cuts_of(*(cut for _, cut in rows))
    drawn(torch.stack([logits for logits, _ in rows]), cuts, torch.full((len(rows),), word))


@pytest.mark.parametrize("vocab", mostly([40, 3001], 40))
def test_no_token_where_logits_are_not_finite(vocab):
    """A row with one NaN, anywhere, or an infinite maximum: the kernel reports it as the CPU does,
    and the other rows are drawn as usual."""
    torch.manual_seed(0)
    logits = torch.randn(7, vocab)
    logits[1, -1], logits[2, 0], logits[3, 20] = NAN, NAN, INF
    logits[4], logits[5] = NAN, -INF
    logits[6, 5:] = -INF
    top_k = vocab, 5, vocab, 3, 7, vocab, 2
    cuts = cuts_of(*zip(top_k, (0.9, 0.5, 1.0, 1.0, 0.5, 1.0, 1.0), (0, 0, 0.1, 0, 0, 0, 0)))
    tokens = drawn(logits, cuts, torch.randint(0, 2**32, (7,)))
    assert [token == NO_TOKEN for token in tokens] == [False, *[True] * 5, False]


def test_a_vocabulary_of_one_token():
    logits = torch.tensor([[3.0], [NAN], [-INF], [-90.0]])
    cuts = cuts_of((1, 1.0, 0.0), (1, 0.5, 0.0), (1, 1.0, 0.0), (9, 0.1, 1.0))
    assert drawn(logits, cuts, torch.tensor([5, 5, 5, LAST_WORD])) == [0, NO_TOKEN, NO_TOKEN, 0]


def test_with_many_rows_a_program_has_several_pieces_and_draws_the_same(monkeypatch):
    torch.manual_seed(0)
    vocab = 7000
    logits, words = torch.randn(2, vocab) * 2, torch.randint(0, 2**32, (2,))
    cuts = cuts_of((vocab, 1.0, 0.0), (100, 0.5, 0.0))
    alone = drawn(logits, cuts, words)
    monkeypatch.setattr(draw, "PROGRAMS", 4)  # two for a row of seven pieces
    assert drawn(logits, cuts, words) == alone


@pytest.mark.parametrize(
    ("vocab", "block", "pieces"), [(1, 1024, 1), (128_256, 1024, 128), (600_000, 2048, 512)]
)
def test_pieces(vocab, block, pieces):
    assert draw.constants(vocab) == {"BLOCK": block, "PIECES": pieces}


def test_a_least_weight_that_fp32_does_not_hold(monkeypatch):
    """min_p's: the weight just below it is one that fp32 holds, and is cut all the same."""
    logits, word = torch.tensor([[0.0, -1.0, -30.0]]), torch.tensor([LAST_WORD])
    made: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "empty", lambda *a, **b: made.append(nonsense(*a, **b)) or made[-1])
    draw.draw(logits, *cuts_of((3, 1.0, 0.0)), word)
    [weights] = (tensor for tensor in made if tensor.shape == logits.shape)
    most, second, _ = weights[0].tolist()  # as exp() is rounded here
    assert second > 2**24
    for more, token in (0.5, 0), (-0.5, 1):  # at least one more than the second's, and just that
        for top_k in (2, 3):
            cuts = cuts_of((top_k, 1.0, (second + more) / most))
            assert draw.draw(logits, *cuts, word).tolist() == [token]


@pytest.mark.parametrize(
    ("top_k", "top_p", "launches"), [(None, 1.0, 3), (40, 1.0, 9), (None, 0.7, 9), (40, 0.7, 15)]
)
def test_a_search_that_no_row_wants_is_not_launched(top_k, top_p, launches, monkeypatch):
    torch.manual_seed(4)
    rows, vocab = 2, 1300
    logits, words = torch.randn(rows, vocab) * 3, torch.randint(0, 2**32, (rows,))
    cuts = cuts_of((top_k or vocab, top_p, 0.01), (vocab, 1.0, 0.0))
    expected = drawn(logits, cuts, words)
    names = []
    for module in (draw, draw_border):
        begin = module.start
        monkeypatch.setattr(
            module,
            "start",
            lambda name, *rest, begin=begin: names.append(name) or begin(name, *rest),
        )
    monkeypatch.setattr(torch, "empty", nonsense)
    found = draw.draw(logits, *cuts, words, top_k is not None, top_p < 1)
    assert found.tolist() == expected
    assert len(names) == launches
