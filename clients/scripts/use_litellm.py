"""Use litellm's SDK, by its ways to such a server: openai/…, hosted_vllm/… and anthropic/…"""

import asyncio
import json

import litellm
from asked import BASE, CALL, HELLO, KEY, MODEL, SCRIPTED, SERVER, did
from forms import ASKED, Weather

for way in ("openai", "hosted_vllm"):
    where = {"model": f"{way}/{MODEL}", "api_base": BASE, "api_key": KEY, "num_retries": 0}
    asked = {**where, "messages": HELLO, "max_tokens": 8, "temperature": 0}
    answer = litellm.completion(**asked)
    whole = answer.choices[0].message.content
    assert whole and answer.usage.completion_tokens > 0
    did(f"{way}: completion")
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    did(f"{way}: a stream")
    other = asyncio.run(litellm.acompletion(**asked))
    assert other.choices[0].message.content == whole
    did(f"{way}: acompletion")
    question = [{"role": "user", "content": ASKED}]
    form = litellm.completion(**where, messages=question, max_tokens=200, response_format=Weather)
    assert Weather.model_validate_json(form.choices[0].message.content)
    made = litellm.responses(**where, input="Hello!", max_output_tokens=8)
    assert made.output[-1].content[0].text
    did(f"{way}: response_format, responses")

tool = {"type": "function", "function": {
    "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}}  # fmt: skip
for way, base in (
    ("openai", f"{SCRIPTED}/v1"),
    ("hosted_vllm", f"{SCRIPTED}/v1"),
    ("anthropic", SCRIPTED),
):
    asked = {"model": f"{way}/{MODEL}", "api_base": base, "api_key": KEY, "max_tokens": 200,
             "messages": [{"role": "user", "content": f"SAY:{CALL}"}], "tools": [tool]}  # fmt: skip
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True))
    for answer in (whole, litellm.stream_chunk_builder(chunks)):
        [call] = answer.choices[0].message.tool_calls
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments) == {"city": "Zurich"}
    did(f"{way}: a tool, whole and streamed")

message = asyncio.run(
    litellm.anthropic.messages.acreate(
        model=f"anthropic/{MODEL}", api_base=SERVER, api_key=KEY, messages=HELLO, max_tokens=8
    )
)
assert message["content"][0]["text"]
did("anthropic: messages")

where = {"model": f"text-completion-openai/{MODEL}", "api_base": BASE, "api_key": KEY}
assert litellm.text_completion(**where, prompt="Once", max_tokens=8).choices[0].text
did("text_completion")

try:
    litellm.completion(model="openai/another", api_base=BASE, api_key=KEY, messages=HELLO)
except litellm.NotFoundError:
    did("errors of the right kind")
