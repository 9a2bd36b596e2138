"""Templates of requests: rendered as transformers renders them, in a process that can be killed."""

from __future__ import annotations

import os
import time

import pytest

from engine.text.chat_template import ChatTemplate
from engine.text.errors import TextError
from engine.text.template_process import TemplateProcess
from engine.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import TEMPLATE, byte_level_hf

HELLO = [{"role": "user", "content": "hello"}]
EACH = "{%% for m in messages %%}%s{%% endfor %%}"
ANSWERED = [
    {"role": "system", "content": "be kind", "name": None},
    *HELLO,
    {"role": "assistant", "content": " Yes ", "reasoning": "well"},
]


@pytest.fixture(scope="module")
def process():
    process = TemplateProcess(render_s=1.0)
    process.start()
    yield process
    process.close()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.of(byte_level_hf())


@pytest.fixture(scope="module")
def foreign(tokenizer, process):
    return ChatTemplate(
        tokenizer, foreign=lambda template, values: process.render(template, values, 100_000)
    )


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        EACH % "{{ m.content | trim }}|",
        "{%- for m in messages -%}\n  {{ m.role | tojson }}{{ m.content }}\n{%- endfor -%}",
        EACH % "{% if loop.first %}{% continue %}{% endif %}{{ m.content }}",
        EACH % "{%- generation -%}{{ m.content }}{%- endgeneration -%}",
        "{% set s = namespace(n=0) %}" + EACH % "{% set s.n = s.n + 1 %}{{ m.content }}{{ s.n }}",
        EACH % "{{ m.content }}" + "{{ dict(a=1) }}{{ bos_token }}{{ greeting }}",
        EACH % "{{ m.reasoning_content }}{{ m.thinking }}{{ m.content }}",
        EACH % "{{ m.content }}{{ m.name is defined }}" + "{{ tools is none }}",
        "{{ 'ab' * 3 }}{{ 6 * 7 }}{{ [1] * 2 }}{{ '=' * 20 }}{{ messages[-1].content }}",
        "{{ messages[-1]['content'] }}\n\n{{ strftime_now('%Y') }}é😀",
    ],
)  # fmt: skip
def test_it_is_what_transformers_makes(foreign, tokenizer, template, goes_on):
    options = {
        "chat_template": template,
        "chat_template_kwargs": {"greeting": "Oh"},
        "add_generation_prompt": not goes_on,
        "continue_final_message": goes_on,
    }
    expected = ChatTemplate(tokenizer).render(ANSWERED, **options)
    assert foreign.render(ANSWERED, **options) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% set x = 7**20000000 %}a", r"\*\* is not allowed"),
        ("{{ ('a'*2000000000)|length }}", "repetition may be at most 100,000"),
        ("{{ (2000000000*'a')|length }}", "repetition"),
        ("{{ ([1]*2000000000)|length }}", "repetition"),
        ("{% set ns = namespace(x=3) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}"
         "{% endfor %}a", "number may have at most"),
        ("{{ '%2000000000d' % 1 }}", "memory|more than 1 s"),
        ("{{ 'a'.rjust(2000000000) }}", "memory|more than 1 s"),
        ("{{ 'a' | center(2000000000) }}", "memory|more than 1 s"),
        ("{% set ns = namespace(x='aaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}"
         "{% endfor %}a", "memory|more than 1 s"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}a",
         "more than 1 s"),
        ("{% for i in range(99999) %}{% for j in range(300) %}aaaa{% endfor %}{% endfor %}a",
         "more than 100,000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ range(10**9) }}", r"\*\* is not allowed"),
        ("{{ range(1000000000) | length }}", "OverflowError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "can't render"),
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "no user"),
        ("{% if", "no valid Jinja"),
        ("{{ lipsum(n=100000) }}", "undefined"),
    ],
)  # fmt: skip
def test_what_takes_too_much_is_refused_in_time(foreign, template, words):
    start = time.monotonic()
    with pytest.raises(TextError, match=words) as refused:
        foreign.render(HELLO, chat_template=template)
    assert refused.value.param in ("chat_template", "messages")
    assert time.monotonic() - start < 20  # a limit for a busy machine; it is 1 s and a start
    assert foreign.render(HELLO, chat_template="{{ messages[0].content }}") == "hello"


def test_the_process_has_no_secret_and_ends(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    process = TemplateProcess()
    process.start()
    pid = process._process.pid
    with open(f"/proc/{pid}/environ") as environment:
        assert "secret" not in environment.read()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
