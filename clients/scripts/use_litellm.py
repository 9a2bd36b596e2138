"""Use litellm's SDK, by its two ways to such a server: openai/… and hosted_vllm/…"""

import asyncio

import litellm
from asked import BASE, HELLO, KEY, MODEL, did

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

where = {"model": f"text-completion-openai/{MODEL}", "api_base": BASE, "api_key": KEY}
assert litellm.text_completion(**where, prompt="Once", max_tokens=8).choices[0].text
did("text_completion")

try:
    litellm.completion(model="openai/another", api_base=BASE, api_key=KEY, messages=HELLO)
except litellm.NotFoundError:
    did("errors of the right kind")
