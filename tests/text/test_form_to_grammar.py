"""The form that a text must have becomes a grammar, or a refusal that says where and why."""

from __future__ import annotations

import json
import os
import time

import pytest
from llguidance import LLMatcher, LLTokenizer

from engine.sampling_params import ParameterError, SamplingParams
from engine.structured_outputs import (
    LARGEST,
    MOST_LEVELS,
    StructuredOutputsError,
    StructuredOutputsParams,
)
from engine.text.form_to_grammar import checked_grammar
from engine.text.grammar_process import GrammarProcess
from engine.text.schema_formats import HELD
from tests.support.schemas import SCHEMAS, UNSERVED, obj

Form = StructuredOutputsParams


@pytest.fixture(scope="module")
def process():
    process = GrammarProcess(check_s=1.5)
    yield process
    process.close()


def follows(tokenizer, form: Form, text: str) -> bool:
    """Whether `text`, as its tokens, is a whole text of the form."""
    grammar = checked_grammar(form, {}).grammar
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.fixture(scope="module")
def tokens(byte_level):
    return LLTokenizer(byte_level.as_json(), eos_token=2)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_kind_of_schema_is_held_to(name):
    assert checked_grammar(Form(json=SCHEMAS[name]), {}).warnings == []


@pytest.mark.parametrize("name", sorted(HELD))
def test_a_format_that_is_known_is_held_to(name):
    """`HELD` is what this llguidance knows: else one would be refused, or held to nothing."""
    schema = {"properties": {"a": {"type": "string", "format": name}}}
    found = checked_grammar(Form(json=schema), {})
    assert found.warnings == [] and name in found.grammar
    given = json.dumps({"grammars": [{"json_schema": {"type": "string", "format": f"{name}x"}}]})
    assert LLMatcher.validate_grammar_with_warnings(given)[0]


@pytest.mark.parametrize(
    "place",
    [
        lambda part: part,
        lambda part: obj(a=part),
        lambda part: {"type": "array", "items": part},
        lambda part: {"type": "array", "prefixItems": [part]},
        lambda part: {"anyOf": [{"type": "null"}, part]},
        lambda part: {"$defs": {"x": part}, **obj(a={"$ref": "#/$defs/x"})},
        lambda part: {"type": "object", "additionalProperties": part},
    ],
)
@pytest.mark.parametrize("kinds", ["string", ["string", "null"]])
def test_a_format_that_is_unknown_holds_nothing_and_that_is_told(place, kinds):
    """A format is an annotation, and pydantic writes some for ordinary types."""
    found = checked_grammar(Form(json=place({"type": kinds, "format": "uuid4"})), {})
    assert "'uuid4'" in "".join(found.warnings) and len(found.warnings) == 1
    without = checked_grammar(Form(json=place({"type": kinds})), {})
    assert json.loads(found.grammar) == json.loads(without.grammar)


def test_only_a_format_that_is_a_keyword_is_left_out(tokens):
    data = {"format": "mine"}
    for schema in ({"const": data}, {"enum": [data]}):
        form = Form(json=schema)
        assert checked_grammar(form, {}).warnings == []
        assert follows(tokens, form, '{"format": "mine"}') and not follows(tokens, form, "{}")
    named = Form(json=obj(format={"const": 1}))
    assert follows(tokens, named, '{"format": 1}') and not follows(tokens, named, "{}")
    number = Form(json={"type": "integer", "format": "int64"})
    assert checked_grammar(number, {}).warnings == []  # nothing is lost


@pytest.mark.parametrize("name", UNSERVED)
def test_what_cannot_be_held_is_refused_with_its_place(name):
    schema, place, word = UNSERVED[name]
    with pytest.raises(StructuredOutputsError) as refused:
        checked_grammar(Form(json=schema), {})
    assert refused.value.field == "json" and word in str(refused.value)
    assert f" at {place}:" in str(refused.value) or not place


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        (Form(json_object=True), ["{}", '{"a": [1, null]}', '{\n  "a": 1\n}'], ["[]", "1", " {}"]),
        (Form(json='{"type": "boolean"}'), ["true"], ["True", '"true"']),
        (Form(json=True), ["1", "[]"], ["", "a"]),
        (Form(json={"type": "array"}, disable_any_whitespace=True), ["[1,2]"], ["[1, 2]", "[ 1]"]),
        (Form(json={"type": "array"}, whitespace_pattern=" {0,3}"), ["[  1]"],
         ["[    1]", "[\n1]"]),
        (Form(json={"properties": {"a": {}}}, disable_additional_properties=True),
         ["{}", '{"a": 1}'], ['{"b": 1}']),
        (Form(json={"x-guidance": {"whitespace_pattern": ".*"}}), ["{}"], ["{    }"]),
        (Form(regex="a/b[0-9]+"), ["a/b1"], ["a/b", "xa/b1"]),
        (Form(choice=["yes/no", "a|b", "c\n.\\d", "é+"]), ["yes/no", "a|b", "c\n.\\d", "é+"],
         ["a", "yes", "c\nx\\d"]),
        (Form(grammar='start: "x" NUMBER\nNUMBER: /[0-9]+/'), ["x12"], ["x"]),
        (Form(grammar='root ::= "x" digit+\ndigit ::= [0-9]'), ["x12"], ["x"]),
        (Form(structural_tag={"structures": [{"begin": "<f=a>", "schema": {"type": "boolean"},
                                              "end": "</f>"}], "triggers": ["<f="]}),
         ["no call", "so: <f=a>true</f> and <f=a>false</f>."], ["<f=a>1</f>", "<f=b>true</f>"]),
        (Form(structural_tag={"format": {"type": "triggered_tags", "triggers": ["<t>"], "tags": [
            {"begin": "<t>", "content": {"type": "json_schema", "json_schema": {"const": 1}},
             "end": "</t>"}]}}), ["<t>1</t>"], ["<t>2</t>"]),
    ],
)  # fmt: skip
def test_which_texts_follow_a_form(tokens, form, right, wrong):
    assert [text for text in right if not follows(tokens, form, text)] == []
    assert [text for text in wrong if follows(tokens, form, text)] == []


