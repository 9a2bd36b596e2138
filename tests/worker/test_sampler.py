"""The sampler against a slow, obvious reference, row by row, in the order of rule 9."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.messages import NewRow
from engine.sampling_params import LEAST_REPETITION_PENALTY
from engine.worker.sampling.exact_draw import Cuts, cut, cut_and_draw, draw, integer_weights
from engine.worker.sampling.philox import random_words
from engine.worker.sampling.sampler import Sampler
from engine.worker.sampling.sampling_table import SamplingTable
from engine.worker.sampling.token_rules import Phrases, TokenRules
from tests.worker.worker_kit import new_row

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------ the reference


def reference_adjust(logits: torch.Tensor, row: NewRow, tokens: list[int]) -> torch.Tensor:
    """Rules and penalties on one row, one token at a time. logits: fp32 [vocab]."""
    params, x = row.params, [value.item() for value in logits]
    if params.allowed_token_ids:
        x = [v if i in params.allowed_token_ids else -math.inf for i, v in enumerate(x)]
    before_bans = list(x)
    for word in params.bad_words_token_ids or []:
        if len(word) == 1 or tokens[-(len(word) - 1) :] == word[:-1]:
            x[word[-1]] = -math.inf
    if len(tokens) - row.num_prompt_tokens < params.min_tokens:
        for token in row.stop_token_ids:
            x[token] = -math.inf
    if max(x) == -math.inf:
        x = before_bans
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    output = tokens[row.num_prompt_tokens :]
    for token in range(len(x)):
        if token in tokens:
            r = params.repetition_penalty
            x[token] = x[token] / r if x[token] > 0 else x[token] * r
        x[token] -= params.frequency_penalty * output.count(token)
        x[token] -= params.presence_penalty * (token in output)
    return torch.tensor(x, dtype=torch.float32)


def reference_kept(weights: list[int], top_k: int, top_p: float, min_p: float) -> dict[int, int]:
    """{token: weight} of what the three cuts leave."""
    ranked = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    floor = math.ceil(min_p * max(weights))
    ranked = [i for i in ranked if weights[i] >= floor]
    if top_k > 0:
        ranked = ranked[:top_k]
    target = math.ceil(top_p * sum(weights[i] for i in ranked))
    kept, before = {}, 0
    for i in ranked:
        if before >= target:
            break
        kept[i] = weights[i]
        before += weights[i]
    return {i: w for i, w in kept.items() if w > 0}


def reference_token(logits: torch.Tensor, row: NewRow, tokens: list[int], sibling: int = 0) -> int:
    x = reference_adjust(logits, row, tokens)
    params = row.params
    if params.temperature == 0:
        return max(range(len(x)), key=lambda i: (x[i].item(), -i))
    p = torch.softmax((x / torch.tensor(params.temperature))[None], -1)[0]
    weights = [math.floor(value * 2**30 + 0.5) for value in p.tolist()]
    kept = reference_kept(weights, params.top_k, params.top_p, params.min_p)
    seed = np.array([row.seed + sibling])
    word = int(random_words(seed, np.array([len(tokens)]))[0])
    target = word * sum(kept.values()) >> 32
    running = 0
    for token in sorted(kept):
        running += kept[token]
        if running > target:
            return token
    raise RuntimeError("unreachable")


# --------------------------------------------------------------------------------------- the engine


def sample(
    logits: torch.Tensor, rows: list[NewRow], tokens: list[list[int]], siblings=None
) -> list[int]:
    """One step of the engine's sampler. logits: fp32 [rows, vocab]."""
    table = SamplingTable(len(rows), logits.shape[1], CPU)
    for seat, row in enumerate(rows):
        table.set(seat, row)
    metadata = table.metadata(np.arange(len(rows)), np.array(siblings or [0] * len(rows)))
    sampler = Sampler(table)
    positions = np.array([len(seen) for seen in tokens])
    adjusted = sampler.adjust(logits.clone(), metadata, token_array(tokens), positions)
    return sampler.draw(adjusted, metadata, positions).tolist()


def token_array(tokens: list[list[int]]) -> np.ndarray:
    """Return tokens as Seats keeps them: after a sequence's end are leftovers of another
    one."""
    array = np.full((len(tokens), max(map(len, tokens)) + 2), 7, np.int32)
    for line, seen in zip(array, tokens):
        line[: len(seen)] = seen
    return array


VOCAB = 40
ids = st.integers(0, VOCAB - 1)


