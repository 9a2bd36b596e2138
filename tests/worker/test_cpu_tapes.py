"""Decode steps replayed from tapes equal the steps themselves, for batches that grow and shrink."""

from __future__ import annotations

import random

import pytest

from engine.kernels import cpu
from engine.trace.events import GraphCaptured, GraphReplayed, KernelLaunched
from engine.trace.recorder import Recorder
from engine.worker.graphs import cpu_tapes
from engine.worker.model_runner import ModelRunner
from tests.worker.worker_kit import BLOCK, VOCAB, Driver, make_config, new_row, row

pytestmark = pytest.mark.skipif(not cpu.available(), reason=cpu.why())
SEQUENCES = 6


def load(tiny, level: str = "steps", **options):
    recorder, events = Recorder(level=level), []
    recorder.subscribe(events.extend)
    runner = ModelRunner(make_config(tiny[0], **options), recorder)
    runner.load()
    return runner, events


def play(runner: ModelRunner) -> list[list[int]]:
    """Sequences of different lengths come and go; all draw at random, so that a small difference
    of logits changes a text. Returns the texts."""
    rng, driver = random.Random(5), Driver(runner)
    lengths = [rng.randrange(3, 20) for _ in range(SEQUENCES)]
    texts: list[list[int]] = [[] for _ in lengths]
    blocks = [list(range(10 * i, 10 * i + 10)) for i in range(SEQUENCES)]
    for step in range(24):
        present = [i for i in range(SEQUENCES) if 2 * i <= step < 2 * i + 12]
        rows = []
        for i in present:
            known = lengths[i] + len(texts[i])
            if texts[i]:
                rows.append(row(str(i), known - 1, 1))
            else:
                prompt = [rng.randrange(VOCAB) for _ in range(lengths[i])]
                new = new_row(prompt, seed=i, temperature=1.5)
                rows.append(row(str(i), 0, known, blocks=blocks[i], new=new))
        for i, tokens in zip(present, driver.execute(rows).tokens):
            texts[i] += tokens
    return texts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_texts_are_those_of_the_steps_themselves(tiny, dtype):
    options = dict(dtype=dtype, num_gpu_blocks_override=SEQUENCES * 10)
    eager, _ = load(tiny, enforce_eager=True, **options)
    assert eager.graphs is None
    expected = play(eager)
    runner, events = load(tiny, level="steps", **options)
    assert play(runner) == expected
    runner.recorder.flush()
    captured = [event.batch_size for event in events if isinstance(event, GraphCaptured)]
    assert len(captured) == len(set(captured)) >= 3, "each number of rows is captured once"
    assert all(event.num_kernels > 10 for event in events if isinstance(event, GraphCaptured))
    assert play(runner) == expected, "by now every decode step is a replay"
    runner.recorder.flush()
    assert len([event for event in events if isinstance(event, GraphCaptured)]) == len(captured)


def test_single_launches_are_recorded_when_they_are_wanted(tiny):
    """At level full each kernel of each step is in the record: nothing is played."""
    runner, events = load(tiny, level="full")
    play(runner)
    runner.recorder.flush()
    kinds = {type(event) for event in events}
    assert KernelLaunched in kinds and GraphReplayed not in kinds and GraphCaptured not in kinds

    runner, events = load(tiny, level="steps")
    runner.recorder.full_requests.add("0")
    driver = Driver(runner)
    driver.execute([row("0", 0, 3, blocks=[0], new=new_row([1, 2, 3]))])
    runner.recorder.full_step = True
    driver.execute([row("0", 3, 1)])
    runner.recorder.full_step = False
    runner.recorder.flush()
    steps = [event for event in events if isinstance(event, (KernelLaunched, GraphCaptured))]
    assert steps and all(isinstance(event, KernelLaunched) for event in steps)
    driver.execute([row("0", 4, 1, blocks=[1] if BLOCK == 4 else [])])
    runner.recorder.flush()
    assert any(isinstance(event, GraphCaptured) for event in events)


def test_a_step_that_is_mostly_torchs_is_computed_as_always(tiny, monkeypatch):
    expected = play(load(tiny, enforce_eager=True)[0])
    monkeypatch.setattr(cpu_tapes, "TORCH_OPERATIONS", -1)
    runner, events = load(tiny)
    assert play(runner) == expected
    assert runner.graphs.refused and not runner.graphs.tapes
    runner.recorder.flush()
    assert not [event for event in events if isinstance(event, GraphCaptured)]
