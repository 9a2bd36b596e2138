"""Use openai-agents: both of its models, streams, sessions on the server, typed output."""

import asyncio
from typing import Literal

import openai
import pydantic
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from asked import BASE, HELLO, KEY, MODEL, did

QUESTION = HELLO[0]["content"]


class Answer(pydantic.BaseModel):
    known: bool
    topic: Literal["memory", "weather"]


async def use(name: str, model) -> None:
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
    typed = Agent(name="t", model=model, output_type=Answer,
                  model_settings=ModelSettings(max_tokens=64))  # fmt: skip
    assert isinstance((await Runner.run(typed, QUESTION)).final_output, Answer)
    did(f"{name}: a typed output")


async def main() -> None:
    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    await use("chat", OpenAIChatCompletionsModel(MODEL, client))
    model = OpenAIResponsesModel(MODEL, client)
    await use("responses", model)
    agent = Agent(name="a", model=model, model_settings=ModelSettings(store=True))
    first = await Runner.run(agent, QUESTION)
    second = await Runner.run(agent, "And?", previous_response_id=first.last_response_id)
    tokens = [result.raw_responses[0].usage.input_tokens for result in (first, second)]
    assert tokens[1] > tokens[0]
    did("responses: going on from an earlier answer's id")


asyncio.run(main())
