"""Use pydantic-ai: tools in a loop, and each of its ways to a form, by chat and by responses."""

from asked import BASE, KEY, MODEL, SAY_CALL, SAY_RAIN, SCRIPTED, SERVER, did
from forms import ASKED, Weather
from pydantic_ai import Agent, ModelSettings, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

pocket = OpenAIProvider(base_url=BASE, api_key=KEY)
scripted = OpenAIProvider(base_url=f"{SCRIPTED}/v1", api_key=KEY)
anthropic = [AnthropicProvider(base_url=url, api_key=KEY) for url in (SERVER, SCRIPTED)]
limit = ModelSettings(max_tokens=200)

for kind, providers in (
    (OpenAIChatModel, (pocket, scripted)),
    (OpenAIResponsesModel, (pocket, scripted)),
    (AnthropicModel, anthropic),
):
    name, is_anthropic = kind.__name__, kind is AnthropicModel
    agent = Agent(kind(MODEL, provider=providers[1]))
    cities = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """Tell the weather of a city."""
        cities.append(city)  # noqa: B023
        return SAY_RAIN

    assert agent.run_sync(SAY_CALL).output == "It rains."
    streamed = agent.run_stream_sync(SAY_CALL)
    assert "".join(streamed.stream_text(delta=True)) == "It rains."
    assert cities == ["Zurich"] * 2
    did(f"{name}: a loop with a tool, whole and streamed")

    # Of models of Anthropic it knows by name which of them take a schema, of others nothing.
    profile = {"profile": ModelProfile(supports_json_schema_output=True)} if is_anthropic else {}
    model = kind(MODEL, provider=providers[0], **profile)
    for output in (ToolOutput(Weather), NativeOutput(Weather)):
        form = Agent(model, output_type=output, model_settings=limit)
        assert isinstance(form.run_sync(ASKED).output, Weather)
        did(f"{name}: {type(output).__name__}")

prompted = Agent(
    OpenAIChatModel(MODEL, provider=scripted), output_type=PromptedOutput(Weather, template=False)
)
said = 'SAY:{"city": "Bern", "degrees": 5, "sky": "grey"}'
assert prompted.run_sync(said).output.degrees == 5
did("PromptedOutput, of a scripted model")
