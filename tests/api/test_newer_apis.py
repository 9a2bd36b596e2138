"""The clients of the two newer APIs, unchanged, against the real server: forms, and same texts."""

from __future__ import annotations

from typing import Literal

import openai
import pydantic
import pytest

MODEL = "tiny-llama"
HI = [{"role": "user", "content": "hi"}]


class Weather(pydantic.BaseModel):
    rains: bool
    wind: Literal["none", "some", "much"]


@pytest.fixture(scope="module")
def client(api):
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="test-key", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(api):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=api.url, api_key="test-key", max_retries=0) as client:
        yield client


def test_the_three_apis_write_the_same_text(client, api):
    fields = {"temperature": 0.0, "max_tokens": 12}
    chat = client.chat.completions.create(model=MODEL, messages=HI, **fields)
    response = client.responses.create(model=MODEL, input=HI, temperature=0.0, max_output_tokens=12)
    body = {"model": MODEL, "messages": HI, **fields}
    message = api.http.post("/v1/messages", json=body).json()
    text = chat.choices[0].message.content
    assert response.output_text == text == message["content"][0]["text"]
    inputs = message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"]
    assert response.usage.input_tokens == chat.usage.prompt_tokens == inputs


def test_responses_parse(client):
    answer = client.responses.parse(model=MODEL, input="hi", text_format=Weather)
    assert isinstance(answer.output_parsed, Weather) and answer.status == "completed"
    with client.responses.stream(model=MODEL, input="hi", text_format=Weather) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Weather)


def test_messages_parse(claude):
    asked = {"model": MODEL, "max_tokens": 64, "messages": HI, "output_format": Weather}
    message = claude.messages.parse(**asked)
    assert isinstance(message.parsed_output, Weather) and message.stop_reason == "end_turn"


def test_messages_and_its_stream_are_the_same_text(claude):
    asked = {"model": MODEL, "max_tokens": 24, "messages": HI, "extra_body": {"temperature": 0.0}}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
