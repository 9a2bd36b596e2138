"""Use openai-agents: both of its models, streams, a tool, typed output, answers kept here."""

import asyncio

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from asked import BASE, HELLO, KEY, MODEL, SAY_CALL, SAY_RAIN, SCRIPTED, did
from forms import ASKED, Weather

QUESTION = HELLO[0]["content"]
cities = []


@function_tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    cities.append(city)
    return SAY_RAIN


async def use(name: str, model, scripted) -> None:
    settings = ModelSettings(temperature=0.0)
    agent = Agent(name="a", instructions="Be brief.", model=model, model_settings=settings)
    result = await Runner.run(agent, QUESTION)
    assert result.final_output
    did(f"{name}: run")
    stream = Runner.run_streamed(agent, QUESTION)
    async for _ in stream.stream_events():
        pass
    assert stream.final_output == result.final_output
    did(f"{name}: run_streamed")
    typed = Agent(name="t", model=model, output_type=Weather,
                  model_settings=ModelSettings(max_tokens=200))  # fmt: skip
    assert isinstance((await Runner.run(typed, ASKED)).final_output, Weather)
    did(f"{name}: a typed output")
    helper = Agent(name="h", instructions="Help.", model=scripted, tools=[weather])
    cities.clear()
    assert (await Runner.run(helper, SAY_CALL)).final_output == "It rains."
    stream = Runner.run_streamed(helper, SAY_CALL)
    async for _ in stream.stream_events():
        pass
    assert stream.final_output == "It rains." and cities == ["Zurich"] * 2
    did(f"{name}: a loop with a tool, whole and streamed")


async def main() -> None:
    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    scripted = openai.AsyncOpenAI(base_url=f"{SCRIPTED}/v1", api_key=KEY, max_retries=0)
    for name, kind in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
        await use(name, kind(MODEL, client), kind(MODEL, scripted))
    model = OpenAIResponsesModel(MODEL, client)
    agent = Agent(name="a", model=model, model_settings=ModelSettings(store=True))
    first = await Runner.run(agent, QUESTION)
    second = await Runner.run(agent, "And?", previous_response_id=first.last_response_id)
    tokens = [result.raw_responses[0].usage.input_tokens for result in (first, second)]
    assert tokens[1] > tokens[0]
    did("responses: going on from an earlier answer's id")


asyncio.run(main())
