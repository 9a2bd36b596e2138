"""Use langchain: chat, streams, batches, plain completions, forms, tools and an agent."""

import functools
import operator

from asked import BASE, KEY, MODEL, SAY_CALL, SAY_RAIN, SCRIPTED, did
from forms import ASKED, Weather
from langchain.agents import create_agent
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


for api in (False, True):
    scripted = ChatOpenAI(
        **{**options, "base_url": f"{SCRIPTED}/v1"}, use_responses_api=api, streaming=api
    )
    agent = create_agent(scripted, tools=[weather])
    told = agent.invoke({"messages": [{"role": "user", "content": SAY_CALL}]})["messages"]
    assert told[-1].text == "It rains."
assert cities == ["Zurich"] * 2
did("create_agent with a tool, by chat and by responses")
