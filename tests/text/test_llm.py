"""LLM on the real core, with a stand-in for the worker: what is computed is known beforehand."""

from __future__ import annotations

import pytest

from engine import LLM, SamplingParams
from engine.core.messages import KVShape, RowDetail, StepOutput, StepPlan, TokenLogprobs
from engine.core.scheduler import Scheduler
from engine.text.errors import TextError
from engine.trace.events import RequestFinished, RequestReceived
from engine.trace.files import read_jsonl
from tests.text.tiny_tokenizers import byte_level_hf


class Parrot:
    """An executor whose model says the prompt over and over."""

    kv = KVShape(
        num_blocks=64,
        num_host_blocks=0,
        block_size=4,
        bytes_per_block=1,
        max_model_len=64,
        vocab_size=610,
    )

    def __init__(self):
        self.rows = {}  # sequence id → (prompt, params)
        self.fails = False

    def execute(self, plan: StepPlan) -> StepOutput:
        if self.fails:
            raise RuntimeError("the device is gone")
        tokens, details = [], {}
        for name in plan.dropped:
            self.rows.pop(name, None)
        for name, new in plan.new.items():
            self.rows[name] = (new.token_ids[: new.num_prompt_tokens], new.params)
        for row in plan.rows:
            prompt, params = self.rows[row.request_id]
            token = prompt[(row.start + row.num_tokens) % len(prompt)]
            tokens.append([token] * row.samples)
            if params.logprobs is not None and row.samples:
                entry = TokenLogprobs(token, -0.5, 1, [token, 7], [-0.5, -1.0])
                details[row.request_id] = RowDetail(logprobs=[entry] * row.samples)
        return StepOutput(step=plan.step, tokens=tokens, details=details)


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
    assert len(llm._output) == 0 and llm.core.num_waiting == 0


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


def test_a_progress_bar(make_llm, capsys):
    with make_llm() as llm:
        llm.generate(["hello", "world"], SamplingParams(max_tokens=2))
    out = capsys.readouterr().out
    assert "2/2" in out


def test_no_tokenizer_is_said_before_anything_is_loaded(tmp_path):
    with pytest.raises(TextError, match="No tokenizer could be loaded"):
        LLM(str(tmp_path))
