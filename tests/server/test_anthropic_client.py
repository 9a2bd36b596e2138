"""The anthropic client, unchanged: messages, streams, tools in a loop, thinking, and errors."""

from __future__ import annotations

import pytest

from tests.server.scripted_engine import TOOLS_TEMPLATE, load_scripted

anthropic = pytest.importorskip("anthropic")

TOOL = {
    "name": "weather",
    "description": "Say the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 🌧"}}\n</tool_call>'
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(run_server):
    with run_server(load_scripted, chat_template=TOOLS_TEMPLATE, api_key="key") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="key", max_retries=0) as client:
        yield client


def say(text):
    return [{"role": "user", "content": f"SAY:{text}"}]


def asked(text, **fields):
    return {"model": "tiny", "max_tokens": 300, "messages": say(text), **fields}


def streamed(client, text, **fields):
    with client.messages.stream(**asked(text, **fields)) as stream:
        for _ in stream:
            pass
        return stream.get_final_message()


def contents(message):
    """The blocks of a message without what is new in each."""
    new = ("id", "signature", "parsed_output")
    blocks = [block.model_dump(exclude_none=True) for block in message.content]
    return [{name: value for name, value in b.items() if name not in new} for b in blocks]


@pytest.mark.parametrize(
    "text",
    ["Just text < and <tool.", f"Let me see.\n{CALL}", f"{CALL}\n{CALL}", CALL[:50], "",
     "<think>\nIt rains.\n</think>\n\nTake an umbrella.", f"<think>\nHm.\n</think>\n\n{CALL}"],
)  # fmt: skip
def test_a_stream_is_the_whole_message(client, text):
    whole = client.messages.create(**asked(text, tools=[TOOL]))
    said = streamed(client, text, tools=[TOOL])
    assert contents(said) == contents(whole)
    assert said.stop_reason == whole.stop_reason
    assert said.usage.output_tokens == whole.usage.output_tokens
    inputs = [m.usage.input_tokens + m.usage.cache_read_input_tokens for m in (said, whole)]
    assert inputs[0] == inputs[1]


def test_calls_are_blocks(client):
    message = client.messages.create(**asked(f"Let me see.\n{CALL}", tools=[TOOL]))
    text, call = message.content
    assert text.text == "Let me see." and message.stop_reason == "tool_use"
    assert call.type == "tool_use" and call.name == "weather" and call.id.startswith("toolu_")
    assert call.input == {"city": "Zürich 🌧"}


def test_a_call_that_is_cut_is_no_whole_call(client):
    """max_tokens wins over tool_use, and what is there of the input is an object."""
    message = client.messages.create(**asked(CALL, tools=[TOOL], max_tokens=70))
    assert message.stop_reason == "max_tokens"
    for block in (
        message.content[-1],
        streamed(client, CALL, tools=[TOOL], max_tokens=70).content[-1],
    ):
        assert block.type == "tool_use" and block.input["city"].startswith("Z")


def test_thinking_is_a_block_with_a_signature(client):
    text = "<think>\nIt rains.\n</think>\n\nTake an umbrella."
    for message in (client.messages.create(**asked(text)), streamed(client, text)):
        thinking, answer = message.content
        assert thinking.thinking == "It rains." and thinking.signature
        assert answer.text == "Take an umbrella." and message.stop_reason == "end_turn"
        assert message.usage.output_tokens_details.thinking_tokens == len("\nIt rains.\n")


def test_the_tool_runner_sends_the_result_and_ends(client, server):
    asked_for = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Say the weather.

        Args:
            city: where
        """
        asked_for.append(city)
        return "SAY:It rains there."

    runner = client.beta.messages.tool_runner(**asked(CALL), tools=[weather])
    last = runner.until_done()
    assert asked_for == ["Zürich 🌧"]
    assert last.content[0].text == "It rains there." and last.stop_reason == "end_turn"


def test_forced_and_forbidden_calls(client):
    message = client.messages.create(**asked(CALL, tools=[TOOL], tool_choice={"type": "none"}))
    assert message.content[0].text == CALL and message.stop_reason == "end_turn"
    one = {"type": "auto", "disable_parallel_tool_use": True}
    message = client.messages.create(**asked(CALL + CALL, tools=[TOOL], tool_choice=one))
    assert len(message.content) == 1 and message.stop_reason == "tool_use"


def test_tools_are_counted(client):
    count = client.messages.count_tokens
    without = count(model="tiny", messages=HI).input_tokens
    with_tools = count(model="tiny", messages=HI, tools=[TOOL]).input_tokens
    message = client.messages.create(model="tiny", max_tokens=1, messages=HI, tools=[TOOL])
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == with_tools > without


def test_errors_have_the_clients_types(client, server):
    with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.input_schema must be"):
        client.messages.create(**asked("x", tools=[{**TOOL, "input_schema": [1]}]))
    with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.name is 'a b'"):
        client.messages.create(**asked("x", tools=[{**TOOL, "name": "a b"}]))
    with pytest.raises(anthropic.NotFoundError) as error:
        client.messages.create(**{**asked("x"), "model": "other"})
    assert error.value.request_id
    with (
        anthropic.Anthropic(base_url=server.url, api_key="no", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.models.list()
    assert client.models.list().data[0].id == client.models.retrieve("tiny").id == "tiny"
