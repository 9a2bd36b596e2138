"""Use openai-python: completions, chat, streams, errors, forms and tools, also asynchronous."""

import asyncio
import json

import openai
from asked import BASE, HELLO, KEY, MODEL, SAY_CALL, SAY_RAIN, SCRIPTED, did
from forms import ASKED, Weather

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

messages = [{"role": "user", "content": ASKED}]
weather = openai.pydantic_function_tool(Weather, name="weather")

chat = client.chat.completions.parse(
    model=MODEL, messages=messages, response_format=Weather, max_tokens=200
)
assert isinstance(chat.choices[0].message.parsed, Weather)
with client.chat.completions.stream(
    model=MODEL, messages=messages, response_format=Weather, max_tokens=200
) as stream:
    kinds = {event.type for event in stream}
    assert "content.done" in kinds, kinds
    assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)
did("chat.completions.parse, whole and streamed")

response = client.responses.parse(
    model=MODEL, input=ASKED, text_format=Weather, max_output_tokens=200
)
assert isinstance(response.output_parsed, Weather)
with client.responses.stream(
    model=MODEL, input=ASKED, text_format=Weather, max_output_tokens=200
) as stream:
    assert "response.output_text.delta" in {event.type for event in stream}
    assert isinstance(stream.get_final_response().output_parsed, Weather)
did("responses.parse, whole and streamed")

for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
    asked = {"model": MODEL, "messages": messages, "tools": [weather], "tool_choice": choice,
             "parallel_tool_calls": False, "max_tokens": 200}  # fmt: skip
    [call] = client.chat.completions.parse(**asked).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    with client.chat.completions.stream(**asked) as stream:
        assert "tool_calls.function.arguments.done" in {event.type for event in stream}
        [call] = stream.get_final_completion().choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
did("a tool that is required or named, parsed, whole and streamed")

scripted = openai.OpenAI(base_url=f"{SCRIPTED}/v1", api_key=KEY, max_retries=0)
tool = {"type": "function", "function": {
    "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}}  # fmt: skip
history = [{"role": "user", "content": SAY_CALL}]
with scripted.chat.completions.stream(model=MODEL, messages=history, tools=[tool]) as stream:
    list(stream)
    choice = stream.get_final_completion().choices[0]
[call] = choice.message.tool_calls
assert choice.finish_reason == "tool_calls"
assert json.loads(call.function.arguments) == {"city": "Zurich"}
history += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": SAY_RAIN}]
end = scripted.chat.completions.create(model=MODEL, messages=history, tools=[tool])
assert end.choices[0].message.content == "It rains."
did("a tool that the model chose, streamed, and its result")
