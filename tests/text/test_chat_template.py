from __future__ import annotations

import pytest

from engine.text.chat_template import ChatTemplate
from engine.text.errors import TextError
from engine.text.template import read_template
from engine.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import byte_level_hf

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def chat(byte_level):
    return ChatTemplate(byte_level)


def test_the_models_own_template(chat):
    assert chat.render(HELLO) == "<s><|user|>hello</s><|assistant|>"
    assert chat.render(HELLO, add_generation_prompt=False) == "<s><|user|>hello</s>"


def test_continue_the_final_message(chat):
    messages = [*HELLO, {"role": "assistant", "content": "The engine"}]
    text = chat.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<s><|user|>hello</s><|assistant|>The engine"
    with pytest.raises(TextError, match="add_generation_prompt") as error:
        chat.render(messages, continue_final_message=True)
    assert error.value.param == "continue_final_message"


def test_text_parts_are_joined_unless_the_template_reads_them(chat):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    talk = [{"role": "user", "content": parts}]
    assert "<|user|>one\ntwo</s>" in chat.render(talk)
    reads = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert chat.render(talk, chat_template=reads) == "onetwo"
    assert chat.render(talk, chat_template="{{ messages[0].content }}") == "one\ntwo"
    assert chat.render(talk, chat_template="{{ '' + messages[0].content }}") == "one\ntwo"


def test_a_template_may_want_the_arguments_of_calls_as_strings(chat):
    function = {"name": "f", "arguments": '{"é": 1}'}
    talk = [{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    call = "messages[0].tool_calls[0].function"
    strings = "{{ '' + " + call + ".arguments }}"
    assert chat.render(talk, chat_template=strings) == '{"é": 1}'
    objects = "{{ " + call + ".arguments | tojson }}"
    assert chat.render(talk, chat_template=objects) == '{"é": 1}'
    with pytest.raises(TextError, match="'dict object' has no attribute 'x'"):
        chat.render(talk, chat_template="{{ '' + " + call + ".arguments.x.y }}")


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([], "messages", "empty"),
        (["hi"], "messages.0", "must be an object"),
        ([{"content": "x"}], "messages.0.role", "role must be a string"),
        ([*HELLO, {"role": "user"}], "messages.1.content", "string or a list"),
        ([{"role": "user", "content": 3}], "messages.0.content", "string or a list"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages.0.content.0",
            "image_url",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages.0.content.0.text",
            "must be a string",
        ),
        ([{"role": "user", "content": ["x"]}], "messages.0.content.0", "text parts only"),
    ],
)
def test_messages_that_are_refused(chat, messages, param, words):
    with pytest.raises(TextError, match=words) as error:
        chat.render(messages)
    assert error.value.param == param


def test_an_assistants_message_may_be_empty(chat):
    assert "<|assistant|></s>" in chat.render([*HELLO, {"role": "assistant", "content": None}])


def test_a_model_without_a_template():
    hf = byte_level_hf()
    hf.chat_template = None
    with pytest.raises(TextError, match="--chat-template"):
        ChatTemplate(Tokenizer.of(hf)).render(HELLO)
    given_text = ChatTemplate(Tokenizer.of(hf), "{{ messages[0].content }}!")
    assert given_text.render(HELLO) == "hello!"


