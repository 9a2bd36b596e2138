"""Use anthropic's client: messages, streams, a prefilled answer, counting, a form, errors."""

from typing import Literal

import anthropic
import pydantic
from asked import HELLO, KEY, MODEL, SERVER, did


class Answer(pydantic.BaseModel):
    known: bool
    topic: Literal["memory", "weather"]


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

parsed = client.messages.parse(
    model=MODEL, max_tokens=64, messages=HELLO, output_format=Answer
).parsed_output
assert isinstance(parsed, Answer)
did("parse into a pydantic class")

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