@st.composite
def rows_and_tokens(draw_from) -> tuple[NewRow, list[int]]:
    """A row with any mixture of parameters, and its tokens."""
    pick = draw_from
    prompt = pick(st.lists(ids, min_size=1, max_size=6))
    output = pick(st.lists(ids, max_size=6))
    words = st.lists(st.lists(ids, min_size=1, max_size=3), max_size=3)
    row = new_row(
        prompt + output,
        len(prompt),
        seed=pick(st.integers(-(2**63), 2**63 - 1)),
        temperature=pick(st.sampled_from([0.0, 0.0, 0.1, 0.7, 1.0, 2.5])),
        top_k=pick(st.sampled_from([0, 0, 1, 2, 5, VOCAB, 100])),
        top_p=pick(st.sampled_from([1.0, 1.0, 0.01, 0.5, 0.9, 0.999])),
        min_p=pick(st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0])),
        repetition_penalty=pick(st.sampled_from([1.0, 1.0, 0.5, 1.7])),
        frequency_penalty=pick(st.sampled_from([0.0, 0.0, -1.0, 0.5])),
        presence_penalty=pick(st.sampled_from([0.0, 0.0, -0.5, 2.0])),
        min_tokens=pick(st.sampled_from([0, 0, 3])),
        max_tokens=20,
        logit_bias=pick(st.none() | st.dictionaries(ids, st.floats(-100, 100, width=32))),
        allowed_token_ids=pick(st.none() | st.lists(ids, min_size=1, max_size=5)),
        bad_words_token_ids=pick(st.none() | words),
        stops=pick(st.lists(ids, max_size=2)),
    )
    return row, prompt + output


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(rows_and_tokens(), min_size=1, max_size=6), st.integers(0, 10_000), st.booleans())
def test_every_mixture_of_parameters(cases, seed, coarse):
    """Coarse logits, as bf16 gives them, are full of ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(cases), VOCAB, generator=generator) * 3
    if coarse:
        logits = (logits * 2).round() / 2
    rows, tokens = [row for row, _ in cases], [seen for _, seen in cases]
    expected = [reference_token(x, row, seen) for x, row, seen in zip(logits, rows, tokens)]
    assert sample(logits, rows, tokens) == expected


@settings(max_examples=40, deadline=None)
@given(rows_and_tokens(), st.integers(0, 10_000))
def test_adjusted_logits_equal_the_reference(case, seed):
    row, tokens = case
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    table = SamplingTable(1, VOCAB, CPU)
    table.set(0, row)
    metadata = table.metadata(np.array([0]), np.array([0]))
    positions = np.array([len(tokens)])
    got = Sampler(table).adjust(logits.clone(), metadata, token_array([tokens]), positions)[0]
    torch.testing.assert_close(got, reference_adjust(logits[0], row, tokens))


# ------------------------------------------------------------------------------- rule 9, bit by bit


def mixed_rows(count: int, **shared) -> list[NewRow]:
    kinds = [
        dict(temperature=0.0),
        dict(temperature=1.0),
        dict(temperature=1.0, top_p=0.9),
        dict(temperature=0.7, top_k=50),
        dict(temperature=1.3, min_p=0.05),
        dict(temperature=1.0, top_k=40, top_p=0.95, repetition_penalty=1.2),
        dict(temperature=1.0, top_p=0.99, logit_bias={3: 2.0}, frequency_penalty=0.4),
    ]
    return [new_row([1, 2, 3], seed=i, **(kinds[i % len(kinds)] | shared)) for i in range(count)]


@pytest.mark.parametrize("vocab", [50_272, 32_000, 4_001, 77])
def test_a_row_draws_the_same_alone_and_in_any_batch(vocab):
    torch.manual_seed(vocab)
    logits = torch.randn(21, vocab) * 2.5
    rows = mixed_rows(21)
    tokens = [[1, 2, 3]] * 21
    together = sample(logits, rows, tokens)
    alone = [sample(logits[i : i + 1], rows[i : i + 1], tokens[:1])[0] for i in range(21)]
    assert together == alone
    order = torch.randperm(21).tolist()
    shuffled = sample(logits[order], [rows[i] for i in order], tokens)
    assert shuffled == [together[i] for i in order]


@pytest.mark.parametrize("vocab", [50_272, 4_001])
def test_weights_do_not_depend_on_the_batch_or_the_threads(vocab):
    torch.manual_seed(0)
    logits = torch.randn(16, vocab) * 2
    together = integer_weights(logits)
    for i in (0, 7, 15):
        assert (integer_weights(logits[i : i + 1]) == together[i]).all()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert (integer_weights(logits) == together).all()
    finally:
        torch.set_num_threads(threads)


def test_same_seed_and_position_draw_the_same_word_whatever_was_drawn_before():
    table = SamplingTable(2, 10, CPU)
    for seat in range(2):
        table.set(seat, new_row([1], seed=seat + 5, temperature=1.0))
    metadata = table.metadata(np.arange(2), np.zeros(2, np.int64))
    for positions in ([3, 9], [4, 10], [5, 11], [30, 37], [31, 37], [3, 9], [18, 24], [19, 25]):
        expected = random_words(np.array([5, 6]), np.array(positions))
        assert (metadata.words(np.array(positions)) == expected).all()


def test_siblings_draw_with_their_own_seeds():
    logits = torch.randn(1, 500).expand(4, -1) * 2
    row = new_row([1, 2], seed=2**63 - 2, temperature=1.0, n=4)
    got = sample(logits, [row] * 4, [[1, 2]] * 4, siblings=[0, 1, 2, 3])
    for i in range(4):
        seed = (2**63 - 2 + i + 2**63) % 2**64 - 2**63  # wraps around
        solo = new_row([1, 2], seed=seed, temperature=1.0)
        assert sample(logits[:1], [solo], [[1, 2]]) == [got[i]]


# --------------------------------------------------------------------------------------- the draw


def cuts(rows: int, top_k: int, top_p: float, min_p: float) -> Cuts:
    ones = torch.ones(rows, dtype=torch.float64)
    return Cuts(torch.full((rows,), top_k), ones * top_p, ones * min_p)


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
@pytest.mark.parametrize("coarse", [False, True])
def test_looking_at_the_best_chunks_equals_sorting_everything(scale, coarse):
    """A vocabulary of more than 128 chunks, in distributions from flat to sharp."""
    torch.manual_seed(1)
    vocab, rows = 5_001, 4
    logits = torch.randn(rows, vocab) * scale
    if coarse:
        logits = logits.bfloat16().float()
    weights = integer_weights(logits)
    words = torch.randint(0, 2**32, (rows,))
    for top_k in (1, 128, 129, 4_500, vocab):
        for top_p in (0.9, 1.0):
            for min_p in (0.0, 0.02):
                wanted = cuts(rows, top_k, top_p, min_p)
                kept = cut(weights, wanted)
                assert (draw(kept, words) == cut_and_draw(weights, wanted, words)).all()
                expected = reference_kept(weights[0, :vocab].tolist(), top_k, top_p, min_p)
                got = kept[0].nonzero()[:, 0]
                assert dict(zip(got.tolist(), kept[0, got].tolist())) == expected


def test_ties_keep_the_lower_ids():
    weights = integer_weights(torch.zeros(1, 12_000))
    kept = cut(weights, cuts(1, 10, 1.0, 0.0))
    assert kept[0].nonzero()[:, 0].tolist() == list(range(10))
    for word in (0, 2**31, 2**32 - 1):
        token = cut_and_draw(weights, cuts(1, 10, 1.0, 0.0), torch.tensor([word]))
        assert token.item() == word * 10 >> 32


def test_the_ends_of_the_line():
    """The smallest and the greatest word, with zero weights before, between and after."""
    weights = torch.zeros(1, 96, dtype=torch.int32)
    weights[0, [33, 40, 70]] = torch.tensor([1, 5, 2], dtype=torch.int32)
    words = [0, 2**29 - 1, 2**29, 6 * 2**29 - 1, 6 * 2**29, 2**32 - 1]
    got = draw(weights.expand(6, -1).contiguous(), torch.tensor(words))
    assert got.tolist() == [33, 33, 40, 40, 70, 70]


def test_draws_follow_the_distribution():
    """Chi-square over 40,000 draws at 40,000 positions of one seed: each token as often as its
    probability says, under temperature, top_k and top_p."""
    count, vocab = 40_000, 30
    torch.manual_seed(0)
    x = torch.randn(vocab) * 1.5
    weights = integer_weights((x / 1.2)[None])
    kept = cut(weights, cuts(1, 20, 0.95, 0.0))
    words = torch.from_numpy(random_words(np.full(count, 42), np.arange(count)))
    tokens = draw(kept.expand(count, -1).contiguous(), words)
    observed = torch.bincount(tokens, minlength=kept.shape[1]).double()
    p = torch.softmax((x / 1.2).double(), -1)
    order = p.argsort(descending=True)
    p_kept = torch.zeros(vocab, dtype=torch.float64)
    top = order[:20]
    needed = int((p[top].cumsum(0) < 0.95 * p[top].sum()).sum()) + 1
    p_kept[top[:needed]] = p[top[:needed]]
    expected = p_kept / p_kept.sum() * count
    assert observed[:vocab][expected == 0].sum() == 0
    used = expected > 0
    chi_square = ((observed[:vocab] - expected)[used] ** 2 / expected[used]).sum().item()
    freedom = int(used.sum()) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # beyond 4 sigma: less than 1 in 1000


# --------------------------------------------------------------------------------------- the table


def test_penalties_count_the_tokens_that_were_drawn():
    """A row's counts after appending equal those of a row made anew with all tokens (rule 9)."""
    table = SamplingTable(3, VOCAB, CPU)
    options = dict(temperature=0.0, frequency_penalty=0.7, presence_penalty=0.1)
    for seat in range(3):
        table.set(seat, new_row([1, 2, seat], **(options if seat != 1 else {})))
    for token in (4, 4, 9):
        table.appended(np.array([2, 1, 0]), np.array([token, 7, token]))
    anew = SamplingTable(1, VOCAB, CPU)
    anew.set(0, new_row([1, 2, 0, 4, 4, 9], prompt=3, **options))
    x = torch.randn(1, VOCAB)
    tokens, zero = token_array([[1, 2, 0, 4, 4, 9]]), np.array([0])
    results = [
        Sampler(t).adjust(x.clone(), t.metadata(zero, zero), tokens, np.array([6]))
        for t in (table, anew)
    ]
    assert (results[0] == results[1]).all() and (results[0] != x).sum() == 2


