"""Use anthropic's client: messages, streams, a prefilled answer, counting, forms, tools, errors."""

import asyncio

import anthropic
from anthropic import beta_tool
from asked import HELLO, KEY, MODEL, SAY_CALL, SAY_RAIN, SCRIPTED, SERVER, did
from forms import ASKED, Weather

client = anthropic.Anthropic(base_url=SERVER, api_key=KEY, max_retries=0)
asked = {"model": MODEL, "max_tokens": 16, "messages": HELLO, "extra_body": {"temperature": 0.0}}

assert [model.id for model in client.models.list()] == [MODEL]
did("models")

whole = client.messages.create(**asked)
assert whole.content[0].text and whole.stop_reason in ("max_tokens", "end_turn")
counted = client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
assert whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) == counted
did("messages, and their tokens counted before")

with client.messages.stream(**asked) as stream:
    assert "".join(stream.text_stream) == whole.content[0].text
    assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
did("streams")

begun = whole.content[0].text[:8].rstrip()
rest = client.messages.create(
    **{**asked, "messages": [*HELLO, {"role": "assistant", "content": begun}]}
)
assert rest.content[0].text
did("a prefilled answer")

question = [{"role": "user", "content": ASKED}]
parsed = client.messages.parse(
    model=MODEL, max_tokens=200, messages=question, output_format=Weather
).parsed_output
assert isinstance(parsed, Weather)
did("parse into a pydantic class")

tool = {"name": "weather", "description": "Tell the weather.",
        "input_schema": Weather.model_json_schema()}  # fmt: skip
for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
    fields = {"model": MODEL, "max_tokens": 200, "messages": question, "tools": [tool],
              "tool_choice": {**choice, "disable_parallel_tool_use": True}}  # fmt: skip
    with client.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    for message in (client.messages.create(**fields), streamed):
        [call] = message.content
        assert call.type == "tool_use" and Weather.model_validate(call.input)
did("any tool, a named tool, whole and streamed")

scripted = anthropic.Anthropic(base_url=SCRIPTED, api_key=KEY, max_retries=0)
cities = []


@beta_tool
def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    cities.append(city)
    return SAY_RAIN


runner = scripted.beta.messages.tool_runner(
    model=MODEL, max_tokens=200, tools=[weather], messages=[{"role": "user", "content": SAY_CALL}]
)
assert runner.until_done().content[0].text == "It rains." and cities == ["Zurich"]
did("the tool runner, to its end")

old = anthropic.Anthropic(
    base_url=SERVER, api_key="unused", default_headers={"x-api-key": KEY}, max_retries=0
)
assert old.messages.create(**asked).content == whole.content
did("the key as x-api-key")

for kind, more in (
    (anthropic.NotFoundError, {"model": "other"}),
    (anthropic.BadRequestError, {"tools": [{"type": "bash_20250124", "name": "bash"}]}),
):
    try:
        client.messages.create(**{**asked, **more})
    except kind as error:
        assert error.request_id
    else:
        raise AssertionError(kind)
did("errors of the right kind")


async def several() -> list[str]:
    other = anthropic.AsyncAnthropic(base_url=SERVER, api_key=KEY, max_retries=0)
    answers = await asyncio.gather(*(other.messages.create(**asked) for _ in range(4)))
    return [answer.content[0].text for answer in answers]


assert asyncio.run(several()) == [whole.content[0].text] * 4
did("four at once, asynchronous")
