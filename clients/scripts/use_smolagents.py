"""Use smolagents: an agent that calls tools, and one that writes code."""

from asked import CALL, KEY, MODEL, SCRIPTED, did
from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

model = OpenAIModel(model_id=MODEL, api_base=f"{SCRIPTED}/v1", api_key=KEY)
cities = []
END = '<tool_call>\n{"name": "final_answer", "arguments": {"answer": "It rains."}}\n</tool_call>'


@tool
def weather(city: str) -> str:
    """Tell the weather of a city.

    Args:
        city: where
    """
    cities.append(city)
    return f"SAY:{END}"


agent = ToolCallingAgent(tools=[weather], model=model, max_steps=3)
assert agent.run(f"SAY:{CALL}") == "It rains."
assert cities == ["Zurich"]
did("ToolCallingAgent, to its final answer")
streaming = ToolCallingAgent(tools=[weather], model=model, max_steps=3, stream_outputs=True)
assert streaming.run(f"SAY:{CALL}") == "It rains."
assert cities == ["Zurich"] * 2
did("and with stream_outputs")

code = "<code>\nfinal_answer(weather('Bern')[:4])\n</code>"
assert CodeAgent(tools=[weather], model=model, max_steps=2).run(f"SAY:{code}") == "SAY:"
assert cities[-1] == "Bern"
did("CodeAgent")
