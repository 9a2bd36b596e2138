"""Rule 11 with a draft model: whatever it proposes, each request gets what it gets without.

A copy of the model proposes what the model is about to draw, so nearly all is right if its pages
hold what they should; another model with random weights proposes what is nearly always wrong.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import ConfigError
from engine.models.errors import ModelError
from engine.sampling_params import SamplingParams
from engine.trace import events
from tests.models import tiny_models
from tests.parity.test_speculation import KINDS, WAYS, Workload, answers, requests
from tests.support.cases import mostly
from tests.support.engine_on_tokens import TokenEngine

MOST = 3
MOSTLY = ("together", "chunked", "launched-ahead", "swapped")


def draft(folder, most: int = MOST) -> dict:
    return {"method": "draft", "model": str(folder), "num_speculative_tokens": most}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, seed in (("same", 0), ("other", 1)):
        found[name] = tmp_path_factory.mktemp(name)
        tiny_models.save(tiny_models.NATIVE["llama"](), found[name], seed=seed)
    return found


@pytest.fixture(scope="module")
def tiny(folders):
    prompts, params = requests(tiny_models.VOCAB, 24, 18)
    every = len(KINDS)  # one of each kind
    return Workload(folders["same"], "float32", 24, (prompts[:every], params[:every]))


def counts(engine: TokenEngine) -> tuple[int, int]:
    verified = engine.recorded(events.SpecVerified)
    return sum(e.num_proposed for e in verified), sum(e.num_accepted for e in verified)


PAIRS = [
    pytest.param(way, proposer, marks=[pytest.mark.full] if seldom else [])
    for way in WAYS
    for proposer, seldom in (("same", way not in MOSTLY), ("other", way != "swapped"))
]


@pytest.mark.parametrize(("way", "proposer"), PAIRS)
def test_in_fp32(tiny, folders, way, proposer):
    options = dict(WAYS[way])
    with tiny.start(speculative_config=draft(folders[proposer]), **options) as engine:
        assert answers(engine, tiny.prompts, tiny.params) == tiny.alone
        proposed, right = counts(engine)
        assert proposed > (10 if "max_num_batched_tokens" in options else 75)
        if proposer == "other":
            assert right < 0.15 * proposed


GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
FORKING = SamplingParams(temperature=1e-5, max_tokens=20, n=3, seed=1, ignore_eos=True)


def all_right(engine: TokenEngine) -> bool:
    """Return whether a copy of the model proposed only what was drawn."""
    proposed, right = counts(engine)
    engine.forget_events()
    return right == proposed > 0


@pytest.mark.parametrize("way", mostly(list(WAYS), *MOSTLY))
def test_the_pages_hold_what_they_should(tiny, folders, way):
    """A copy is right always: after prefixes, chunks, forks, copies, swaps and preemptions."""
    options, config = dict(WAYS[way]), draft(folders["same"])
    if options.get("small"):
        options["max_num_seqs"] = 8
    params = [GREEDY, FORKING] * (len(tiny.prompts) // 2)
    with tiny.start(speculative_config=config, **options) as engine:
        engine.run(tiny.prompts, params)
        assert all_right(engine)
        if options.get("small"):
            return
        engine.run([[*p, 5, 6] for p in tiny.prompts], params)  # finds prefixes of the first round
        assert all_right(engine)


def test_it_catches_up_with_what_was_computed_without_it(tiny, folders):
    """Tokens of steps without proposals, and more of a prompt than a step may compute."""
    with tiny.start(speculative_config=draft(folders["same"]), max_num_batched_tokens=9) as engine:
        speculator = engine.core.scheduler.speculator
        most = speculator.most
        engine.run([tiny.prompts[0]], [GREEDY])
        assert all_right(engine)
        turn = 0

        def now_and_then(*args):
            nonlocal turn
            turn += 1
            speculator.most = most if turn % 7 == 0 else 0
            return choose(*args)

        choose, speculator.choose = speculator.choose, now_and_then
        engine.run(tiny.prompts[:4], [GREEDY] * 4)
        assert all_right(engine)


def test_its_text_may_end_first(tiny, folders):
    """Behind an end token nothing is proposed, also where min_tokens forbids the model to end."""
    with tiny.start(speculative_config=draft(folders["same"])) as engine:
        [[text]] = engine.run([tiny.prompts[0]], [GREEDY])
        ends = SamplingParams(
            temperature=0.0, max_tokens=20, min_tokens=18, stop_token_ids=text[3:8:2],
            ignore_eos=True,
        )  # fmt: skip
        engine.forget_events()
        [[other]] = engine.run([tiny.prompts[0]], [ends])
        verified = engine.recorded(events.SpecVerified)
    assert len({e.num_proposed for e in verified} | {0}) > 2
    assert {e.why for e in verified if not e.num_proposed} == {
        "the draft model would end the text here"
    }
    with tiny.start() as engine:
        assert engine.run([tiny.prompts[0]], [ends]) == [[other]]


def padded(folder: Path, target: Path, rows: int) -> Path:
    """The same model with more rows in its tables, some of which win; and a tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    known = tiny_models.VOCAB
    model.resize_token_embeddings(known + rows, mean_resizing=False)
    with torch.no_grad():
        random = torch.Generator().manual_seed(5)
        more = torch.randn(rows, model.config.hidden_size, generator=random)
        head = model.get_output_embeddings().weight
        head[known:] = more * head[:known].std()
    model.save_pretrained(target)
    for place in (folder, target):
        vocab = {f"t{token}": token for token in range(known)}
        (place / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    return target


@pytest.mark.parametrize("larger", ["draft", "model"])
def test_tables_of_one_tokenizer_may_be_padded_differently(folders, tmp_path, monkeypatch, larger):
    """Tokens that only one of the two has are no proposals, and what the draft lacks is some
    other token to it."""
    # The copy is not smaller than the model: padding would make it too large.
    monkeypatch.setattr("engine.worker.draft_model.num_parameters", lambda model: 0)
    shutil.copytree(folders["same"], tmp_path / "plain")
    plain = tmp_path / "plain"
    wide = padded(plain, tmp_path / "wide", 31)
    model, proposing = (plain, wide) if larger == "draft" else (wide, plain)
    prompts, params = requests(tiny_models.VOCAB, 24, 18)
    every = len(KINDS)
    workload = Workload(model, "float32", 24, (prompts[:every], params[:every]))
    with workload.start(speculative_config=draft(proposing)) as engine:
        found = answers(engine, workload.prompts, workload.params)
        assert found == workload.alone
        proposed, right = counts(engine)
    assert proposed > right > 20
    drawn = {token for answer in found for tokens, *_ in answer.values() for token in tokens}
    assert (max(drawn) >= tiny_models.VOCAB) == (larger == "model")


@pytest.mark.parametrize("change", ["missing", "vocabulary", "larger", "shorter", "token"])
def test_what_cannot_propose_is_refused_in_one_line(folders, tmp_path, change):
    config = tiny_models.NATIVE["llama"]()
    if change == "missing":
        place, message, error = (
            tmp_path / "none",
            "the draft model of --spec.*not a folder",
            ModelError,
        )
    elif change == "vocabulary":
        config.vocab_size += 1
        message, error = r"vocabulary of 98 tokens, .* has 97, .* isn't padding", ModelError
        place = tmp_path
    elif change == "larger":
        config.num_hidden_layers += 1
        place, message, error = tmp_path, "parameters, more than", ModelError
    elif change == "shorter":
        config.max_position_embeddings //= 2
        place, message, error = tmp_path, "has 32 positions.*--max-model-len to 32", ConfigError
    else:
        place, message, error = tmp_path, "token 1 is 'b' for .* 'c' for the draft", ModelError
    if place == tmp_path:
        tiny_models.save(config, tmp_path)
    if change == "token":
        write = '{"model": {"vocab": {"a": 0, "%s": 1}}}'
        (tmp_path / "tokenizer.json").write_text(write % "c")
        model = tmp_path / "model"
        tiny_models.save(config, model)
        (model / "tokenizer.json").write_text(write % "b")
    else:
        model = folders["same"]
    with pytest.raises(error, match=message) as told:
        TokenEngine(model, speculative_config=draft(place))
    assert "\n" not in str(told.value)