def test_a_seat_forgets_its_last_sequence():
    """Lines of the count table are reused, and come back clean."""
    table = SamplingTable(1, VOCAB, CPU)
    for seen in ([1, 2], [3], [1, 4, 5, 6]):
        for _ in range(5):
            table.set(0, new_row(seen, prompt=1, frequency_penalty=0.5))
    assert len(table.counts.table) == 4  # 15 sequences, one by one, never needed more than a line
    assert table.counts.table[0].nonzero()[:, 0].tolist() == [4, 5, 6]
    table.set(0, new_row([1], temperature=0.0))
    metadata = table.metadata(np.array([0]), np.array([0]))
    assert metadata.plain


def test_steps_look_back_only_while_a_sequence_has_penalties():
    """A request with penalties that has ended must not keep the overlapped loop slow."""
    table = SamplingTable(2, VOCAB, CPU)
    table.set(0, new_row([1], frequency_penalty=0.5))
    table.set(1, new_row([1]))
    assert table.any_history
    table.set(0, new_row([2], presence_penalty=0.5))
    table.clear(0)
    assert not table.any_history
    table.clear(1)
    assert not table.any_history


def test_a_steady_batch_is_gathered_once():
    table = SamplingTable(2, VOCAB, CPU)
    for seat in range(2):
        table.set(seat, new_row([1], temperature=1.0))
    zeros = np.zeros(2, np.int64)
    first = table.metadata(np.arange(2), zeros)
    assert table.metadata(np.arange(2), zeros) is first
    assert table.metadata(np.arange(2), np.array([0, 1])) is not first
    table.set(1, new_row([1], temperature=0.5))
    assert table.metadata(np.arange(2), zeros).temperature[1, 0] == 0.5


