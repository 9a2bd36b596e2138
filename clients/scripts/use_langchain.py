"""Use langchain: chat, streams, batches, plain completions, forms, tools and an agent."""

import functools
import operator

from asked import BASE, KEY, MODEL, SAY_CALL, SAY_RAIN, SCRIPTED, SERVER, did
from forms import ASKED, Weather
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

chat = ChatOpenAI(base_url=BASE, api_key=KEY, model=MODEL, temperature=0, max_tokens=8,
                  stream_usage=True, max_retries=0)  # fmt: skip
answer = chat.invoke("Hello! What is a KV cache?")
assert answer.content and answer.usage_metadata["output_tokens"] > 0
did("invoke")

pieces = list(chat.stream("Hello! What is a KV cache?"))
assert "".join(piece.content for piece in pieces) == answer.content
assert any(piece.usage_metadata for piece in pieces)
did("stream with usage")

assert [one.content for one in chat.batch(["Hello! What is a KV cache?"] * 3)] == [
    answer.content
] * 3
did("batch")

plain = OpenAI(base_url=BASE, api_key=KEY, model=MODEL, temperature=0, max_tokens=8, max_retries=0)
assert plain.invoke("Once")
assert len(plain.batch(["Once", "Twice"])) == 2
did("plain completions")

options = {"base_url": BASE, "api_key": KEY, "model": MODEL, "max_tokens": 200, "max_retries": 0}
for api in (False, True):
    chat = ChatOpenAI(**options, use_responses_api=api)
    for method in ("json_schema", "function_calling"):
        form = chat.with_structured_output(Weather, method=method)
        assert isinstance(form.invoke(ASKED), Weather)
    calls = chat.bind_tools([Weather], tool_choice="any", parallel_tool_calls=False)
    [call] = calls.invoke(ASKED).tool_calls
    assert Weather.model_validate(call["args"])
    pieces = list(calls.stream(ASKED))
    [call] = functools.reduce(operator.add, pieces).tool_calls
    assert Weather.model_validate(call["args"])
    did("forms and tools by " + ("responses" if api else "chat"))

cities = []


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    cities.append(city)
    return SAY_RAIN


def loop(model) -> str:
    """Run an agent until it answers."""
    cities.clear()
    asked = {"messages": [{"role": "user", "content": SAY_CALL}]}
    told = create_agent(model, tools=[weather]).invoke(asked)["messages"][-1].text
    assert cities == ["Zurich"]
    return told


for api in (False, True):
    scripted = {**options, "base_url": f"{SCRIPTED}/v1"}
    assert loop(ChatOpenAI(**scripted, use_responses_api=api, streaming=api)) == "It rains."
did("create_agent with a tool, by chat and by responses")

messages = ChatAnthropic(**{**options, "base_url": SERVER})
assert "".join(piece.text for piece in messages.stream("Hello!"))
for method in ("json_schema", "function_calling"):
    form = messages.with_structured_output(Weather, method=method)
    assert isinstance(form.invoke(ASKED), Weather)
did("langchain-anthropic: a stream, forms")
assert loop(ChatAnthropic(**{**options, "base_url": SCRIPTED})) == "It rains."
did("langchain-anthropic: create_agent with a tool")
