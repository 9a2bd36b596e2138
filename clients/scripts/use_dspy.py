"""Use dspy: a signature by its adapters, and an agent that calls tools, in the prompt and natively.

dspy asks an unknown server for no forms and gives it no tools: `register_provider` says that this
one has both.
"""

import dspy
from asked import BASE, CALL, KEY, MODEL, SCRIPTED, did
from dspy.lm15 import AccessPolicy, ModelSupport, OpenAIChatCompat, ProviderDefinition
from dspy.lm15 import register_provider as register
from forms import ASKED, Weather


class Tell(dspy.Signature):
    """Tell the weather."""

    question: str = dspy.InputField()
    weather: Weather = dspy.OutputField()


for name, base in (("house", BASE), ("scripted", f"{SCRIPTED}/v1")):
    access = AccessPolicy(provider=name, base_url=base)
    register(
        ProviderDefinition.chat(access, compat=OpenAIChatCompat()),
        supports=ModelSupport(function_calling=True, response_schema=True),
    )
options = {"api_key": KEY, "num_retries": 0, "cache": False, "max_tokens": 300}
unknown = dspy.LM(f"openai/{MODEL}", api_base=f"{SCRIPTED}/v1", **options)
pocket = dspy.LM(f"house/{MODEL}", **options)
scripted = dspy.LM(f"scripted/{MODEL}", **options)

said = 'SAY:[[ ## weather ## ]]\n{"city": "Bern", "degrees": 5, "sky": "grey"}\n\n'
with dspy.context(lm=unknown, adapter=dspy.ChatAdapter()):
    assert dspy.Predict(Tell)(question=f"{said}[[ ## completed ## ]]\n").weather.degrees == 5
did("ChatAdapter, of a scripted model")

with dspy.context(lm=pocket, adapter=dspy.JSONAdapter()):
    assert isinstance(dspy.Predict(Tell)(question=ASKED).weather, Weather)
did("JSONAdapter, by a schema")


class Ask(dspy.Signature):
    """Ask for what is missing."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return city


with dspy.context(lm=scripted, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
    told = dspy.Predict(Ask)(question=f"SAY:{CALL}", tools=[dspy.Tool(weather)])
[call] = told.calls.tool_calls
assert (call.name, call.args) == ("weather", {"city": "Zurich"})
did("native tools, of a scripted model")
