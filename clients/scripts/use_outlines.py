"""Use outlines: its kinds of forms, as vLLM's server takes them and as OpenAI's does."""

import re
from typing import Literal

import openai
import outlines
from asked import BASE, KEY, MODEL, did
from forms import ASKED, Weather
from outlines.types import CFG, Regex

client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)

vllm = outlines.from_vllm(client, MODEL)
assert Weather.model_validate_json(vllm(ASKED, Weather, max_tokens=200))
assert Weather.model_validate_json("".join(vllm.stream(ASKED, Weather, max_tokens=200)))
did("a form of pydantic, whole and streamed")
assert vllm(ASKED, Literal["wet", "dry"], max_tokens=20) in ("wet", "dry")
assert re.fullmatch(r"[0-9]{2} C", vllm(ASKED, Regex(r"[0-9]{2} C"), max_tokens=20))
assert vllm(ASKED, bool, max_tokens=20) in ("True", "False")
did("a choice, a regular expression, a type of Python")
assert vllm(ASKED, CFG('start: "wet" | "dry"'), max_tokens=20) in ("wet", "dry")
did("a grammar")

likes_openai = outlines.from_openai(client, MODEL)
assert Weather.model_validate_json(likes_openai(ASKED, Weather, max_tokens=200))
did("from_openai: a form of pydantic")
