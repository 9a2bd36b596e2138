"""Use instructor: the modes that it has for OpenAI's and Anthropic's clients."""

from collections.abc import Iterable

import anthropic
import instructor
import openai
from asked import BASE, KEY, MODEL, SCRIPTED, SERVER, did
from forms import ASKED, Weather
from instructor import Mode

pocket = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
scripted = openai.OpenAI(base_url=f"{SCRIPTED}/v1", api_key=KEY, max_retries=0)
asked = {"model": MODEL, "response_model": Weather, "max_retries": 0}
question = [{"role": "user", "content": ASKED}]

for mode in (Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA, Mode.FUNCTIONS):
    client = instructor.from_openai(pocket, mode=mode)
    form = client.chat.completions.create(**asked, messages=question, max_tokens=200)
    assert isinstance(form, Weather)
    *_, last = client.chat.completions.create_partial(**asked, messages=question, max_tokens=200)
    assert Weather.model_validate(last.model_dump())
    did(f"{mode.name}, whole and in parts")

# What these modes ask for is JSON, and only the prompt says of which form: that takes a model that
# follows it.
said = '{"city":"Bern","degrees":5,"sky":"grey"}'
for mode, text in (
    (Mode.JSON, said),
    (Mode.JSON_O1, said),
    (Mode.MD_JSON, f"Here:\n```json\n{said}\n```"),
):
    client = instructor.from_openai(scripted, mode=mode)
    form = client.chat.completions.create(
        **asked, messages=[{"role": "user", "content": f"SAY:{text}"}]
    )
    assert form.model_dump_json() == said
    did(f"{mode.name}, of a scripted model")

call = f'<tool_call>\n{{"name": "Weather", "arguments": {said}}}\n</tool_call>'
client = instructor.from_openai(scripted, mode=Mode.PARALLEL_TOOLS)
several = client.chat.completions.create(
    model=MODEL, response_model=Iterable[Weather], max_retries=0,
    messages=[{"role": "user", "content": f"SAY:{call}\n{call}"}],
)  # fmt: skip
assert [form.model_dump_json() for form in several] == [said] * 2
did("PARALLEL_TOOLS, of a scripted model")

for mode in (Mode.RESPONSES_TOOLS, Mode.RESPONSES_TOOLS_WITH_INBUILT_TOOLS):
    client = instructor.from_openai(pocket, mode=mode)
    assert isinstance(client.responses.create(**asked, input=ASKED), Weather)
    did(mode.name)

client = instructor.from_anthropic(
    anthropic.Anthropic(base_url=SERVER, api_key=KEY, max_retries=0), mode=Mode.ANTHROPIC_TOOLS
)
assert isinstance(client.messages.create(**asked, messages=question, max_tokens=200), Weather)
did("ANTHROPIC_TOOLS")
scripted = anthropic.Anthropic(base_url=SCRIPTED, api_key=KEY, max_retries=0)
client = instructor.from_anthropic(scripted, mode=Mode.ANTHROPIC_JSON)
form = client.messages.create(
    **asked, messages=[{"role": "user", "content": f"SAY:{said}"}], max_tokens=200
)
assert form.model_dump_json() == said
did("ANTHROPIC_JSON, of a scripted model")
client = instructor.from_anthropic(scripted, mode=Mode.ANTHROPIC_PARALLEL_TOOLS)
several = client.messages.create(
    model=MODEL, response_model=Iterable[Weather], max_retries=0, max_tokens=400,
    messages=[{"role": "user", "content": f"SAY:{call}\n{call}"}],
)  # fmt: skip
assert [form.model_dump_json() for form in several] == [said] * 2
did("ANTHROPIC_PARALLEL_TOOLS, of a scripted model")
client = instructor.from_anthropic(scripted, mode=Mode.ANTHROPIC_REASONING_TOOLS)
form = client.messages.create(
    **asked, messages=[{"role": "user", "content": f"SAY:<think>\nHm.\n</think>\n\n{call}"}],
    max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024},
)  # fmt: skip
assert form.model_dump_json() == said
did("ANTHROPIC_REASONING_TOOLS, of a scripted model")
