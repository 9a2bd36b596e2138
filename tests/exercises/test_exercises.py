"""The checks of docs/EXERCISES.md: each runs on the solution, and on your file if there is one.

A check of a changed engine is also run on the engine as it is: it must fail there, or it would
check nothing.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.core.block_pool import BlockPool
from engine.core.preemption import PreemptionCosts
from engine.core.scheduler import Scheduler
from engine.trace import events as ev
from engine.trace.files import read_all
from engine.trace.replay import Replay
from engine.worker.sampling.sample_step import SampleStep
from tests.support.core_harness import Harness
from tests.support.engine_on_tokens import TokenEngine

ROOT = Path(__file__).resolve().parents[2]
RECORDS = [ROOT / "docs" / "records" / f"{name}.jsonl" for name in ("crowd", "tour")]
FOLDERS = {"solution": Path(__file__).parent / "solutions", "yours": ROOT / "exercises"}


@pytest.fixture(params=FOLDERS)
def load(request):
    """`load("waste")` is your module of that name, or the solution's."""

    def loaded(name: str):
        path = FOLDERS[request.param] / f"{name}.py"
        if not path.exists():
            pytest.skip(f"exercises/{name}.py is not there yet")
        spec = importlib.util.spec_from_file_location(f"exercise_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + i) % 50 for i in range(length)]


# ------------------------------------------------------------------------------------ 1. reading


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_1_reading(load, path):
    module, events = load("reading"), read_all(path)
    waits = {e.request_id: e.waited_us for e in events if isinstance(e, ev.RequestAdmitted)}
    answer = module.longest_wait(events)
    assert waits.get(answer) == max(waits.values()), f"longest_wait says {answer!r}"
    preempted = [e.request_id for e in events if isinstance(e, ev.RequestPreempted)]
    answer = module.most_preempted(events)
    most = max(map(preempted.count, preempted), default=0)
    assert preempted.count(answer) == most, f"most_preempted says {answer!r}"
    assert preempted or answer == ""


# -------------------------------------------------------------------------------------- 2. waste


def counted_waste(path: Path) -> float:
    """The same number, another way: slot by slot."""
    replay = Replay.of(read_all(path))
    used, filled = 0, 0
    for position, event in enumerate(list(replay.events)):
        if isinstance(event, ev.StepPlanned):
            state = replay.seek(position + 1)
            slots, full = set(), set()
            for name, table in state.tables.items():
                all_slots = [(b, offset) for b in table for offset in range(state.block_size)]
                slots |= set(all_slots)
                full |= set(all_slots[: state.sequences[name].num_computed_tokens])
            used, filled = used + len(slots), filled + len(full)
    return 1 - filled / used


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_2_waste(load, path):
    assert load("waste").waste(read_all(path)) == pytest.approx(counted_waste(path), abs=1e-9)


# --------------------------------------------------------------------------------- 3. scheduling


def order_under(policy: type[Scheduler]) -> list[str]:
    """The order in which three requests end on one seat."""
    harness = Harness(options={"max_num_seqs": 1}, scheduler=policy)
    for name, length in (("long", 30), ("short", 5), ("middle", 12)):
        harness.add(name, prompt(length, start=length), max_tokens=4)
    harness.run()
    harness.expect_solo_answers()
    harness.close()
    return [name for name, _index in harness.finish_reasons]


def test_3_scheduling(load):
    assert order_under(load("scheduling").Policy) == ["short", "middle", "long"]


def test_3_is_not_solved_by_the_engine_itself():
    assert order_under(Scheduler) == ["long", "short", "middle"]


# ----------------------------------------------------------------------------------- 4. eviction


def tokens_found_again(pool: type[BlockPool]) -> int:
    """Tokens of a popular prompt that are still cached after a flood of others."""
    scheduler = partial(Scheduler, pool=pool)
    harness = Harness(num_blocks=8, block_size=4, max_model_len=32, scheduler=scheduler)
    popular = prompt(13)
    for i in range(4):
        harness.add(f"popular-{i}", popular, max_tokens=1)
        harness.run()
    for i in range(6):  # each fills half of the pool, once
        harness.add(f"once-{i}", prompt(13, start=15 + 5 * i), max_tokens=1)
        harness.run()
    harness.add("again", popular, max_tokens=1)
    harness.run()
    harness.expect_solo_answers()
    admitted = [e for e in harness.recorded(ev.RequestAdmitted) if e.request_id == "again"]
    harness.close()
    return admitted[0].num_cached_tokens


def test_4_eviction(load):
    found = tokens_found_again(load("eviction").Pool)
    assert found == 12, f"only {found} tokens of the popular prompt are still there"


def test_4_is_not_solved_by_the_engine_itself():
    assert tokens_found_again(BlockPool) == 0


# --------------------------------------------------------------------------------- 5. preemption


def preemptions_under(costs: type[PreemptionCosts]) -> list[ev.RequestPreempted]:
    harness = Harness(
        num_blocks=12,
        num_host_blocks=24,
        swap_us_per_block=50.0,
        options={"preemption_mode": "auto", "max_num_batched_tokens": 24},
        scheduler=partial(Scheduler, costs=costs),
    )
    for i in range(8):
        harness.add(f"r{i}", prompt(3 + 4 * (i % 2), start=i), max_tokens=16)
    harness.run()
    harness.expect_solo_answers()
    preempted = harness.recorded(ev.RequestPreempted)
    harness.close()
    return [e for e in preempted if e.num_computed_tokens]


def follows_the_rule(preempted: list[ev.RequestPreempted]) -> bool:
    return all((e.mode == "swap") == (e.num_computed_tokens >= 8) for e in preempted)


def test_5_preemption(load):
    preempted = preemptions_under(load("preemption").Costs)
    sizes = [event.num_computed_tokens for event in preempted]
    assert min(sizes) < 8 <= max(sizes), "this check would check nothing"
    assert follows_the_rule(preempted), [(e.num_computed_tokens, e.mode) for e in preempted]


def test_5_is_not_solved_by_the_engine_itself():
    assert not follows_the_rule(preemptions_under(PreemptionCosts))


# ------------------------------------------------------------------------------------ 6. sampler


@pytest.fixture(scope="module")
def echoing_model(tmp_path_factory) -> Path:
    """A model that likes to say its last token again: its head is the embedding."""
    folder = tmp_path_factory.mktemp("exercise") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.02,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
    model.save_pretrained(folder)
    return folder


def repeats_with(sample_step: type[SampleStep], model: Path) -> int:
    """How often a token follows itself in four greedy answers."""
    options = {"block_size": 4, "num_gpu_blocks_override": 64, "max_num_seqs": 8}
    with TokenEngine(model, sample_step, **options) as engine:
        prompts = [[3, 9, 27 + i] for i in range(4)]
        answers = engine.run(prompts, max_tokens=12, temperature=0.0, ignore_eos=True)
    texts = [p + sequences[0] for p, sequences in zip(prompts, answers, strict=True)]
    return sum(a == b for text in texts for a, b in pairwise(text[2:]))


def test_6_sampler(load, echoing_model):
    assert repeats_with(load("sampler").NoRepeat, echoing_model) == 0


def test_6_is_not_solved_by_the_engine_itself(echoing_model):
    assert repeats_with(SampleStep, echoing_model) > 10
