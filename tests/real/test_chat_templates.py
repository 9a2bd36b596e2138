"""The chat templates of 70 models, each rendered as transformers' `apply_chat_template` does."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest

from engine.config import POCKET_MODEL
from engine.text.chat_template import ChatTemplate
from engine.text.errors import TextError
from engine.text.facts import transformers_tokenizer
from engine.text.messages.found import answers_written, find_formats, read
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


UNREAD = {
    *("MiniMax-M3", "muse-glimmer"),
    *("LFM2-8B-A1B", "LFM2.5-Instruct"),  # they write no call at all
    *("meetkai-functionary-medium-v3.2", "openbmb-MiniCPM5-1B"),
}
"""Templates that write calls in a way that no parser here reads."""
NO_TOOLS = {  # they have no place for the definitions of tools
    *("CohereForAI-c4ai-command-r-plus-tool_use", "HuggingFaceTB-SmolLM3-3B"),
    *("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"),
    *("deepseek-ai-DeepSeek-V3.1", "fireworks-ai-llama-3-firefunction-v2", "google-gemma-2-2b-it"),
    *("llama-cpp-deepseek-r1", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct"),
}
WRITES = {
    "hermes": 10, "glm45": 7, "qwen3_xml": 4, "mistral": 4, "deepseek_v32": 3, "llama3_json": 3,
    "kimi_k2": 3, "minimax": 3, "lfm2": 1, "cohere": 2, "gigachat": 1, "seed_oss": 1, "solar": 1,
    "granite": 1, "minimax_m2": 1, "nemotron": 1, "functionary_v3": 1, "harmony": 1, "gemma4": 2,
    "apertus": 1, "hunyuan": 1, "kimi_k3": 1, "gigachat3": 1,
}  # fmt: skip


def test_formats_are_found():
    """Each template's own call is read; what it writes says which format that is."""
    found = {name: find_formats(ChatTemplate(tokenizer(), text))
             for name, text in templates().items()}  # fmt: skip
    assert {name for name, formats in found.items() if not formats.takes_tools} == NO_TOOLS
    useful = {n: f.calls for n, f in found.items() if f.takes_tools}
    assert {name for name, calls in useful.items() if calls is None} == UNREAD
    assert Counter(calls.name for calls in useful.values() if calls is not None) == WRITES
    thinkers = {name for name, formats in found.items() if formats.reasoning is not None}
    assert len(thinkers) > 30 and "Qwen-Qwen3-0.6B" in thinkers
    for name in ("openai-gpt-oss-120b", "google-gemma-4-31B-it", "Kimi-K3", "tencent-Hy3"):
        assert found[name].reasoning.name == found[name].calls.name


def test_two_calls_are_read():
    """What a template writes of calls is read as them, whatever their values look like."""
    schemas = {"weather": FUNCTION["parameters"]}
    for name, text in templates().items():
        chat = ChatTemplate(tokenizer(), text)
        calls = find_formats(chat).calls
        if calls is None or name in NO_TOOLS:
            continue
        for value in ("Paris", 'Å "b"\nc', "7", '{"a": 1}'):
            asked = [called({"city": one}, None)["tool_calls"][0] for one in (value, "Oslo")]
            asked[1]["id"] = "call12346"
            texts = answers_written(chat, [ASKS], asked, TOOLS)
            texts = texts or answers_written(chat, [ASKS], asked[:1], TOOLS)  # it takes one
            read_ = [
                [
                    json.loads(call.arguments)["city"]
                    for call in read(calls, one, schemas).tool_calls
                ]
                for one in texts
            ]
            assert not texts or [value, "Oslo"] in read_ or [value] in read_, (name, texts)
