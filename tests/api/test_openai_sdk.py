"""The openai SDK, unchanged, against the real server."""

from __future__ import annotations

import asyncio

import openai
import pytest

MODEL = "tiny-llama"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(api):
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="test-key", max_retries=0) as client:
        yield client


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == MODEL and model.max_model_len == 4096
    assert client.models.retrieve(MODEL).id == MODEL


def test_completion_and_its_stream_are_the_same_text(client):
    asked = {"model": MODEL, "prompt": "Once", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**asked)
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert whole.usage.completion_tokens == 24 and whole.usage.prompt_tokens == 4
    assert len(pieces) > 4


def test_chat_and_its_stream_are_the_same_text(client):
    asked = {"model": MODEL, "messages": HI, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    options = {"include_usage": True}
    *pieces, last = client.chat.completions.create(**asked, stream=True, stream_options=options)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert last.usage == whole.usage and last.choices == []


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0
    )
    for entry in answer.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert entry.logprob == entry.top_logprobs[0].logprob and entry.logprob < 0


def test_lm_eval_reads_exact_maxima(client):
    """lm-eval's loglikelihood: token ids in, echo, one token; greedy if each is exactly the
    maximum."""
    prompt = list(b"the quick brown fox jumps over the lazy dog")
    answer = client.completions.create(
        model=MODEL, prompt=[prompt], max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1
    )
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(prompt) + 1
    assert logprobs.token_logprobs[0] is None
    best = [max(top.values()) for top in logprobs.top_logprobs[1:]]
    assert logprobs.token_logprobs[-1] == best[-1]
    assert all(value <= top for value, top in zip(logprobs.token_logprobs[1:], best))


def test_n_seeded_answers_differ_and_come_again(client):
    asked = {"model": MODEL, "prompt": "Once", "n": 4, "max_tokens": 12, "seed": 5}
    first = [choice.text for choice in client.completions.create(**asked).choices]
    again = [choice.text for choice in client.completions.create(**asked).choices]
    third = client.completions.create(**{**asked, "n": 1, "seed": 7}).choices[0].text
    assert first == again and len(set(first)) == 4
    assert first[2] == third  # child i of n draws with seed + i


def test_errors_have_the_sdks_types(client, api):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=MODEL, prompt="a", temperature=-1)
    assert error.value.param == "temperature" and error.value.body["code"] == 400
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{api.url}/v1", api_key="no").models.list()
    with pytest.raises(openai.BadRequestError) as error:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        client.chat.completions.create(model=MODEL, messages=HI, tools=tools)
    assert error.value.param == "tools"


def test_sixteen_streams_at_once_get_the_text_that_each_gets_alone(client, api):
    prompts = [f"{'story ' * (place % 5)}number {place}" for place in range(16)]
    fields = [
        {"temperature": 0} if place % 2 else {"temperature": 0.8, "seed": place}
        for place in range(16)
    ]
    asked = [
        {"model": MODEL, "prompt": prompt, "max_tokens": 16 + 3 * place, **fields[place]}
        for place, prompt in enumerate(prompts)
    ]
    alone = [client.completions.create(**one).choices[0].text for one in asked]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="test-key") as together:

            async def text(one: dict) -> str:
                stream = await together.completions.create(**one, stream=True)
                return "".join([piece.choices[0].text async for piece in stream])

            return await asyncio.gather(*map(text, asked))

    assert asyncio.run(all_at_once()) == alone
    api.wait_until_idle(5)
