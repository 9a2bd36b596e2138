"""AsyncLLM on the real core, with a stand-in for the worker: many at once, every way to leave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from itertools import pairwise

import pytest

from engine import LLM, AsyncLLM, SamplingParams
from engine.core.admission import RequestError
from engine.sampling_params import ParameterError
from engine.text.errors import TextError
from engine.trace.events import RequestAborted, RequestFinished
from tests.text.parrot import Parrot
from tests.text.tiny_tokenizers import byte_level_hf

OPTIONS = {"swap_space": 0.0, "preemption_mode": "recompute"}
LONG = SamplingParams(max_tokens=50, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    byte_level_hf().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(folder, monkeypatch):
    """`make(step_s=…, **options)`: an AsyncLLM whose worker is a parrot."""
    made = []

    def make(step_s=0.0, kind=AsyncLLM, **options):
        monkeypatch.setattr(kind, "_load_executor", lambda self: Parrot(step_s))
        made.append(kind(folder, **OPTIONS, **options))
        return made[-1]

    yield make
    for llm in made:
        llm.shutdown()


async def whole(outputs):
    """(the last output, how many there were)."""
    number, last = 0, None
    async for output in outputs:
        number, last = number + 1, output
    return last, number


async def is_empty(llm):
    """Whether nothing is left of any request, in any table."""
    running = await llm._engine.ask(lambda core: core.has_work)
    while running:  # a step in flight
        running = await llm._engine.ask(lambda core: core.has_work)
    stats = await llm._engine.ask(lambda core: core.stats())
    groups = await llm._engine.ask(lambda core: len(core.books.groups))
    tables = len(llm._open) + len(llm._engine._open)
    counts = stats.num_running + stats.num_waiting + stats.blocks_used
    return (groups, tables, counts) == (0, 0, 0)


def test_the_same_tokens_as_llm(make):
    prompts = ["hello", [5, 6, 7], {"prompt": "the engine"}]
    params = SamplingParams(max_tokens=9, n=2, logprobs=2, stop=["zzz"])
    expected = make(kind=LLM).generate(prompts, params, use_tqdm=False)
    llm = make()

    async def run():
        answers = await asyncio.gather(*(whole(llm.generate(p, params)) for p in prompts))
        for (last, number), one in zip(answers, expected):
            assert last.finished and 1 < number <= 18
            assert (last.prompt, last.prompt_token_ids) == (one.prompt, one.prompt_token_ids)
            assert last.outputs == one.outputs
            assert last.metrics.first_token_ts > 0
        assert await is_empty(llm)

    asyncio.run(run())


def test_each_output_has_all_that_came_so_far(make):
    llm = make(step_s=0.001)

    async def run():
        texts = [output.outputs[0].text async for output in llm.generate("hello", LONG)]
        assert len(texts) > 5 and all(later.startswith(text) for text, later in pairwise(texts))

    asyncio.run(run())


def test_a_stop_string_and_a_chat(make):
    llm = make()
    params = SamplingParams(max_tokens=40, stop=["engine"])
    messages = [{"role": "user", "content": "hello"}]

    async def run():
        last, _ = await whole(llm.generate("hello the engine runs ", params))
        assert (last.outputs[0].text, last.outputs[0].stop_reason) == ("hello the ", "engine")
        last, _ = await whole(llm.chat(messages, SamplingParams(max_tokens=2)))
        assert last.prompt == "<s><|user|>hello</s><|assistant|>"
        last, _ = await whole(llm.generate("hello"))  # the defaults
        assert len(last.outputs[0].token_ids) == 16
        assert await is_empty(llm)

    asyncio.run(run())


@pytest.mark.parametrize("route", ["generate", "chat"])
@pytest.mark.parametrize("overlapped", [False, True])
def test_cancelled_at_every_await(make, overlapped, route):
    """Cancelled after 0, 1, 2, … turns of the loop: nothing is left, the next one is served."""
    given = [5, 6, 7] if route == "generate" else [{"role": "user", "content": "hello"}]
    llm = make(async_scheduling=overlapped)

    async def run():
        ended = False
        turns = 0
        while not ended:
            outputs = getattr(llm, route)(given, LONG, request_id="same")
            task = asyncio.create_task(whole(outputs))
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert await is_empty(llm), turns
            last, _ = await whole(llm.generate([5, 6], SamplingParams(max_tokens=2)))
            assert last.outputs[0].token_ids == [5, 6]
            turns = turns + 1 if turns < 30 else turns * 2
        assert turns > 2

    asyncio.run(run())


@pytest.mark.parametrize("way", ["break", "aclose", "dropped", "raise", "timeout"])
def test_every_way_to_leave_the_iterator(make, way):
    llm = make(step_s=0.002)

    async def leave():
        outputs = llm.generate("hello", LONG)
        if way == "aclose":
            await anext(outputs)
            await outputs.aclose()
        elif way == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(whole(outputs), timeout=0.01)
        elif way == "dropped":
            await anext(outputs)
        else:
            async for _ in outputs:
                if way == "break":
                    break
                raise KeyError("of the program")

    async def run():
        with contextlib.suppress(KeyError):
            await leave()
        gc.collect()
        await asyncio.sleep(0)  # the loop closes iterators that nobody has any more
        await asyncio.sleep(0)
        assert await is_empty(llm)

    asyncio.run(run())
    aborted = [event for event in llm.record() if isinstance(event, RequestAborted)]
    assert [event.why for event in aborted] == ["the program left it"]


def test_some_are_cancelled_among_many(make):
    llm = make(max_num_seqs=4)
    params = SamplingParams(max_tokens=12)

    async def run():
        tasks = [asyncio.create_task(whole(llm.generate([7 + k, 8, 9], params))) for k in range(24)]
        for k, task in enumerate(tasks):
            await asyncio.sleep(0)
            if k % 3 == 0:
                task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for k, answer in enumerate(answers):
            if k % 3:
                assert answer[0].outputs[0].token_ids == [7 + k, 8, 9] * 4
        assert await is_empty(llm)

    asyncio.run(run())


def test_abort_by_id(make):
    llm = make(step_s=0.002)

    async def run():
        outputs = llm.generate("hello", SamplingParams(max_tokens=50, n=2), request_id="mine")
        await anext(outputs)
        await llm.abort("mine")
        await llm.abort("nobody")
        last, _ = await whole(outputs)
        assert last.finished and {a.finish_reason for a in last.outputs} == {"abort"}
        assert await is_empty(llm)
        last, _ = await whole(llm.generate("hello", SamplingParams(max_tokens=1), "mine"))
        assert last.request_id == "mine" and last.outputs[0].finish_reason == "length"

    asyncio.run(run())


def test_an_id_in_use_is_refused_and_the_first_one_goes_on(make):
    llm = make(step_s=0.001)

    async def run():
        first = llm.generate("hello", SamplingParams(max_tokens=20), request_id="same")
        await anext(first)
        with pytest.raises(ValueError, match="'same' is in use"):
            await whole(llm.generate("hello", LONG, request_id="same"))
        last, _ = await whole(first)
        assert len(last.outputs[0].token_ids) == 20
        assert await is_empty(llm)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        (5, {}, TextError),
        ([1, 10_000], {}, TextError),
        ([1] * 65, {}, TextError),
        ("a", {"priority": "high"}, ParameterError),
        ("a", {"tokenization_kwargs": {"padding": True}}, TextError),
        ("a", {"sampling_params": SamplingParams(stop_token_ids=[10_000])}, ParameterError),
        ([5] * 20, {"sampling_params": SamplingParams(n=9)}, RequestError),  # the core's refusal
    ],
)
def test_what_can_not_be_served_is_refused_alone(make, prompt, options, error):
    llm = make(max_num_seqs=8)

    async def run():
        good = asyncio.create_task(whole(llm.generate("hello", LONG)))
        with pytest.raises(error):
            await whole(llm.generate(prompt, **options))
        assert (await good)[0].finished
        assert await is_empty(llm)
        told = await llm.get_metrics()
        ended = {m.labels["finished_reason"]: m.value for m in told if "success" in m.name}
        assert ended == {"stop": 0, "length": 1, "abort": 0, "error": 0}

    asyncio.run(run())


def test_a_failure_of_the_worker_reaches_everybody(make):
    llm = make(step_s=0.001)

    async def run():
        tasks = [asyncio.create_task(whole(llm.generate("hello", LONG))) for _ in range(3)]
        await asyncio.sleep(0.01)
        llm.core.executor.fails = True
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(answer, RuntimeError)
            assert "the engine failed: RuntimeError: the device is gone" in str(answer)
        with pytest.raises(RuntimeError, match="the device is gone"):
            await whole(llm.generate("hello"))
        assert not llm._open

    asyncio.run(run())


def test_shutdown_ends_what_runs_and_refuses_the_rest(make):
    llm = make(step_s=0.002)

    async def run():
        async with llm:
            task = asyncio.create_task(whole(llm.generate("hello", LONG)))
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="was shut down"):
            await task
        for use in (whole(llm.generate("a")), llm.get_metrics(), llm.reset_prefix_cache()):
            with pytest.raises(RuntimeError, match="this AsyncLLM was shut down"):
                await use
        llm.shutdown()

    asyncio.run(run())
    assert not llm._engine._thread.is_alive()


def test_one_event_loop_after_the_other(make):
    """Requests of an event loop that was closed are aborted: nobody can wait for them."""
    llm = make(step_s=0.001)

    async def start():
        outputs = llm.generate("hello", LONG)
        await anext(outputs)
        return outputs

    loop = asyncio.new_event_loop()
    outputs = loop.run_until_complete(start())
    loop.close()

    async def run():
        last, _ = await whole(llm.generate("hello", SamplingParams(max_tokens=3)))
        assert last.finished
        assert await llm._engine.ask(lambda core: len(core.books.groups)) == 0

    asyncio.run(run())
    with contextlib.suppress(StopIteration):
        outputs.aclose().send(None)  # as late as that it does no harm


def test_metrics_and_the_prefix_cache(make):
    llm = make()

    async def run():
        prompt = [5, 6, 7, 8] * 3
        found = []
        for step in range(3):
            last, _ = await whole(llm.generate(prompt, SamplingParams(max_tokens=2)))
            found.append(last.num_cached_tokens)
            if step == 1:
                assert await llm.reset_prefix_cache()
        assert found == [0, 8, 0]
        told = {metric.name: metric.value for metric in await llm.get_metrics()}
        assert told["vllm:generation_tokens"] == 6 and told["vllm:prefix_cache_hits"] == 8

    asyncio.run(run())
    assert sum(isinstance(event, RequestFinished) for event in llm.record()) == 3


def test_a_model_that_can_not_be_loaded_is_said_at_once(tmp_path):
    with pytest.raises(TextError, match="No tokenizer could be loaded"):
        AsyncLLM(str(tmp_path))
