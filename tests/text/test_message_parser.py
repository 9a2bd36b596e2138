"""However a model's text comes, it is the same message; whatever it is, nothing raises."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.config import POCKET_MODEL
from engine.sampling_params import SamplingParams
from engine.text.facts import transformers_tokenizer
from engine.text.messages.formats import CALL_FORMATS, FORMATS, REASONING_FORMATS
from engine.text.messages.marks import PlainText
from engine.text.messages.message_pieces import (
    CallUnreadable,
    ContentPiece,
    ReasoningPiece,
    ToolCallArguments,
    ToolCallBegun,
)
from engine.text.messages.parser import MessageParser
from engine.text.messages.rules import MessageRules
from engine.text.messages.tagged_calls import types_of
from engine.text.tokenizer import Tokenizer

STRING, NUMBER = {"type": "string"}, {"type": "integer"}
SCHEMAS = {
    "get_w": {"properties": {"city": STRING, "days": NUMBER, "tags": {"type": "array"}}},
    "clock": {},
}
OSLO = {"city": 'Ås "ö" 🌧\nOslo'}
WRITTEN = json.dumps(OSLO, ensure_ascii=False)
CALL = ("get_w", OSLO)
CLOCK = ("clock", {})
QWEN = (
    "<tool_call>\n<function=get_w>\n<parameter=city>\n" + OSLO["city"] + "\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
DEEPSEEK = "<｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>"
DSML = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_w">\n<｜DSML｜parameter name="city"'
    ' string="true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)
THREE = {**OSLO, "days": 3}

TRANSCRIPTS = [  # (format, text, content, calls)
    ("hermes", f'<tool_call>\n{{"name": "get_w", "arguments": {WRITTEN}}}\n</tool_call>', "",
     [CALL]),
    ("hermes", f'I look.\n\n<tool_call>{{"arguments": {WRITTEN}, "name": "get_w"}}</tool_call>\n'
     '<tool_call>{"name": "clock"}</tool_call>', "I look.", [CALL, CLOCK]),
    ("hermes", '<tool_call>{"name": "get_w", "parameters": {"city": "</tool_call>{\\""}}',
     "", [("get_w", {"city": '</tool_call>{"'})]),
    ("hermes", f'<tool_call>{{"name":"get_w","arguments":{json.dumps(WRITTEN)}}}</tool_call>',
     "", [CALL]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": null}</tool_call> Done.', "Done.",
     [CLOCK]),
    ("hermes", f'<tool_call>{{"parameters": {{}}, "arguments": {WRITTEN}, "args": 1, "name":'
     '"get_w"}</tool_call>', "", [CALL]),
    ("hermes", f'<tool_call>{{"name": "get_w", "arguments": {WRITTEN}, "parameters": {{"a": 1}}}}'
     "</tool_call>", "", [CALL]),
    ("hermes", "<tool_call>what?</tool_call>", "<tool_call>what?</tool_call>", []),
    ("hermes", "a < b and <tool b", "a < b and <tool b", []),
    ("llama3_json", f' {{"name": "get_w", "parameters": {WRITTEN}}}', "", [CALL]),
    ("llama3_json", f'{{"name": "get_w", "parameters": {WRITTEN}}}; {{"name": "clock"}}', "",
     [CALL, CLOCK]),
    ("llama3_json", '{"name": "Ada", "age": 3}', '{"name": "Ada", "age": 3}', []),
    ("llama3_json", "{not json}", "{not json}", []),
    ("llama3_json", f'Hm: {{"name": "get_w", "parameters": {WRITTEN}}}',
     f'Hm: {{"name": "get_w", "parameters": {WRITTEN}}}', []),
    ("mistral", f'[TOOL_CALLS][{{"name": "get_w", "arguments": {WRITTEN}, "id": "a1b2c3d4e"}},'
     '{"name": "clock", "arguments": {}}]', "", [CALL, CLOCK]),
    ("mistral", f"Yes.[TOOL_CALLS]get_w[CALL_ID]a1b2c3d4e[ARGS]{WRITTEN}"
     "[TOOL_CALLS]clock[ARGS]{}",
     "Yes.", [CALL, CLOCK]),
    ("qwen3_xml", QWEN, "", [("get_w", THREE)]),
    ("qwen3_xml", "<tool_call>\n<function=get_w>\n<parameter=city>\na </b> c\n<parameter=tags>\n"
     '["x", 1]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>'
     "\n</tool_call>", "", [("get_w", {"city": "a </b> c", "tags": ["x", 1]}), CLOCK]),
    ("qwen3_xml", "<tool_call>\n<function=get_w>\n<parameter=city>\n</tool_call><tool_call>\n"
     "</parameter>\n</function>\n</tool_call>", "",
     [("get_w", {"city": "</tool_call><tool_call>"})]),
    ("glm45", f"<tool_call>get_w\n<arg_key>city</arg_key>\n<arg_value>{OSLO['city']}</arg_value>\n"
     "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>", "", [("get_w", THREE)]),
    ("glm45", "<tool_call>get_w<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
     "<tool_call>clock</tool_call>", "", [("get_w", {"days": 3}), CLOCK]),
    ("minimax_m2", '<minimax:tool_call>\n<invoke name="get_w">\n<parameter name="city">Oslo'
     '</parameter>\n</invoke>\n<invoke name="clock">\n</invoke>\n</minimax:tool_call>', "",
     [("get_w", {"city": "Oslo"}), CLOCK]),
    ("deepseek_v32", DSML, "", [("get_w", {"city": "Oslo", "days": 3})]),
    ("deepseek_v3", "<｜tool▁calls▁begin｜>" + DEEPSEEK.format(
        f"function<｜tool▁sep｜>get_w\n```json\n{WRITTEN}\n```") + "\n" + DEEPSEEK.format(
        "function<｜tool▁sep｜>clock\n```json\n{}\n```") + "<｜tool▁calls▁end｜>", "",
     [CALL, CLOCK]),
    ("deepseek_v3", DEEPSEEK.format(f"get_w<｜tool▁sep｜>{WRITTEN}"), "", [CALL]),
    ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_w:0"
     f"<|tool_call_argument_begin|>{WRITTEN}<|tool_call_end|><|tool_calls_section_end|>", "",
     [CALL]),
    ("pythonic", "[get_w(city='Oslo', days=3, tags=['a', {'b': None}]), clock()]", "",
     [("get_w", {"city": "Oslo", "days": 3, "tags": ["a", {"b": None}]}), CLOCK]),
    ("pythonic", "[get_w(city=open('x'))]", "[get_w(city=open('x'))]", []),
    ("lfm2", "<|tool_call_start|>[get_w(city='a)b\\'')]<|tool_call_end|>Wait.", "Wait.",
     [("get_w", {"city": "a)b'"})]),
    ("nemotron", f'<TOOLCALL>[{{"name": "get_w", "arguments": {WRITTEN}}}]</TOOLCALL>', "", [CALL]),
    ("cohere", f'<|START_ACTION|>[\n{{"tool_call_id": "0", "tool_name": "get_w", "parameters":'
     f" {WRITTEN}}}\n]<|END_ACTION|>", "", [CALL]),
    ("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
     f"to=functions.get_w <|constrain|>json<|message|>{WRITTEN}<|call|>",
     "<|channel|>analysis<|message|>Hm.", [CALL]),  # its reasoning isn't told apart here
    ("harmony", f" to=functions.get_w<|channel|>commentary json<|message|>{WRITTEN}<|call|>"
     "<|start|>assistant to=functions.clock<|channel|>commentary json<|message|>{}<|call|>", "",
     [CALL, CLOCK]),
    ("harmony", "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>"
     "commentary to=functions.clock<|message|>{}<|call|>", "I look.", [CLOCK]),
    ("harmony", "<|channel|>final<|message|>It rains to= me.<|return|>", "It rains to= me.", []),
    ("gemma4", '<|tool_call>call:get_w{city:<|"|>' + OSLO["city"] + '<|"|>,days:3}<tool_call|>'
     "<|tool_call>call:clock{}<tool_call|>", "", [("get_w", THREE), CLOCK]),
    ("gemma4", '<|tool_call>call:get_w{tags:[<|"|>a,b}<|"|>,{<|"|>x<|"|>:true},None,[]]}'
     "<tool_call|>", "", [("get_w", {"tags": ["a,b}", {"x": True}, None, []]})]),
    ("apertus", f'<|tools_prefix|>[{{"get_w": {WRITTEN}}}, {{"clock": {{}}}}]<|tools_suffix|>', "",
     [CALL, CLOCK]),
    ("apertus", "<|tools_prefix|>[1]<|tools_suffix|>", "<|tools_prefix|>[1]<|tools_suffix|>", []),
    ("hunyuan", "I look.<tool_calls:opensource>\n<tool_call:opensource>get_w<tool_sep:opensource>\n"
     "<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>" + OSLO["city"] +
     "</arg_value:opensource>\n</tool_call:opensource>\n<tool_call:opensource>clock<tool_sep:"
     "opensource>\n</tool_call:opensource>\n</tool_calls:opensource>", "I look.", [CALL, CLOCK]),
    ("kimi_k3", "<|open|>response<|sep|>I look.<|close|>response<|sep|><|open|>tools<|sep|><|open|>"
     'call tool="get_w" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>' +
     OSLO["city"] + '<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3'
     "<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|end_of_msg|>", "I look.",
     [("get_w", THREE)]),
    ("gigachat3", f'I look.<|message_sep|>\n\nfunction call<|role_sep|>\n{{"name": "get_w", '
     f'"arguments": {WRITTEN}}}<|message_sep|>\n\n', "I look.", [CALL]),
    ("granite", f'<|tool_call|>[{{"name": "get_w", "arguments": {WRITTEN}}}]', "", [CALL]),
]  # fmt: skip


def plain_parser(name, *, reasoning=None, inside=False, **more):
    thinks = REASONING_FORMATS.get(reasoning)
    return MessageParser(
        PlainText(),
        CALL_FORMATS[name],
        thinks,
        (),
        schemas=SCHEMAS,
        begins_reasoning=inside,
        **more,
    )


def message(parser, parts, finish="stop"):
    """The message of a text in parts; its pieces must say the same, each call in order."""
    pieces = [piece for part in parts for piece in parser.feed(part, ())]
    pieces += parser.end(finish)
    told, begun = parser.message, []
    for piece in pieces:
        if isinstance(piece, ToolCallBegun):
            assert piece.index == len(begun) and piece.name and piece.id
            begun.append(piece.id)
        elif isinstance(piece, ToolCallArguments):
            assert piece.index == len(begun) - 1 and piece.text
    assert len(set(begun)) == len(begun)
    for kind, text in ((ContentPiece, told.content), (ReasoningPiece, told.reasoning)):
        assert "".join(p.text for p in pieces if isinstance(p, kind)) == text
    calls = [(call.name, call.arguments) for call in told.tool_calls]
    return told.content, told.reasoning, calls


@pytest.mark.parametrize(("name", "text", "content", "calls"), TRANSCRIPTS)
def test_any_splitting_gives_the_same_message(name, text, content, calls):
    whole = message(plain_parser(name), [text])
    assert whole[0] == content
    assert [(name, json.loads(arguments)) for name, arguments in whole[2]] == calls
    assert message(plain_parser(name), list(text)) == whole
    for at in range(len(text)):
        assert message(plain_parser(name), [text[:at], text[at:]]) == whole
    chance = random.Random(1)
    for _ in range(20):
        cuts = sorted(chance.sample(range(len(text)), min(7, len(text))))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        assert message(plain_parser(name), parts) == whole


@pytest.mark.parametrize(("name", "text", "content", "calls"), TRANSCRIPTS)
def test_a_cut_text_has_no_invented_end(name, text, content, calls):
    """Cut by the limit, arguments are a beginning of what they would have been."""
    full = [(n, a) for n, a in message(plain_parser(name), [text])[2]]
    for at in range(len(text)):
        cut = message(plain_parser(name), [text[:at]], "length")[2]
        for (name_cut, arguments), (name_full, whole) in zip(cut, full):
            assert name_cut == name_full and whole.startswith(arguments)


MARKS = [mark for made in FORMATS for mark in (*made.begin, *made.end, *made.around, *made.inner)]
SCRAPS = st.sampled_from(
    [*MARKS, "<think>", "</think>", "get_w", "clock", "city", '"name"', '"arguments"', ":", ",",
     "{", "}", "[", "]", '"', "'", "\\", "\n", " ", "(", ")", "=", "<function=", "<parameter=", ">",
     "</parameter>", "</function>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
     "1e999", "null", "x", "é", "🌧", "\ud7ff", '{"name": "get_w", "arguments": {', '"city": "Oslo"']
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(CALL_FORMATS)), st.lists(SCRAPS, max_size=25), st.booleans(),
    st.booleans(), st.randoms(use_true_random=False), st.sampled_from(["stop", "length"]),
)  # fmt: skip
@example("pythonic", ["[", *["("] * 500], False, False, random.Random(0), "stop")
def test_hostile_text_never_raises(name, scraps, inside, one, chance, finish):
    text = "".join(scraps)
    made = {"reasoning": "qwen3", "inside": inside, "one_call": one}
    whole = message(plain_parser(name, **made), [text], finish)
    parts, rest = [], text
    while rest:
        size = chance.randint(1, 4)
        parts, rest = [*parts, rest[:size]], rest[size:]
    assert message(plain_parser(name, **made), parts, finish) == whole


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), st.lists(SCRAPS, max_size=12), st.data())
@example(CALL_FORMATS["hermes"], ["<tool_call>", "\n", "<tool_call>", "x"], None)
@example(CALL_FORMATS["glm45"], ["<tool_call>", '"', "x", "</tool_call>"], None)
@example(CALL_FORMATS["nemotron"], ["<TOOLCALL>", "[", "{", "x", "}", "]", "</TOOLCALL>"], None)
@example(CALL_FORMATS["hermes"], ["<tool_call>", ",", '{"x": 1}', "</tool_call>"], None)
@example(CALL_FORMATS["apertus"], ["<|tools_prefix|>", "[", '{"x" 1}', "<|tools_suffix|>"], None)
@example(CALL_FORMATS["gemma4"], ["<|tool_call>", "call:x", "{", "y 1", "<tool_call|>"], None)
@example(CALL_FORMATS["qwen3_xml"], ["<tool_call>", "<function=", ">", "x", ">"], None)
def test_text_that_is_no_call_is_there_once(made, scraps, data):
    own = [*made.begin, *made.end, *made.inner]
    if own and data is not None:
        scraps = scraps + data.draw(st.lists(st.sampled_from(own) | SCRAPS, max_size=8))
    text = "".join(scrap for scrap in scraps if scrap not in made.around)
    content, _, calls = message(plain_parser(made.name), [text])
    for mark in made.around:  # scraps may have joined to one
        text = text.replace(mark, "")
    assert calls or "".join(content.split()) == "".join(text.split())


HALF = r'"\ud800"'
INNER = json.dumps(f'{{"city": {json.dumps(chr(0xD800), ensure_ascii=False)}}}')


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f'<tool_call>{{"name": {HALF}, "id": {HALF}}}</tool_call>'),
        ("hermes", f'<tool_call>{{"name": "get_w", "arguments": {INNER}}}</tool_call>'),
        ("pythonic", f"[get_w(city={HALF})]"),
        ("qwen3_xml", "<tool_call><function=get_w><parameter=tags>" + f"[{HALF}]</parameter>"
         "</function></tool_call>"),
    ],
)  # fmt: skip
def test_half_characters_of_escapes_can_be_written(name, text):
    parser = plain_parser(name)
    pieces = [*parser.feed(text, ()), *parser.end("stop")]
    (call,) = parser.message.tool_calls
    assert "\ufffd" in call.name + call.arguments
    msgspec.json.encode([pieces, parser.message])


def test_another_objects_entries_are_no_literal():
    text = "[clock(a={**{'b': 1}, 'c': 2})]"
    assert message(plain_parser("pythonic"), [text]) == (text, "", [])


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"enum": 5}, {"string"}),
        ({"enum": ["a", 1]}, {"string", "integer"}),
        ({"type": [{"a": 1}, "integer"]}, {"integer"}),
        ({"type": {"a": 1}}, {"string"}),
    ],
)
def test_a_schema_of_any_shape_names_types(schema, types):
    assert types_of(schema) == types


CHANNELS = [  # (format, reasoning's, text, inside, content, reasoning, names of calls)
    ("harmony", "harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>"
     "commentary<|message|>I look.<|end|><|start|>assistant<|channel|>analysis<|message|>Ok.<|end|>"
     "<|start|>assistant<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{}",
     False, "I look.", "Hm.Ok.", ["clock"]),
    ("harmony", "harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>"
     "final<|message|>Yes.<|return|>", False, "Yes.", "Hm.", []),
    ("gemma4", "gemma4", "<|channel>thought\nHm.\n<channel|>Yes.", False, "Yes.", "Hm.", []),
    ("gemma4", "gemma4", "<|channel>thought\nHm.<channel|><|tool_call>call:clock{}<tool_call|>",
     False, "", "Hm.", ["clock"]),
    ("kimi_k3", "kimi_k3", "Hm.<|close|>think<|sep|><|open|>response<|sep|>Yes.<|close|>response"
     "<|sep|><|end_of_msg|>", True, "Yes.", "Hm.", []),
]  # fmt: skip


@pytest.mark.parametrize("case", CHANNELS)
def test_reasoning_in_marks_of_several_tokens(case):
    name, thinks, text, inside, content, reasoning, names = case
    for parts in ([text], list(text), *([text[:at], text[at:]] for at in range(len(text)))):
        told = message(plain_parser(name, reasoning=thinks, inside=inside), parts)
        assert told[:2] == (content, reasoning)
        assert [call for call, _ in told[2]] == names


def test_reasoning():
    cases = [
        ("<think>\nIt rains.\n</think>\n\nYes.", False, ("Yes.", "It rains.")),
        ("\nIt rains.\n</think>\n\nYes.", True, ("Yes.", "It rains.")),
        ("<think>\n\n</think>\n\nYes.", False, ("Yes.", "")),
        ("It rains", True, ("", "It rains")),
        ("Use <think> and </think>.", False, ("Use <think> and </think>.", "")),
        ("a</think>b</think>c", True, ("b</think>c", "a")),
        ("a <tool_call> b</think>c", True, ("c", "a <tool_call> b")),
    ]
    for text, inside, expected in cases:
        for parts in ([text], list(text)):
            parser = plain_parser("hermes", reasoning="qwen3", inside=inside)
            assert message(parser, parts)[:2] == expected, text


@pytest.fixture(scope="module")
def tokenizer():
    hf = transformers_tokenizer(POCKET_MODEL, None, None, None)
    hf.add_special_tokens({"additional_special_tokens": ["<tool_call>", "<think>", "[ARGS]"]})
    hf.add_tokens(["</tool_call>", "</think>", "[TOOL_CALLS]"])
    return Tokenizer.of(hf)


def by_tokens(tokenizer, ids, name="hermes", step=1, **rules):
    params = SamplingParams(skip_special_tokens=False)
    rule = MessageRules(
        calls=CALL_FORMATS[name], reasoning=REASONING_FORMATS["qwen3"], schemas=SCHEMAS, **rules
    )
    parser = rule.parser(tokenizer, [], params)
    shown = rule.parser(tokenizer, [], params)._finder._detokenizer
    pieces = []
    for at in range(0, len(ids), step):
        new = ids[at : at + step]
        pieces += parser.feed("".join(shown.feed(token) for token in new), new)
    parser.feed(shown.flush(), ())
    parser.end("stop")
    told = parser.message
    calls = [(call.name, call.arguments) for call in told.tool_calls]
    return SimpleNamespace(content=told.content, reasoning=told.reasoning, calls=calls, made=parser)


def test_marks_are_found_by_their_tokens(tokenizer):
    """Letters that spell a mark with other tokens are text: a user's quoted one is no call."""
    mark = [i for c in "<tool_call>" for i in tokenizer.encode(c, False)]
    call = f'<tool_call>{{"name": "get_w", "arguments": {WRITTEN}}}</tool_call>'
    think = tokenizer.encode("<think>Is it wet?</think>", False)
    ids = [*think, *mark, *tokenizer.encode(" is a mark. ", False), *tokenizer.encode(call, False)]
    results = [by_tokens(tokenizer, ids, step=step) for step in (1, 2, 5, 1000)]
    for result in results:
        assert result.content == "<tool_call> is a mark."
        assert result.reasoning == "Is it wet?"
        assert result.calls == [("get_w", WRITTEN)]
        assert result.made.num_reasoning_tokens == len(tokenizer.encode("Is it wet?", False))


