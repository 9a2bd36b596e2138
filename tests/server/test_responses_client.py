"""The openai client's responses, unchanged: answers, streams, tools, thoughts, and what is kept."""

from __future__ import annotations

import json

import openai
import pytest

from tests.server.scripted_engine import TOOLS_TEMPLATE, load_scripted

TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 🌧"}}\n</tool_call>'
THOUGHT = "<think>\nIt rains.\n</think>\n\nTake an umbrella."


@pytest.fixture(scope="module")
def server(run_server):
    with run_server(load_scripted, chat_template=TOOLS_TEMPLATE) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def create(client, said, **fields):
    return client.responses.create(model="tiny", input=f"SAY:{said}", **fields)


def streamed(client, said, **fields):
    """What openai's own helper makes of the events."""
    with client.responses.stream(model="tiny", input=f"SAY:{said}", **fields) as stream:
        events = list(stream)
        return events, stream.get_final_response()


def bare(value, without):
    """A value without these keys, at any level."""
    if isinstance(value, list):
        return [bare(item, without) for item in value]
    if isinstance(value, dict):
        return {key: bare(item, without) for key, item in value.items() if key not in without}
    return value


HELPERS = ("parsed", "parsed_arguments")  # what openai's stream helper adds


def parts(response):
    """The items of an answer without their ids."""
    items = [item.to_dict() for item in response.output]
    return bare(items, (*HELPERS, "id", "call_id"))


@pytest.mark.parametrize("summary", [None, "auto"])
@pytest.mark.parametrize(
    "said",
    ["Just text < and <tool.", f"Let me see.\n{CALL}", f"{CALL}\n{CALL}", "", THOUGHT,
     f"<think>\nHm.\n</think>\n\n{CALL}"],
)  # fmt: skip
def test_a_stream_is_the_whole_answer(client, said, summary):
    fields = {"tools": [TOOL], "reasoning": {"summary": summary}}
    whole = create(client, said, **fields)
    events, final = streamed(client, said, **fields)
    assert parts(final) == parts(whole) and final.output_text == whole.output_text
    assert final.status == whole.status == "completed"
    assert final.usage.output_tokens == whole.usage.output_tokens
    numbers = [event.sequence_number for event in events if hasattr(event, "sequence_number")]
    assert numbers == list(range(len(numbers)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    done = [event.item.to_dict() for event in events if event.type == "response.output_item.done"]
    assert done == bare([item.to_dict() for item in final.output], HELPERS)


def test_calls_and_their_outputs_go_on_from_what_is_kept(client):
    """As openai-agents does: only the new items, and the id of the answer before."""
    first = create(client, f"Let me see.\n{CALL}", tools=[TOOL])
    text, call = first.output
    assert text.content[0].text == "Let me see." and call.name == "weather"
    assert json.loads(call.arguments) == {"city": "Zürich 🌧"}
    assert call.id.startswith("fc_") and call.call_id.startswith("call_")
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": "SAY:It rains there.",
    }
    second = client.responses.create(
        model="tiny", input=[result], previous_response_id=first.id, tools=[TOOL]
    )
    assert second.output_text == "It rains there."
    history = [{"role": "user", "content": f"SAY:Let me see.\n{CALL}"}, *first.output, result]
    given_back = client.responses.create(model="tiny", input=history, tools=[TOOL])
    assert given_back.usage.input_tokens == second.usage.input_tokens
    third = client.responses.create(
        model="tiny", input="SAY:done", previous_response_id=second.id, tools=[TOOL]
    )
    assert third.usage.input_tokens > second.usage.input_tokens + len("It rains there.")


def test_thoughts_are_items_and_may_be_given_back(client):
    answer = create(client, THOUGHT)
    thought, text = answer.output
    assert thought.content[0].text == "It rains." and thought.summary == []
    assert text.content[0].text == "Take an umbrella."
    assert answer.usage.output_tokens_details.reasoning_tokens == len("\nIt rains.\n")
    summed = create(client, THOUGHT, reasoning={"summary": "auto"}).output[0]
    assert summed.summary[0].text == "It rains." and not summed.content
    for item in (thought, summed):
        history = [{"role": "user", "content": "a"}, item, text, {"role": "user", "content": "b"}]
        tokens = client.responses.input_tokens.count(model="tiny", input=history).input_tokens
        del history[1]
        without = client.responses.input_tokens.count(model="tiny", input=history).input_tokens
        assert tokens == without + len("<think>It rains.</think>") - 2  # "th" is one token


def test_one_call_and_no_call(client):
    one = create(client, CALL + CALL, tools=[TOOL], parallel_tool_calls=False)
    assert [item.type for item in one.output] == ["function_call"]
    none = create(client, CALL, tools=[TOOL], tool_choice="none")
    assert none.output_text == CALL


def test_what_is_kept_can_be_asked_for(client):
    answer = create(client, "Hello.", metadata={"a": "b"}, instructions="be")
    assert client.responses.retrieve(answer.id).to_dict() == answer.to_dict()
    assert answer.metadata == {"a": "b"} and answer.instructions == "be"
    (item,) = client.responses.input_items.list(answer.id).data
    assert item.role == "user" and item.content[0].text == "SAY:Hello."
    client.responses.delete(answer.id)
    for call in (
        lambda: client.responses.retrieve(answer.id),
        lambda: client.responses.delete(answer.id),
        lambda: client.responses.input_items.list(answer.id),
        lambda: client.responses.cancel(answer.id),
        lambda: client.responses.create(model="tiny", input="a", previous_response_id=answer.id),
    ):
        with pytest.raises(openai.NotFoundError, match=answer.id):
            call()


def test_errors_have_the_clients_types(client):
    with pytest.raises(openai.BadRequestError) as error:
        create(client, "x", tools=[{"type": "web_search"}])
    assert error.value.param == "tools.0.type" and "'web_search'" in error.value.message
    with pytest.raises(openai.BadRequestError) as error:
        create(client, "x", tools=[{**TOOL, "parameters": [1]}])
    assert error.value.param == "tools.0.parameters"
    with pytest.raises(openai.BadRequestError) as error:
        create(client, "x", background=True)
    assert error.value.param == "background"
    answer = create(client, "x")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(answer.id)


def test_an_answer_that_is_cut_is_incomplete(client):
    answer = create(client, "Hello there.", max_output_tokens=5)
    assert answer.status == "incomplete" and answer.output_text == "Hello"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"
    limit = len(CALL.encode()) + 4
    cut = create(client, f"{CALL}\nHello there.", max_output_tokens=limit, tools=[TOOL])
    assert [item.status for item in cut.output] == ["completed", "incomplete"]
    events = list(create(client, "Hello there.", max_output_tokens=5, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == "Hello"