def test_a_row_with_everything_forbidden_still_draws_an_allowed_token():
    """The only allowed token is the stop token, which min_tokens forbids."""
    row = new_row([1], allowed_token_ids=[7], min_tokens=5, stops=[7])
    other = new_row([1], bad_words_token_ids=[[3]])
    logits = torch.zeros(2, VOCAB)
    logits[:, 3] = 1.0
    assert sample(logits, [row, other], [[1], [1]]) == [7, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 100.0])
@pytest.mark.parametrize("penalty", [LEAST_REPETITION_PENALTY, 100.0])
def test_the_most_extreme_parameters_leave_logits_finite(temperature, penalty):
    """Infinite logits are reported as the checkpoint's fault, so no parameter may cause them."""
    row = new_row([1, 2, 3], repetition_penalty=penalty, temperature=temperature, seed=1)
    logits = torch.tensor([[3e3, 9e3, -9e3, 0.0, 5.0]])
    assert 0 <= sample(logits, [row], [[1, 2, 3]])[0] < 5


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=5), max_size=30),
    tokens=st.lists(st.integers(0, 3), max_size=8),
)
def test_phrases_are_found_by_their_ends(words, tokens):
    naive = [
        w[-1]
        for w in words
        if tokens[len(tokens) - len(w) + 1 :] == w[:-1] and len(tokens) >= len(w) - 1
    ]
    assert sorted(Phrases(words).banned_after(np.array(tokens, np.int32))) == sorted(naive)


def test_rules_are_prepared_once_for_siblings_and_for_all_steps_of_the_same_rows(monkeypatch):
    made = []
    real = TokenRules.of
    monkeypatch.setattr(TokenRules, "of", lambda *of: made.append(1) or real(*of))
    table = SamplingTable(4, VOCAB, CPU)
    row = new_row([1], allowed_token_ids=list(range(VOCAB - 1)), bad_words_token_ids=[[2], [3, 4]])
    for seat in range(4):
        table.set(seat, row)
    rules = table.metadata(np.arange(4)).rules
    assert made == [1] and table.metadata(np.arange(4)).rules is rules
    table.clear(3)
    assert table.metadata(np.arange(3)).rules is not rules