def test_a_template_from_a_file(byte_level, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("[{{ messages[-1].content }}]")
    assert ChatTemplate(byte_level, str(path)).render(HELLO) == "[hello]"
    with pytest.raises(TextError, match="neither a template file"):
        ChatTemplate(byte_level, str(tmp_path / "missing.jinja"))


def test_a_broken_template_is_refused_at_start(byte_level):
    with pytest.raises(TextError, match="no valid Jinja, line 2") as error:
        ChatTemplate(byte_level, "a\n{% for m in %}")
    assert error.value.param == "chat_template"


@pytest.mark.parametrize("dash", ["", "-", "+"])
def test_transformers_own_tags_are_allowed(byte_level, dash):
    text = (
        f"{{% for m in messages %}}x {{%{dash} generation {dash}%}} y{{%{dash}endgeneration%}}"
        "{% break %}{% endfor %}"
    )
    assert read_template(text) == text
    assert "y" in ChatTemplate(byte_level, text).render(HELLO)
    with pytest.raises(TextError, match="no valid Jinja"):
        read_template("{% generation %} without its end")


@pytest.mark.parametrize("broken", ["{% for m in %}", {"default": "fine", "tools": "{{"}])
def test_a_models_own_broken_template_is_refused_at_the_start(broken):
    hf = byte_level_hf()
    hf.chat_template = broken
    with pytest.raises(
        TextError, match=r"own chat template is no valid Jinja, line 1.*--chat-temp"
    ):
        ChatTemplate(Tokenizer.of(hf))
    assert ChatTemplate(Tokenizer.of(hf), "{{ messages[0].role }}").render(HELLO) == "user"


def test_a_requests_own_template(chat):
    assert chat.render(HELLO, chat_template="only {{ messages[0].role }}") == "only user"
    with pytest.raises(TextError, match="no valid Jinja"):
        chat.render(HELLO, chat_template="{{")


def test_a_template_that_objects(byte_level):
    chat = ChatTemplate(byte_level, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TextError, match="roles must alternate") as error:
        chat.render(HELLO)
    assert error.value.param == "messages"


def test_a_template_can_not_reach_out(byte_level):
    chat = ChatTemplate(byte_level, "{{ messages.__class__.__mro__[-1].__subclasses__() }}")
    with pytest.raises(TextError, match="SecurityError"):
        chat.render(HELLO)


def test_variables_of_the_template(byte_level):
    chat = ChatTemplate(byte_level, "{{ mood }} {{ tools | length }}")
    kwargs = {"mood": "kind", "tools": [{"a": 1}]}
    assert chat.render(HELLO, chat_template_kwargs=kwargs) == "kind 1"
    for name in ("tokenize", "add_generation_prompt", "messages"):
        with pytest.raises(TextError, match=name) as error:
            chat.render(HELLO, chat_template_kwargs={name: True})
        assert error.value.param == f"chat_template_kwargs.{name}"


# ------------------------------------------------------------------------------ tool calls

TOOLS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% set f = c.function if c.function is defined else c %}"
    "{{ f.name }}({{ f.arguments | tojson }})"
    "{% for name, value in f.arguments | items %}{{ name }}={{ value }};{% endfor %}"
    "{% endfor %}{% endfor %}"
)


def called(arguments):
    function = {"name": "weather", "arguments": arguments}
    return [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
    ]


@pytest.mark.parametrize("arguments", ['{"city": "Bern"}', {"city": "Bern"}])
def test_arguments_written_as_a_string_reach_the_template_as_an_object(byte_level, arguments):
    chat = ChatTemplate(byte_level, TOOLS)
    messages = called(arguments)
    text = chat.render(messages)
    assert text == 'helloweather({"city": "Bern"})city=Bern;'
    assert messages == called(arguments)  # the caller's own stay as they are
    bare = [*HELLO, {"role": "assistant", "tool_calls": [messages[1]["tool_calls"][0]["function"]]}]
    assert chat.render(bare) == text


@pytest.mark.parametrize("arguments", ["", "  ", None])
def test_a_call_without_arguments(byte_level, arguments):
    assert ChatTemplate(byte_level, TOOLS).render(called(arguments)) == "helloweather({})"


@pytest.mark.parametrize("arguments", ["{", "[1]", "3", 3, "[" * 100_000])
def test_arguments_that_are_no_object_are_named(byte_level, arguments):
    with pytest.raises(TextError, match="must be a JSON object") as error:
        ChatTemplate(byte_level, TOOLS).render(called(arguments))
    assert error.value.param == "messages.1.tool_calls.0.function.arguments"


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ("x", "tool_calls"),
        (["x"], "tool_calls.0"),
        ([{"function": 1}], "tool_calls.0.function"),
        ([{"function": {"name": 1}}], "tool_calls.0.function"),
    ],
)
def test_tool_calls_of_another_form_are_named(byte_level, calls, param):
    messages = [*HELLO, {"role": "assistant", "tool_calls": calls}]
    with pytest.raises(TextError) as error:
        ChatTemplate(byte_level, TOOLS).render(messages)
    assert error.value.param == f"messages.1.{param}"


def test_tool_calls_that_the_template_would_lose_are_refused(chat):
    with pytest.raises(TextError, match="would be lost") as error:
        chat.render(called("{}"))
    assert error.value.param == "messages.1.tool_calls"
