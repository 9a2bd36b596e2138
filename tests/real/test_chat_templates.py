"""The chat templates of 70 models, each rendered as transformers' `apply_chat_template` does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from engine.config import POCKET_MODEL
from engine.text.chat_template import ChatTemplate
from engine.text.errors import TextError
from engine.text.facts import transformers_tokenizer
from engine.text.tokenizer import Tokenizer
from tests.real import fetched

pytestmark = pytest.mark.full  # they fetch 200 MB, once

NUM_TEMPLATES = 70
SYSTEM = {"role": "system", "content": "You are terse."}
ASKS = {"role": "user", "content": "What is the weather in Paris?"}
TALK = [SYSTEM, ASKS, {"role": "assistant", "content": "Sunny."}]
TALK.append({"role": "user", "content": "And in Oslo?"})
PARTS = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the weather in Paris?"}]
FUNCTION = {
    "name": "weather",
    "description": "Say the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "A city."}},
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": FUNCTION}]
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": "20 degrees"}
WITHOUT_CALLS = {
    *("HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct", "google-gemma-2-2b-it"),
    *("ibm-granite-granite-3.3-2B-Instruct", "llama-cpp-rwkv-world"),
    "microsoft-Phi-3.5-mini-instruct",
}
"""Templates that have no place for tool calls. transformers loses them; here they are refused."""

ALWAYS = {"fireworks-ai-llama-3-firefunction-v2"}  # wants `functions`, a variable of its own
WITHOUT_TOOLS = {  # they take no chat without tools
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
}


def called(arguments: Any, content: str | None) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "call12345", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


@cache
def tokenizer() -> Tokenizer:
    """Pocket's, with the names of special tokens that templates use."""
    hf = transformers_tokenizer(POCKET_MODEL, None, None, None)
    hf.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    return Tokenizer.of(hf)


def templates() -> dict[str, str]:
    paths = sorted((fetched.llama_cpp() / "templates").glob("*.jinja"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def theirs(template: str, talk: list[Any], tools: list[Any] | None = None) -> str | Exception:
    try:
        return tokenizer().hf.apply_chat_template(
            talk, chat_template=template, tools=tools, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program: anything may fail
        return error


def ours(template: str, talk: list[Any], tools: list[Any] | None = None) -> str | TextError:
    kwargs = {} if tools is None else {"tools": tools}
    try:
        return ChatTemplate(tokenizer(), template).render(talk, chat_template_kwargs=kwargs)
    except TextError as error:
        return error


def compare(name: str, mine: str | TextError, other: str | Exception) -> bool:
    """Hold one rendering against transformers'; return whether both refused."""
    if isinstance(other, Exception):
        assert isinstance(mine, TextError), (name, other, mine)
        assert str(other)[:200] in str(mine), (name, other, mine)  # the template's own words
        return True
    assert mine == other, name
    return False


def refused_by(talk: list[Any], tools: list[Any] | None = None) -> set[str]:
    """Compare every template on a conversation; return the names of those that refuse it."""
    found = templates()
    assert len(found) == NUM_TEMPLATES
    return {
        name
        for name, text in found.items()
        if compare(name, ours(text, talk, tools), theirs(text, talk, tools))
    }


def test_plain_chat():
    assert refused_by([ASKS]) == ALWAYS | WITHOUT_TOOLS
    assert refused_by(TALK) == ALWAYS | WITHOUT_TOOLS | {"google-gemma-2-2b-it"}  # no system


def test_tool_definitions():
    no_json = {"llama-cpp-deepseek-r1"}  # it writes the generator of a filter as JSON
    assert refused_by([ASKS], TOOLS) == ALWAYS | no_json
    assert refused_by([SYSTEM, ASKS], TOOLS) == ALWAYS | no_json | {"google-gemma-2-2b-it"}


def test_tool_histories():
    """On the wire a call's arguments are a string; templates get the object, or what they take."""
    histories = [
        [ASKS, called(arguments, content), RESULT]
        for arguments, content in (('{"city": "Paris"}', ""), ({"city": "Paris"}, ""))
    ]
    lost, refused, strings = set(), set(), set()
    for name, text in templates().items():
        mine = ours(text, [ASKS, called('{"city": "Paris"}', None), RESULT], TOOLS)
        if isinstance(mine, TextError) and "tool_calls would be lost" in str(mine):
            lost.add(name)
            continue
        of_string, of_object = (theirs(text, history, TOOLS) for history in histories)
        takes_string = isinstance(of_object, Exception) and isinstance(of_string, str)
        strings |= {name} if takes_string else set()
        if compare(name, mine, of_string if takes_string else of_object):
            refused.add(name)
    assert lost == WITHOUT_CALLS
    assert strings == {"meetkai-functionary-medium-v3.2"}
    appends = {"Kimi-K2-Instruct", "Kimi-K2-Thinking"}  # to a list: Jinja's sandbox forbids it
    assert refused == ALWAYS | appends | {"llama-cpp-deepseek-r1"}


@pytest.mark.parametrize("role", ["user", "system"])
def test_text_parts(role):
    """A template that reads parts gets them; one that doesn't gets their text, a part a line."""
    readers = set()
    for name, text in templates().items():
        talks = [
            [{"role": role, "content": content}, *([] if role == "user" else [ASKS])]
            for content in (PARTS, PARTS[:1], PARTS[0]["text"], "What is\nthe weather in Paris?")
        ]
        parts, one, plain, joined = [theirs(text, talk) for talk in talks]
        reads = isinstance(one, str) and one == plain
        readers |= {name} if reads else set()
        mine = ours(text, talks[0])
        compare(name, mine, parts if reads else joined)
        compare(name, ours(text, talks[1]), plain)
    assert len(readers) > 20
