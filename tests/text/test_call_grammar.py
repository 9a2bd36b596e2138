"""A forced call is written in the model's own format, and its parser reads what that makes."""

from __future__ import annotations

import json
import random

import jsonschema
import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import pytest

from engine.config import POCKET_MODEL
from engine.structured_outputs import StructuredOutputsParams
from engine.text.facts import transformers_tokenizer
from engine.text.form_to_grammar import checked_grammar
from engine.text.messages.call_grammar import (
    WRITTEN,
    WrittenInTags,
    call_grammar,
    forced_format,
)
from engine.text.messages.formats import CALL_FORMATS, REASONING_FORMATS
from engine.text.messages.found import read
from engine.text.messages.held_grammar import held_grammar

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "kind": {"enum": ["now", "to morrow"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
            "long": {"type": "boolean"},
        },
        "required": ["kind", "days"],
    },
    "clock": {},
}
WITH_TEXT = {
    "note": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "n": {"type": ["integer", "null"]}},
        "required": ["text", "n"],
    }
}
NAMES = [*WRITTEN, "mistral"]
IN_TAGS = [name for name, written in WRITTEN.items() if isinstance(written, WrittenInTags)]
TOKENS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|over|>", "<|open|>", "<|close|>", "<|sep|>"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["marks are text", "marks are tokens"])
def tokens(request):
    """A tokenizer, as llguidance reads it, and the ids of its added tokens."""
    hf = transformers_tokenizer(POCKET_MODEL, None, None, None)
    if request.param:
        hf.add_special_tokens({"additional_special_tokens": TOKENS})
    added = {token.content: i for i, token in hf.added_tokens_decoder.items()}
    return hf, llguidance.hf.from_tokenizer(hf, n_vocab=len(hf)), added


def grammar_of(made, schemas, added, one_call=False):
    text = call_grammar(made, schemas, one_call, added)
    return checked_grammar(StructuredOutputsParams(grammar=text), added).grammar


def walk(tokens, grammar, seed, most=4000):
    """Draw tokens at random among those allowed, until the grammar ends."""
    hf, known, _ = tokens
    matcher, chance = llguidance.LLMatcher(known, grammar), random.Random(seed)
    mask = llguidance.numpy.allocate_token_bitmask(1, len(hf))
    ids = []
    while not matcher.is_stopped() and len(ids) < most:
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        assert not matcher.is_error(), matcher.get_error()
        allowed = np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little"))
        allowed = [int(i) for i in allowed if i != hf.eos_token_id]
        if not allowed or (matcher.is_accepting() and chance.random() < 0.25):
            break
        ids.append(chance.choice(allowed))
        assert matcher.consume_token(ids[-1])
    assert matcher.is_accepting(), hf.decode(ids)
    return hf.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_grammar_makes_is_read(tokens, name):
    made = CALL_FORMATS[name]
    assert forced_format(made) is made
    grammar = grammar_of(made, SCHEMAS, tokens[2])
    several = name in ("llama3_json", "gigachat")  # they have one call
    for seed in range(20):
        if several and seed >= 2:
            break
        text = walk(tokens, grammar, seed)
        message = read(made, text, SCHEMAS)
        assert message.tool_calls and not message.content, text
        several |= len(message.tool_calls) > 1
        for call in message.tool_calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    assert several
    one = walk(tokens, grammar_of(made, SCHEMAS, tokens[2], one_call=True), 1)
    assert len(read(made, one, SCHEMAS).tool_calls) == 1


@pytest.mark.parametrize("name", IN_TAGS)
def test_text_between_tags_is_free(tokens, name):
    written, made = WRITTEN[name], CALL_FORMATS[name]
    value = 'two\nlines, "quotes" & <b>tags</b> </param'
    key = written.key.replace("KEY", "{}")
    text = written.first + written.before.replace("NAME", "note")
    text += key.format("text") + value + written.value_end
    text += key.format("n") + "null" + written.value_end + written.after + written.last
    hf, known, added = tokens
    matcher = llguidance.LLMatcher(known, grammar_of(made, WITH_TEXT, added, one_call=True))
    ids = hf.encode(text, add_special_tokens=False)
    assert matcher.validate_tokens(ids) == len(ids), hf.decode(ids[: matcher.validate_tokens(ids)])
    (call,) = read(made, text, WITH_TEXT).tool_calls
    assert json.loads(call.arguments) == {"text": value, "n": None}


def test_reasoning_is_free_and_the_form_begins_behind_it(tokens):
    hf, known, added = tokens
    form = checked_grammar(StructuredOutputsParams(choice=["yes", "no"]), added).grammar
    calls = grammar_of(CALL_FORMATS["hermes"], SCHEMAS, added)
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    thinks = REASONING_FORMATS["qwen3"]

    def accepts(grammars, text, reasoning=thinks, inside=False):
        grammar = held_grammar(grammars, reasoning, inside, added)
        matcher = llguidance.LLMatcher(known, grammar)
        ids = hf.encode(text, add_special_tokens=False)
        taken = matcher.validate_tokens(ids)
        matcher.consume_tokens(ids[:taken])
        return taken == len(ids) and matcher.is_accepting()

    assert accepts([form], "<think>\nmaybe {not}?\n</think>\n\nyes")
    assert accepts([form], "no") and not accepts([form], "maybe")
    assert accepts([form], "hm</think>\n\nyes", inside=True)
    assert not accepts([form], "yes", inside=True)
    assert not accepts([form], "<think>yes")
    for text in ("yes", call, f"{call}\n{call}", f"<think>x</think>{call}"):
        assert accepts([form, calls], text), text
    assert not accepts([form, calls], f"yes{call}")
    assert held_grammar([form], None, False, added) is form
    # pocket's own end token is written like harmony's mark
    channels = REASONING_FORMATS["harmony"]._replace(end="<|over|>")
    for text in (
        "<|channel|>analysis<|message|>so?<|over|><|start|>assistant<|channel|>final<|message|>yes",
        "<|channel|>final<|message|>no",
        "yes",
    ):
        assert accepts([form], text, channels), text
    assert not accepts([form], "<|channel|>analysis<|message|>yes", channels)
    sections = REASONING_FORMATS["kimi_k3"]
    assert accepts(
        [form], "hm<|close|>think<|sep|><|open|>response<|sep|>yes", sections, inside=True
    )
