"""The runner on a tiny Llama, driven by plans written by hand: its greedy tokens must be those of
transformers' generate, however the work is cut up (rule 10)."""

from __future__ import annotations

import random
import time

import pytest
import torch

from engine.config import ConfigError
from engine.trace.events import (
    EngineKvSized,
    EngineModelLoaded,
    EngineWarning,
    SampleDrawn,
)
from engine.trace.recorder import Recorder
from engine.worker.model_runner import ModelRunner
from engine.worker.sampling import sample_step
from tests.worker.worker_kit import BLOCK, VOCAB, make_config, new_row, plan_of, row

PROMPT = [5, 99, 7, 42, 13, 77, 3, 120, 8, 61, 33, 2, 150]
BLOCKS = [9, 4, 30, 17, 50, 3, 21, 40]  # in no order: pages lie anywhere


def generate(model, prompt: list[int], count: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),  # or token 0 counts as padding
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    text = out[0, len(prompt) :].tolist()
    assert len(text) == count
    return text


def test_prefill_and_decode_equal_transformers(driver, tiny):
    first = driver.execute([row("a", 0, len(PROMPT), blocks=BLOCKS, new=new_row(PROMPT))])
    rest = driver.decode("a", len(PROMPT) + 1, 15, [])
    assert first.tokens[0] + rest == generate(tiny[1], PROMPT, 16)
    assert first.prepare_us > 0 and first.forward_us > 0 and first.sample_us > 0


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_chunked_prefill_equals_transformers(driver, tiny, chunk):
    tokens = []
    for start in range(0, len(PROMPT), chunk):
        count = min(chunk, len(PROMPT) - start)
        at_end = start + count == len(PROMPT)
        part = row("a", start, count, samples=int(at_end))
        part.new = new_row(PROMPT) if start == 0 else None
        part.table_start = -(-start // BLOCK)
        part.blocks = BLOCKS[part.table_start : -(-(start + count) // BLOCK)]
        out = driver.execute([part])
        assert len(out.tokens[0]) == at_end
        tokens += out.tokens[0]
    tokens += driver.decode("a", len(PROMPT) + 1, 9, BLOCKS)
    assert tokens == generate(tiny[1], PROMPT, 10)


def test_mixed_batch_comes_back_in_the_order_of_the_plan(driver, tiny):
    """A prefill row stands before decode rows in the plan; the batch puts decodes first."""
    prompts = [PROMPT, PROMPT[3:9], list(range(20, 40))]
    blocks = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14, 15, 16]]
    expected = [generate(tiny[1], prompt, 3) for prompt in prompts]
    for name, i in (("b", 1), ("c", 2)):
        out = driver.execute(
            [row(name, 0, len(prompts[i]), blocks=blocks[i], new=new_row(prompts[i]))]
        )
        assert out.tokens == [expected[i][:1]]
    out = driver.execute(
        [
            row("c", len(prompts[2]), 1),
            row("a", 0, len(PROMPT), blocks=blocks[0], new=new_row(PROMPT)),
            row("b", len(prompts[1]), 1),
        ]
    )
    assert out.tokens == [[expected[2][1]], [expected[0][0]], [expected[1][1]]]
    out = driver.execute(
        [
            row("b", len(prompts[1]) + 1, 1),
            row("a", len(PROMPT), 1),
            row("c", len(prompts[2]) + 1, 1),
        ]
    )
    assert out.tokens == [[expected[1][2]], [expected[0][1]], [expected[2][2]]]


def test_random_walk_over_many_sequences(driver, tiny):
    """Random chunks, arrivals, departures and recomputation; every text is transformers'."""
    chance = random.Random(3)
    prompts = {
        str(i): [chance.randrange(VOCAB) for _ in range(chance.randint(1, 20))] for i in range(10)
    }
    expected = {name: generate(tiny[1], prompt, 12) for name, prompt in prompts.items()}
    free = list(range(64))
    waiting, running, dropped = list(prompts), {}, []
    done = 0
    while done < len(prompts):
        if waiting and len(running) < 5:
            name = waiting.pop()
            blocks = [free.pop(chance.randrange(len(free))) for _ in range(8)]
            known = len(prompts[name]) + chance.choice([0, 0, 5])  # 5: resumed with its output
            running[name] = {"computed": 0, "known": known, "blocks": blocks, "sent": False}
        rows, states = [], []
        for name, state in running.items():
            if chance.random() < 0.2:
                continue
            left = state["known"] - state["computed"]
            count = min(left, chance.randint(1, 9))
            part = row(name, state["computed"], count, samples=int(count == left))
            if not state["sent"]:
                tokens = (prompts[name] + expected[name])[: state["known"]]
                part.new, part.blocks = new_row(tokens), state["blocks"]
                state["sent"] = True
            rows.append(part)
            states.append((name, state))
        out = driver.execute(rows, dropped=dropped)
        dropped = []
        for part, (name, state), tokens in zip(rows, states, out.tokens):
            state["computed"] += part.num_tokens
            if part.samples:
                text = prompts[name] + expected[name]
                assert tokens == [text[state["known"]]], name
                state["known"] += 1
                if state["known"] == len(text):
                    done += 1
                    free += running.pop(name)["blocks"]
                    dropped.append(name)


def test_fork_shares_blocks_and_copies_on_write(driver):
    """n = 3 from one prompt: sibling i equals a solo run with seed + i."""
    options = dict(temperature=1.0, top_p=0.95)

    def solo(seed):
        name = f"solo {seed}"
        new = new_row(PROMPT, seed=seed, **options)
        out = driver.execute([row(name, 0, len(PROMPT), blocks=range(40, 48), new=new)])
        rest = driver.decode(name, len(PROMPT) + 1, 6, [])
        driver.execute([], dropped=[name])
        return out.tokens[0] + rest

    expected = [solo(seed) for seed in (100, 101, 102)]
    assert len({tuple(text) for text in expected}) == 3
    parent = row("p", 0, len(PROMPT), 3, [0, 1, 2, 3], new_row(PROMPT, seed=100, n=3, **options))
    drawn = driver.execute([parent]).tokens[0]
    assert drawn == [text[0] for text in expected]
    # 13 prompt tokens: the fourth block holds one of them, so two of the three writers copy it
    tables = {"p": [0, 1, 2, 3, 4], "p.1": [0, 1, 2, 10, 11], "p.2": [0, 1, 2, 20, 21]}
    texts = [[token] for token in drawn]
    rows = [row("p", len(PROMPT), 1, blocks=tables["p"])]
    for i in (1, 2):
        new = new_row([*PROMPT, drawn[i]], len(PROMPT), seed=100 + i, **options)
        rows.append(row(f"p.{i}", len(PROMPT), 1, blocks=tables[f"p.{i}"], new=new))
    out = driver.execute(rows, copies=[(3, 10), (3, 20)])
    for length in range(len(PROMPT) + 1, len(PROMPT) + 6):
        for text, tokens in zip(texts, out.tokens):
            text += tokens
        out = driver.execute([row(name, length, 1) for name in tables])
    for text, tokens in zip(texts, out.tokens):
        text += tokens
    assert texts == expected


def test_swap_out_and_in_keeps_the_text(driver, tiny):
    expected = generate(tiny[1], PROMPT, 12)
    first = driver.execute([row("a", 0, len(PROMPT), blocks=[1, 2, 3, 4], new=new_row(PROMPT))])
    texts = first.tokens[0] + driver.decode("a", len(PROMPT) + 1, 3, [])
    length = len(PROMPT) + len(texts)
    driver.execute([], swap_out=[(1, 5), (2, 0), (3, 7), (4, 2)], dropped=["a"])
    noise = [11] * 16  # another sequence overwrites the blocks
    driver.execute([row("b", 0, 16, blocks=[1, 2, 3, 4], new=new_row(noise))])
    back = row("a", length - 1, 1, blocks=[30, 31, 32, 33, 34, 35])
    back.new = new_row(PROMPT + texts, len(PROMPT))
    pairs = [(5, 30), (0, 31), (7, 32), (2, 33)]
    texts += driver.execute([back], swap_in=pairs, dropped=["b"]).tokens[0]
    texts += driver.decode("a", length + 1, 7, [])
    assert texts == expected


@torch.inference_mode()
def test_swap_out_comes_before_swap_in_and_copies(driver):
    """One plan moves block 1 out, another sequence into it, and copies that: in this order."""
    cache = driver.runner.cache
    for layer in cache.layers:
        layer.k[1], layer.k[2] = 1.0, 2.0
    driver.execute([], swap_out=[(2, 0)])
    driver.execute([], swap_out=[(1, 3)], swap_in=[(0, 1)], copies=[(1, 6)])
    driver.execute([], swap_in=[(3, 7)])
    for layer in cache.layers:
        assert (layer.k[1] == 2.0).all() and (layer.k[6] == 2.0).all()
        assert (layer.k[7] == 1.0).all()


@torch.inference_mode()
def test_copies_read_before_they_write(driver):
    """(1 → 2) and (2 → 3) in one plan: 3 gets what 2 held before."""
    for layer in driver.runner.cache.layers:
        for block in (1, 2, 3):
            layer.v[block] = float(block)
    driver.execute([], copies=[(1, 2), (2, 3)])
    for layer in driver.runner.cache.layers:
        assert (layer.v[2] == 1.0).all() and (layer.v[3] == 2.0).all()


def test_recreated_row_forgets_the_old_one(driver, tiny):
    """The same name with other tokens and parameters, with and without a drop in between."""
    driver.execute(
        [row("a", 0, 5, blocks=[1, 2], new=new_row([1, 2, 3, 4, 5], logit_bias={9: 100.0}))]
    )
    out = driver.execute([row("a", 0, len(PROMPT), blocks=BLOCKS, new=new_row(PROMPT))])
    assert out.tokens[0] == generate(tiny[1], PROMPT, 1)
    out = driver.execute(
        [row("a", 0, len(PROMPT), blocks=BLOCKS, new=new_row(PROMPT, logit_bias={9: 100.0}))],
        dropped=["a"],
    )
    assert out.tokens == [[9]]


def test_dropping_an_unknown_row_is_harmless(driver):
    assert driver.execute([], dropped=["nobody"]).tokens == []


def test_a_row_that_has_finished_is_computed_harmlessly(driver, tiny):
    """The overlapped loop plans one step more than a sequence of the full context needs."""
    prompt = (PROMPT * 10)[:126]
    neighbour = driver.execute([row("n", 0, 4, blocks=[60, 61], new=new_row(PROMPT[:4]))]).tokens[0]
    out = driver.execute([row("a", 0, 126, blocks=range(32), new=new_row(prompt))])
    texts = out.tokens[0] + driver.decode("a", 127, 2, [])
    assert texts[:2] == generate(tiny[1], prompt, 2)
    neighbour += driver.execute([row("n", 4, 1)], dropped=["a"]).tokens[0]
    assert neighbour == generate(tiny[1], PROMPT[:4], 2)


def test_too_many_rows_and_too_long_rows_are_refused(driver):
    rows = [row(str(i), 0, 1, blocks=[i], new=new_row([1])) for i in range(9)]
    with pytest.raises(RuntimeError, match="all 8 are taken"):
        driver.execute(rows)
    with pytest.raises(ValueError, match="129 tokens; the context is 128"):
        driver.execute([row("x", 0, 1, new=new_row([1] * 129))], dropped=[str(i) for i in range(9)])


def test_sampled_text_is_the_same_alone_and_among_others(driver):
    """Rule 9, through the whole runner in fp32."""
    options = dict(temperature=1.3, top_k=40, frequency_penalty=0.5)

    def run(others: int) -> list[int]:
        rows = [row("a", 0, 13, blocks=range(8), new=new_row(PROMPT, seed=7, **options))]
        for i in range(others):
            new = new_row(PROMPT[i:], seed=i, temperature=0.5 * i, top_p=0.5 + i / 20)
            blocks = range(8 + 7 * i, 15 + 7 * i)
            rows.append(row(f"o{i}", 0, 13 - i, blocks=blocks, new=new))
        text = driver.execute(rows).tokens[0]
        for step in range(12):
            more = [row("a", 13 + step, 1)]
            more += [row(f"o{i}", 13 - i + step, 1) for i in range(others)]
            text += driver.execute(more[::-1]).tokens[-1]
        driver.execute([], dropped=["a", *(f"o{i}" for i in range(others))])
        return text

    alone = run(0)
    assert run(7) == alone and run(3) == alone


# ------------------------------------------------------------------- log-probabilities and events


def reference_logprobs(model, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("chunk", [13, 5, 1])
def test_prompt_logprobs_equal_transformers(driver, tiny, chunk):
    expected = reference_logprobs(tiny[1], PROMPT)
    entries = []
    for start in range(0, 13, chunk):
        count = min(chunk, 13 - start)
        part = row("a", start, count, samples=int(start + count == 13))
        if start == 0:
            part.new, part.blocks = new_row(PROMPT, prompt_logprobs=4), BLOCKS
        detail = driver.execute([part]).details.get("a")
        if detail:
            entries += detail.prompt_logprobs
    assert [entry.token_id for entry in entries] == PROMPT[1:]
    for position, entry in enumerate(entries):
        values, ids = expected[position].topk(4)
        assert entry.top_ids == ids.tolist()
        assert entry.top_logprobs == pytest.approx(values.tolist(), abs=1e-4)
        own = expected[position, entry.token_id]
        assert entry.logprob == pytest.approx(own.item(), abs=1e-4)
        assert entry.rank == (expected[position] > own).sum() + 1


def test_output_positions_have_no_prompt_logprobs(driver):
    """A resumed row computes its output again; only prompt positions are reported."""
    new = new_row([*PROMPT, 4, 8], len(PROMPT), prompt_logprobs=0)
    out = driver.execute([row("a", 0, 15, blocks=BLOCKS, new=new)])
    assert [entry.token_id for entry in out.details["a"].prompt_logprobs] == PROMPT[1:]
    assert driver.execute([row("a", 15, 1)]).details == {}


def test_logprobs_are_the_models_own(driver, tiny):
    """Before temperature, penalties and bias; for each of n draws."""
    new = new_row(PROMPT, temperature=3.0, n=3, seed=5, logprobs=2, logit_bias={17: 8.0})
    silent = row("b", 0, 4, blocks=[60], new=new_row(PROMPT[:4]))
    out = driver.execute([silent, row("a", 0, 13, samples=3, blocks=BLOCKS, new=new)])
    expected = reference_logprobs(tiny[1], PROMPT)[-1]
    assert set(out.details) == {"a"}
    logprobs = out.details["a"].logprobs
    assert [entry.token_id for entry in logprobs] == out.tokens[1]
    for entry in logprobs:
        assert entry.logprob == pytest.approx(expected[entry.token_id].item(), abs=1e-4)
        assert entry.top_ids == expected.topk(2).indices.tolist()


def test_draws_are_recorded_only_for_those_who_ask(driver, events):
    recorder = driver.runner.recorder
    recorder.full_requests.add("a")
    options = dict(temperature=0.8, top_k=5, seed=3)
    rows = [
        row("a", 0, 13, 2, BLOCKS, new_row(PROMPT, seed=3, n=2, temperature=0.8, top_k=5)),
        row("b", 0, 13, 1, range(50, 56), new_row(PROMPT, **options)),
    ]
    out = driver.execute(rows)
    recorder.flush()
    drawn = [event for event in events if isinstance(event, SampleDrawn)]
    assert [(e.request_id, e.index, e.seed) for e in drawn] == [("a", 0, 3), ("a.1", 1, 4)]
    for event, token in zip(drawn, out.tokens[0]):
        assert event.token_id == token and event.position == 13
        assert event.num_kept == 5 and 0 <= event.uniform < 1
        assert len(event.candidates) == 10
        kept = [c for c in event.candidates if c.probability > 0]
        assert len(kept) == 5 and sum(c.probability for c in kept) == pytest.approx(1)
        assert token in [c.token_id for c in kept]
    assert out.record_us > 0 and out.sample_us >= 0


def test_recording_the_draws_is_not_sampling(driver, monkeypatch):
    """A slow observer is told as such; without one, nothing is."""
    slow = sample_step.sample_drawn

    def slower(*parts):
        time.sleep(0.02)
        return slow(*parts)

    monkeypatch.setattr(sample_step, "sample_drawn", slower)
    driver.runner.recorder.full_requests.add("a")
    out = driver.execute([row("a", 0, 13, 1, BLOCKS, new_row(PROMPT, seed=3))])
    assert out.record_us > 20_000 > out.sample_us
    out = driver.execute([row("b", 0, 13, 1, range(50, 56), new_row(PROMPT, seed=3))])
    assert out.record_us == 0


# ------------------------------------------------------------------------------------------ loading


def load(tiny, **options):
    recorder, events = Recorder(level="full"), []
    recorder.subscribe(events.extend)
    runner = ModelRunner(make_config(tiny[0], **options), recorder)
    runner.load()
    recorder.close()
    return runner, events


def test_loading_says_what_it_did(tiny):
    runner, events = load(tiny)
    assert any(isinstance(event, EngineModelLoaded) for event in events)
    (sized,) = [event for event in events if isinstance(event, EngineKvSized)]
    block_bytes = 2 * 2 * 2 * 8 * BLOCK * 4  # k and v, layers, kv heads, head dim, tokens, fp32
    assert sized.bytes_per_block == runner.kv.bytes_per_block == block_bytes
    layers = runner.cache.layers
    assert sum(layer.k.nbytes + layer.v.nbytes for layer in layers) == 64 * block_bytes
    assert sized.num_blocks == runner.kv.num_blocks == 64
    assert sized.num_host_blocks == runner.kv.num_host_blocks == 8 * 128 // BLOCK
    assert sized.max_model_len == 128 and "64 blocks = 256 tokens" in sized.why
    assert sized.swap_us_per_block > 0
    assert not any(isinstance(event, SampleDrawn) for event in events)  # the warm-up is silent
    assert len(runner.seats) == 0


def test_bf16_pages_are_half_as_large(tiny):
    runner, _ = load(tiny, dtype="bfloat16")
    assert runner.kv.bytes_per_block == 512
    assert runner.cache.layers[0].k.dtype == torch.bfloat16
    out = runner.execute(plan_of(1, [row("a", 0, 13, blocks=BLOCKS, new=new_row(PROMPT))]))
    assert len(out.tokens[0]) == 1


def test_a_small_pool_shortens_the_context_and_says_so(tiny):
    runner, events = load(tiny, num_gpu_blocks_override=10)
    assert runner.kv.max_model_len == 40
    (warning,) = [event for event in events if isinstance(event, EngineWarning)]
    assert "40 tokens" in warning.message and "128" in warning.message


def test_a_context_that_cannot_be_held_is_refused(tiny):
    with pytest.raises(ConfigError, match="100 tokens, but the KV cache holds only 40"):
        load(tiny, num_gpu_blocks_override=10, max_model_len=100)


def test_a_pool_of_one_token_loads(tiny):
    runner, _ = load(tiny, num_gpu_blocks_override=1, block_size=1)
    assert runner.kv.max_model_len == 1