def test_whitespace_is_bounded(tokens):
    """Without a bound a model that likes line ends would go on to max_tokens."""
    assert not follows(tokens, Form(json_object=True), "{" + "\n" * 2 + "}")
    assert not follows(tokens, Form(json_object=True), "{" + " " * 2 + "}")


def test_a_mark_that_is_a_token_is_named_by_its_id():
    tag = {"begin": "<call>", "schema": {"const": 1}, "end": "</call>"}
    form = Form(structural_tag={"structures": [tag], "triggers": ["<call>"]})
    grammar = checked_grammar(form, {"<call>": 7, "</call>": 8}).grammar
    assert "<[7]>" in grammar and "<[8]>" in grammar and "call" not in grammar


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({}, "", "none of them"),
        ({"json": {}, "regex": "a"}, "regex", "json and regex"),
        ({"choice": []}, "choice", "empty"),
        ({"choice": ["a", 1]}, "choice", "list of strings"),
        ({"regex": 5}, "regex", "a string"),
        ({"json": [1]}, "json", "JSON Schema"),
        ({"json_object": True, "disable_any_whitespace": 1}, "disable_any_whitespace", "false"),
    ],
)
def test_a_form_is_one_thing(fields, where, words):
    with pytest.raises(StructuredOutputsError, match=words) as refused:
        Form(**fields)
    assert refused.value.field == where
    with pytest.raises(ParameterError, match=words) as refused:
        SamplingParams(structured_outputs=fields)
    assert refused.value.param == ".".join(filter(None, ["structured_outputs", where]))


NESTED: dict = {}
for _ in range(MOST_LEVELS + 1):
    NESTED = {"items": NESTED}
CHAIN = "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(9_000)) + '\na9000: "x"\nstart: a0'

HOSTILE = {
    "deep": (Form(json=NESTED), "nested too deeply"),
    "deep text": (Form(json='{"items":' * 10_000 + "{}" + "}" * 10_000), "nested too deeply"),
    "a million choices": (Form(choice=[f"v{i}" for i in range(10**6)]), f"{LARGEST:,}"),
    "a large enum": (Form(json={"enum": [f"v{i}" for i in range(10**5)]}), f"{LARGEST:,}"),
    "many properties": (
        Form(json={"properties": {f"p{i}": {} for i in range(5_000)}}), "at most 1,024",
    ),
    "endless": (Form(json={"enum": [float("inf")]}), "not JSON"),
    "a product": (
        Form(json={"allOf": [{"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {}}}
                                        for j in range(10)]} for i in range(6)]}), "too large",
    ),
    "a chain that overflows the stack": (Form(grammar=CHAIN), "was stopped|bytes"),
    "brackets": (Form(regex="(" * 50_000 + "a" + ")" * 50_000), "can't be held"),
    "no grammar": (Form(grammar="root ::= ((("), "can't be"),
    "a bad tag": (Form(structural_tag={"format": {"type": "regex"}}), "not served"),
    "a tag without a trigger": (
        Form(structural_tag={"structures": [{"begin": "<a>", "schema": {}, "end": ""}],
                             "triggers": ["<b>"]}), "triggers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_are_refused_in_time(process, name):
    form, words = HOSTILE[name]
    start = time.monotonic()
    with pytest.raises(StructuredOutputsError, match=words):
        process.check(form, {})
    assert time.monotonic() - start < 20  # a limit for a busy machine; it is 2 s and a start


BOUNDED = {
    "(a|b)*a(a|b){20}": "regex", "(x+x+)+y": "regex", "([a-z]{1,200}){1,200}": "regex",
    "((((a{1,30}){1,30}){1,30}){1,30}){1,30}": "regex", "(.*a){30}b": "regex",
}  # fmt: skip


@pytest.mark.parametrize("text", BOUNDED)
def test_a_form_that_looks_hostile_but_compiles(process, text):
    assert process.check(Form(regex=text), {}).grammar


def test_the_process_survives_and_has_no_secret(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    process = GrammarProcess()
    try:
        with pytest.raises(StructuredOutputsError):
            process.check(Form(grammar=CHAIN), {})
        assert json.loads(process.check(Form(json_object=True), {}).grammar)
        pid = process._process.pid
        with open(f"/proc/{pid}/environ") as environment:
            assert "secret" not in environment.read()
    finally:
        process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
