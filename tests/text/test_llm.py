"""LLM on the real core, with a stand-in for the worker: what is computed is known beforehand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from engine import LLM, SamplingParams
from engine.core.scheduler import Scheduler
from engine.text.errors import TextError
from engine.trace.events import RequestFinished, RequestReceived
from engine.trace.files import read_jsonl
from engine.trace.replay import Replay
from tests.text.parrot import Parrot
from tests.text.tiny_tokenizers import byte_level_hf


@pytest.fixture
def make_llm(tmp_path, monkeypatch):
    byte_level_hf().save_pretrained(tmp_path / "model")
    open_llms = []

    def make(**options):
        monkeypatch.setattr(LLM, "_load_executor", lambda self: Parrot())
        llm = LLM(str(tmp_path / "model"), swap_space=0.0, preemption_mode="recompute", **options)
        open_llms.append(llm)
        return llm

    yield make
    for llm in open_llms:
        llm.shutdown()


def test_outputs_come_in_the_order_of_the_prompts(make_llm):
    llm = make_llm(max_num_seqs=2)
    prompts = ["hello", "the engine", "tokens tokens tokens", "world"]
    params = [SamplingParams(max_tokens=n) for n in (12, 2, 7, 1)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    for output, param in zip(outputs, params):
        (answer,) = output.outputs
        ids = output.prompt_token_ids
        expected = [ids[k % len(ids)] for k in range(param.max_tokens)]
        assert answer.token_ids == expected
        assert answer.text == llm.tokenizer.decode(expected)
        assert (answer.finish_reason, answer.stop_reason) == ("length", None)
        assert output.finished and answer.logprobs is None and answer.cumulative_logprob is None
    assert not llm.core.has_work and llm.core.stats().blocks_used == 0


def test_every_kind_of_prompt(make_llm):
    llm = make_llm()
    ids = llm.tokenizer.encode("hello")
    params = SamplingParams(max_tokens=3)
    one_text = llm.generate("hello", params, use_tqdm=False)
    one_list = llm.generate(ids, params, use_tqdm=False)
    many = llm.generate(["hello", ids], params, use_tqdm=False)
    lists = llm.generate([ids, ids], params, use_tqdm=False)
    outputs = one_text + one_list + many + lists
    assert len(outputs) == 6
    assert {tuple(output.outputs[0].token_ids) for output in outputs} == {
        tuple(one_text[0].outputs[0].token_ids)
    }
    assert one_list[0].prompt is None and one_list[0].prompt_token_ids == ids
    assert llm.generate([], use_tqdm=False) == []
    assert len(llm.generate("hello", use_tqdm=False)[0].outputs[0].token_ids) == 16  # the default


def test_stop_strings_end_the_sequence_in_the_core(make_llm):
    llm = make_llm()
    params = SamplingParams(max_tokens=40, stop=["engine"], n=2)
    (output,) = llm.generate("hello the engine runs ", params, use_tqdm=False)
    for index, answer in enumerate(output.outputs):
        assert answer.index == index
        assert (answer.text, answer.finish_reason) == ("hello the ", "stop")
        assert answer.stop_reason == "engine" and len(answer.token_ids) < 20
    finished = [event for event in llm.record() if isinstance(event, RequestFinished)]
    assert [event.stop_reason for event in finished] == ["engine", "engine"]
    assert llm.core.stats().blocks_used == 0


def test_logprobs_by_token_id(make_llm):
    llm = make_llm()
    (output,) = llm.generate("hello", SamplingParams(max_tokens=4, logprobs=2), use_tqdm=False)
    (answer,) = output.outputs
    assert answer.cumulative_logprob == -2.0
    for token_id, position in zip(answer.token_ids, answer.logprobs):
        assert list(position) == [token_id, 7]
        assert (position[token_id].logprob, position[token_id].rank) == (-0.5, 1)
        assert position[token_id].decoded_token == llm.tokenizer.token(token_id).text


def test_chat_goes_through_the_template(make_llm):
    llm = make_llm()
    hello = [{"role": "user", "content": "hello"}]
    params = SamplingParams(max_tokens=2)
    (one,) = llm.chat(hello, params, use_tqdm=False)
    assert one.prompt == "<s><|user|>hello</s><|assistant|>"
    assert one.prompt_token_ids.count(1) == 1
    two = llm.chat([hello, hello], params, use_tqdm=False, chat_template="{{ messages[0].role }}")
    assert [output.prompt for output in two] == ["user", "user"]


def test_nothing_runs_if_one_prompt_is_wrong(make_llm):
    llm = make_llm()
    with pytest.raises(TextError, match="64 tokens, but the prompt has 65 tokens"):
        llm.generate([[5], [5] * 65], use_tqdm=False)
    with pytest.raises(ValueError, match="2 entries for 1 prompts"):
        llm.generate("hello", [SamplingParams()] * 2, use_tqdm=False)
    assert not llm.core.has_work
    assert len(llm.generate("hello", use_tqdm=False)) == 1


def test_a_failure_leaves_nothing_behind(make_llm):
    llm = make_llm()
    llm.core.executor.fails = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        llm.generate(["hello", "world"], use_tqdm=False)
    assert not llm.core.books.groups and llm.core.num_waiting == 0


def test_the_record(make_llm, tmp_path):
    llm = make_llm(trace_file=str(tmp_path / "record.jsonl"))
    llm.generate("hello", SamplingParams(max_tokens=2), use_tqdm=False)
    events = llm.record()
    (received,) = [event for event in events if isinstance(event, RequestReceived)]
    assert (received.route, received.text) == ("LLM.generate", "hello")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    llm.shutdown()
    assert [event.seq for event in read_jsonl(tmp_path / "record.jsonl")] == [
        event.seq for event in events
    ]


def test_a_scheduler_of_ones_own_decides(make_llm):
    class LongestFirst(Scheduler):
        def add(self, request):
            request.rank = (-request.num_prompt_tokens, *request.rank[1:])
            super().add(request)

    prompts = ["a", "a b c d e f", "a b c"]
    order = {}
    for scheduler in (Scheduler, LongestFirst):
        llm = make_llm(max_num_seqs=1, scheduler=scheduler)
        llm.generate(prompts, SamplingParams(max_tokens=2), use_tqdm=False)
        ended = [event for event in llm.record() if isinstance(event, RequestFinished)]
        order[scheduler] = [event.request_id for event in ended]
    assert order[Scheduler] == ["llm-0", "llm-1", "llm-2"]
    assert order[LongestFirst] == ["llm-1", "llm-2", "llm-0"]


def test_the_models_defaults_hold_where_no_parameters_are_given(make_llm):
    llm = make_llm(override_generation_config={"temperature": 0.3, "max_new_tokens": 5})
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.max_tokens) == (0.3, 5)
    (output,) = llm.generate("hello", use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 5
    (output,) = llm.generate("hello", SamplingParams(), use_tqdm=False)  # says all it wants
    assert len(output.outputs[0].token_ids) == 16
    params.max_tokens = 2  # a copy
    assert llm.get_default_sampling_params().max_tokens == 5


# ------------------------------------------------------------------------------ prompts


def kinds_of_prompts(ids):
    """Every way to write two prompts, and how many there are."""
    return {
        "dicts": [{"prompt": "hello"}, {"prompt_token_ids": ids}],
        "one dict": {"prompt": "hello"},
        "one dict of ids": {"prompt_token_ids": ids},
        "mixed": ["hello", {"prompt": "hello"}, ids, tuple(ids), np.array(ids)],
        "both": [{"prompt": "hello", "prompt_token_ids": ids}],
        "nulls": [{"prompt": "hello", "prompt_token_ids": None, "multi_modal_data": None}],
        "a generator": (prompt for prompt in ("hello", ids)),
        "a generator of ids": (token for token in ids),
        "an iterator": iter(["hello"]),
        "a tuple": ("hello", "hello"),
        "an array": np.array(ids),
        "arrays": np.array([ids, ids]),
        "a tensor": torch.tensor(ids),
        "numbers of numpy": [np.int64(i) for i in ids],
    }


@pytest.mark.parametrize("kind", kinds_of_prompts([1]))
def test_every_way_to_write_a_prompt(make_llm, kind):
    llm = make_llm()
    ids = llm.tokenizer.encode("hello")
    prompts = kinds_of_prompts(ids)[kind]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=2), use_tqdm=False)
    number = {"mixed": 5, "dicts": 2, "a generator": 2, "a tuple": 2, "arrays": 2}
    assert len(outputs) == number.get(kind, 1)
    for output in outputs:
        assert output.prompt_token_ids == ids and type(output.prompt_token_ids[0]) is int
    assert outputs[0].prompt == (
        None if "ids" in kind or "numpy" in kind or "arr" in kind or kind == "a tensor" else "hello"
    )


@pytest.mark.parametrize(
    ("prompts", "param"),
    [
        (5, "prompts"),
        (None, "prompts"),
        (b"hello", "prompts"),
        ([None], "prompts.0"),
        (["a", 1.5], "prompts.1"),
        ([1, 2.5], "prompts"),
        ([1, True], "prompts"),
        ([[1, "a"]], "prompts.0"),
        ({}, "prompts"),
        ([{"prompt": 5}], "prompts.0.prompt"),
        ([{"prompt_token_ids": "ab"}], "prompts.0.prompt_token_ids"),
        ([{"prompt_token_ids": [1, None]}], "prompts.0.prompt_token_ids"),
        ([{"prompt": "a", "multi_modal_data": {"image": 1}}], "prompts.0.multi_modal_data"),
        ([{"prompt_embeds": [[0.5]]}], "prompts.0.prompt_embeds"),
        ([{"prompt": "a", "cache_salt": 5}], "prompts.0.cache_salt"),
    ],
)
def test_what_is_no_prompt_is_named(make_llm, prompts, param):
    llm = make_llm()
    with pytest.raises(TextError) as error:
        llm.generate(prompts, use_tqdm=False)
    assert error.value.param == param and param.split(".")[-1] in str(error.value)


def test_a_salt_keeps_prompts_apart(make_llm):
    llm = make_llm()
    prompt = [5, 6, 7, 8] * 3
    salted = {"prompt_token_ids": prompt, "cache_salt": "mine"}
    found = [
        llm.generate([given], use_tqdm=False)[0].num_cached_tokens
        for given in (prompt, prompt, salted, salted)
    ]
    assert found == [0, 8, 0, 8]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [True, False])
def test_options_of_the_tokenizer(make_llm, side, special):
    llm = make_llm()
    llm.tokenizer.truncation_side = side
    text = "hello the engine runs tokens"
    options = {"truncation": True, "max_length": 3, "add_special_tokens": special}
    (output,) = llm.generate(text, use_tqdm=False, tokenization_kwargs=options)
    hf = byte_level_hf()
    hf.truncation_side = side
    assert output.prompt_token_ids == hf(text, **options)["input_ids"]
    assert output.prompt == text
    again = llm.generate(text, use_tqdm=False)[0].prompt_token_ids
    assert again == byte_level_hf().encode(text)  # nothing of it stays


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"padding": True}, "padding"),
        ({"max_length": 0, "truncation": True}, "max_length"),
        ({"max_length": 5}, "truncation"),
        ({"truncation": True}, "truncation"),
        ({"truncation": "yes", "max_length": 5}, "truncation"),
    ],
)
def test_options_of_the_tokenizer_that_are_refused(make_llm, options, param):
    with pytest.raises(TextError) as error:
        make_llm().generate("hello", use_tqdm=False, tokenization_kwargs=options)
    assert error.value.param == f"tokenization_kwargs.{param}"


# ------------------------------------------------------------------------------ the engine


def test_priorities_decide_who_is_first(make_llm):
    llm = make_llm(max_num_seqs=1, scheduling_policy="priority")
    params = SamplingParams(max_tokens=2)
    llm.generate(["a", "b", "c"], params, use_tqdm=False, priority=[3, 1, 2])
    ended = [e.request_id for e in llm.record() if isinstance(e, RequestFinished)]
    assert ended == ["llm-1", "llm-2", "llm-0"]
    llm.generate("a", params, use_tqdm=False, priority=5)
    with pytest.raises(ValueError, match="priority has 1 entries for 2 prompts"):
        llm.generate(["a", "b"], params, use_tqdm=False, priority=[1])
    with pytest.raises(ValueError, match="priority is 'high'"):
        llm.generate("a", params, use_tqdm=False, priority="high")
    assert not llm.core.has_work


def test_when_things_happened_to_a_request(make_llm):
    llm = make_llm(max_num_seqs=1)
    before = time.time()
    outputs = llm.generate(["hello", "world"], SamplingParams(max_tokens=4), use_tqdm=False)
    for output in outputs:
        told = output.metrics
        assert before - 0.1 <= told.arrival_time <= time.time()
        stages = [told.queued_ts, told.scheduled_ts, told.first_token_ts, told.last_token_ts]
        assert stages == sorted(stages) and told.num_generation_tokens == 4
        assert 0 <= told.time_in_queue <= told.first_token_latency
        assert output.outputs[0].finished()
    assert outputs[1].metrics.scheduled_ts >= outputs[0].metrics.last_token_ts
    (nothing,) = llm.generate("hello", SamplingParams(max_tokens=0), use_tqdm=False)
    assert (nothing.metrics.first_token_ts, nothing.metrics.first_token_latency) == (0, 0)


def test_the_prefix_cache_can_be_emptied(make_llm):
    llm = make_llm()
    prompt = [5, 6, 7, 8] * 3
    params = SamplingParams(max_tokens=1)
    assert llm.reset_prefix_cache()  # nothing is in it
    for _ in range(2):
        assert llm.generate([prompt], params, use_tqdm=False)[0].num_cached_tokens == 0
        assert llm.generate([prompt], params, use_tqdm=False)[0].num_cached_tokens == 8
        assert llm.reset_prefix_cache()
        assert llm.core.stats().blocks_cached_free == 0
        llm.core.scheduler.kv.pool.check([])
    # what the record says of it agrees with the engine, which takes every block once more
    llm.generate([[9] * 40] * 5, SamplingParams(max_tokens=20), use_tqdm=False)
    replay = Replay(num_blocks=Parrot.kv.num_blocks)
    for event in llm.record():
        replay.fold(event)


def test_metrics(make_llm):
    llm = make_llm()
    prompt = [5, 6, 7, 8] * 3
    for _ in range(2):
        llm.generate([prompt], SamplingParams(max_tokens=3, n=2), use_tqdm=False)
    told = {(m.name, m.labels.get("finished_reason")): m for m in llm.get_metrics()}
    values = {key: metric.value for key, metric in told.items()}
    assert values["vllm:prompt_tokens", None] == 24
    assert values["vllm:generation_tokens", None] == 12
    assert values["vllm:prefix_cache_hits", None] == 8
    assert values["vllm:request_success", "length"] == 4
    assert values["vllm:num_requests_running", None] == 0
    assert values["vllm:kv_cache_usage_perc", None] == 0
    assert type(told["vllm:prompt_tokens", None]).__name__ == "Counter"
    assert told["vllm:prompt_tokens", None].labels["model_name"] == llm.config.model_name


def test_the_tokenizer_is_transformers_own_object(make_llm):
    llm = make_llm()
    hf = llm.get_tokenizer()
    assert isinstance(hf, PreTrainedTokenizerFast)
    text = "hello the engine runs tokens"
    whole = llm.generate(text, use_tqdm=False)[0].prompt_token_ids
    hf(text, truncation=True, max_length=2)  # sets truncation on its backend, and leaves it there
    assert llm.generate(text, use_tqdm=False)[0].prompt_token_ids == whole
    assert llm.get_tokenizer() is hf


def test_after_shutdown_it_refuses(make_llm):
    llm = make_llm()
    llm.generate("hello", use_tqdm=False)
    llm.shutdown()
    llm.shutdown()
    for use in (
        lambda: llm.generate("hello", use_tqdm=False),
        lambda: llm.chat([{"role": "user", "content": "hello"}], use_tqdm=False),
        llm.reset_prefix_cache,
        llm.get_metrics,
    ):
        with pytest.raises(RuntimeError, match="this LLM was shut down"):
            use()
    assert any(isinstance(event, RequestFinished) for event in llm.record())


def test_a_progress_bar(make_llm, capsys):
    with make_llm() as llm:
        llm.generate(["hello", "world"], SamplingParams(max_tokens=2))
    out = capsys.readouterr().out
    assert "2/2" in out


def test_no_tokenizer_is_said_before_anything_is_loaded(tmp_path):
    with pytest.raises(TextError, match="No tokenizer could be loaded"):
        LLM(str(tmp_path))