def test_special_tokens_are_left_out_of_content(tokenizer):
    ids = tokenizer.encode("a<|user|>b[ARGS]c</tool_call>", False)
    assert by_tokens(tokenizer, ids).content == "abc</tool_call>"
    shown = by_tokens(tokenizer, ids, skip_special_tokens=False)
    assert shown.content == "a<|user|>b[ARGS]c</tool_call>"


def test_a_calls_token_ends_the_reasoning(tokenizer):
    ids = tokenizer.encode('<think>Hm<tool_call>{"name": "clock"}</tool_call>', False)
    result = by_tokens(tokenizer, ids)
    assert (result.reasoning, result.calls) == ("Hm", [("clock", "{}")])


def test_mistrals_marks_are_tokens(tokenizer):
    ids = tokenizer.encode(f"[TOOL_CALLS]get_w[ARGS]{WRITTEN}[TOOL_CALLS]clock[ARGS]{{}}", False)
    for step in (1, 3, 1000):
        result = by_tokens(tokenizer, ids, "mistral", step)
        assert result.calls == [("get_w", WRITTEN), ("clock", "{}")]
    ids = [call.id for call in result.made.message.tool_calls]
    assert all(len(one) == 9 and one.isalnum() for one in ids)


def test_arguments_behind_others_that_were_told_are_told_of():
    """They can't be taken back, and two objects one behind the other would be no JSON."""
    parser = plain_parser("hermes")
    text = '{"name": "get_w", "parameters": {"city": "a"}, "arguments": {"city": "b"}}'
    _, _, calls = message(parser, [*f"<tool_call>{text}</tool_call>"])
    assert calls == [("get_w", '{"city": "a"}')]
    assert [type(note) for note in parser.noted] == [CallUnreadable]
