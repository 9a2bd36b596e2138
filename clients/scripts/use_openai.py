"""Use openai-python: models, completions, chat, streams, errors, also asynchronous."""

import asyncio

import openai
from asked import BASE, HELLO, KEY, MODEL, did

client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)

assert [model.id for model in client.models.list()] == [MODEL]
assert client.models.retrieve(MODEL).id == MODEL
did("models")

answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, temperature=0, n=1)
assert answer.choices[0].text and answer.usage.completion_tokens <= 8
assert answer._request_id and answer.id == f"cmpl-{answer._request_id}"
did("completions")

chat = client.chat.completions.create(
    model=MODEL, messages=HELLO, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
)
whole = chat.choices[0].message.content
assert whole and len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
did("chat with log-probabilities")

chunks = list(
    client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )
)  # fmt: skip
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert text == whole
assert chunks[-1].usage.total_tokens == chat.usage.total_tokens
with client.chat.completions.with_streaming_response.create(
    model=MODEL, messages=HELLO, max_tokens=2, extra_headers={"X-Request-Id": "mine"}
) as raw:
    assert raw.headers["x-request-id"] == "mine"
did("streams with usage")

for error, ask in (
    (openai.AuthenticationError, lambda: client.with_options(api_key="no").models.list()),
    (openai.NotFoundError, lambda: client.models.retrieve("another")),
    (openai.BadRequestError, lambda: client.completions.create(model=MODEL, prompt="", n=0)),
):
    try:
        ask()
    except error as caught:
        assert caught.body["message"]
    else:
        raise AssertionError(f"no {error.__name__}")
did("errors of the right kind")


async def both() -> list[str]:
    other = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    asked = [
        other.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, temperature=0)
        for _ in range(4)
    ]
    return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]


assert asyncio.run(both()) == [whole] * 4
did("four at once, asynchronous")
