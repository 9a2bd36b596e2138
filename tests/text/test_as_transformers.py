"""Where we replace transformers, our results equal its own."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

from engine.text.chat_template import RESERVED, ChatTemplate
from engine.text.errors import TextError
from engine.text.tokenizer import Tokenizer
from tests.support.cases import FULL
from tests.text.tiny_tokenizers import (
    CORPUS,
    TEMPLATE,
    byte_fallback_hf,
    byte_level_hf,
    metaspace_hf,
    word_piece_hf,
)

# ------------------------------------------------------------------------------ chat templates

EACH = "{%% for m in messages %%}%s{%% endfor %%}"
TALK = [
    {"role": "system", "content": "be <kind> & short", "name": None},
    {"role": "user", "content": "hellö\n"},
    {"role": "assistant", "content": " Yes ", "reasoning": "well"},
]
TEMPLATES = [
    TEMPLATE,
    "  {%- for m in messages %}\n  {{ m.role | tojson }}: {{ m.content }}\n  {% endfor %}\n",
    EACH % "{{ m | tojson }}|{{ m.items() | list }}",
    EACH % "{{ m | tojson(indent=2, ensure_ascii=true, sort_keys=true) }}",
    EACH % "{{ m.content | trim }}",
    EACH % "{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}",
    EACH
    % "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ m.content }}{% endgeneration %}{{ a }}",
    EACH % "{%- generation -%}\n {{ loop.index }}{{ m.content }} {%- endgeneration -%}",
    EACH % "{{ m.thinking }}{{ m.reasoning_content }}{{ m.reasoning }}{{ m.content }}",
    EACH % "{{ m.name is defined }}{{ m.content }}",
    "{% set s = namespace(n=0, self=2) %}" + EACH % "{% set s.n = s.n + s.self %}" + "{{ s.n }}",
    "{{ dict(a=1) }}{{ dict.fromkeys('ab', 3) }}{{ dict() is mapping }}{{ messages[-1].content }}",
    "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ tools }}{{ documents }}",
    "{{ tools | tojson }}{{ documents | tojson }}{{ mood }}{{ add_generation_prompt }}",
    "{{ thing }}|{{ thing.x }}|{{ things | tojson }}",
    "{{ strftime_now('%Y') }}{{ messages[0].content.upper().split() }}",
    "{{ messages[-1]['content'] }}\n\n",
    "{% macro say(x) %}<{{ x }}>{% endmacro %}" + EACH % "{{ say(m.content) }}",
    "{{ messages[1:] | map(attribute='role') | join(',') }}{{ range(3) | list }}",
    "{{ 'content' }}",  # a final message is not written
    # what is refused
    "{{ raise_exception('roles must alternate') }}",
    "{{ messages.append(1) }}",
    "{{ messages.__class__ }}",
    "{% set s = namespace(_x=1) %}",
    "{% set s = namespace() %}{% set s.__y = 1 %}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ nothing.at.all }}",
    "{% for m in messages %}",
]


class Mood(enum.StrEnum):
    GOOD = "good"


@dataclasses.dataclass
class Thing:
    x: object


class Odd:
    def __str__(self) -> str:
        return "a template must not see this"


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: A city's name.
    """
    return city


VARIABLES = [
    {},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "documents": [{"title": "t"}]},
    {"mood": Mood.GOOD, "thing": Thing(np.float32(0.5)), "things": (1, np.bool_(False), Odd())},
    {"tools": [weather], "bos_token": "[mine]"},
    {"tools": ["f"]},
    {"documents": ["d"]},
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_what_transformers_writes(template):
    hf = byte_level_hf()
    ours = ChatTemplate(Tokenizer.of(hf))
    refused = written = 0
    for variables in VARIABLES:
        for goes_on in (False, True):
            for prompt in (False, True)[: 1 if goes_on else 2]:
                options = {"add_generation_prompt": prompt, "continue_final_message": goes_on}
                try:
                    expected = hf.apply_chat_template(
                        TALK, chat_template=template, tokenize=False, **options, **variables
                    )
                except Exception:
                    refused += 1
                    with pytest.raises(TextError):
                        ours.render(
                            TALK,
                            chat_template=template,
                            chat_template_kwargs=variables,
                            **options,
                        )
                    continue
                written += 1
                found = ours.render(
                    TALK, chat_template=template, chat_template_kwargs=variables, **options
                )
                assert found == expected
    assert refused + written == 18


def test_of_several_templates_the_same_one_is_taken():
    hf = byte_level_hf()
    hf.chat_template = {"default": "plain", "tool_use": "tools", "rag": "rag"}
    ours = ChatTemplate(Tokenizer.of(hf))
    for name in (None, "rag", "other"):
        for tools in (None, [], [{"name": "f"}]):
            expected = hf.apply_chat_template(TALK, chat_template=name, tools=tools, tokenize=False)
            variables = {"tools": tools}
            assert ours.render(TALK, chat_template=name, chat_template_kwargs=variables) == expected
    hf.chat_template = {"rag": "rag"}
    with pytest.raises(ValueError, match="no default"):
        hf.apply_chat_template(TALK, tokenize=False)
    with pytest.raises(TextError, match=r"several chat templates.*rag"):
        ChatTemplate(Tokenizer.of(hf)).render(TALK)


def test_the_reserved_names_are_transformers_own():
    names = set(inspect.signature(byte_level_hf().apply_chat_template).parameters)
    assert (
        names - {"tools", "documents", "kwargs"}
        | {
            "self",
            "messages",
            "conversations",
        }
        == RESERVED
    )


# ------------------------------------------------------------------------------ tokenizers


def splitting_hf():
    """Special tokens written out in a text are text."""
    return _with(byte_level_hf(), split_special_tokens=True)


def cutting_hf():
    hf = byte_level_hf()
    hf.backend_tokenizer.enable_truncation(3)
    hf.backend_tokenizer.enable_padding(length=100)
    return hf


def left_hf():
    return _with(byte_level_hf(), truncation_side="left")


def _with(hf, **values):
    for name, value in values.items():
        setattr(hf, name, value)
    return hf


def _vocabulary(kind):
    saved = json.loads(kind().backend_tokenizer.to_str())["model"]
    return {"vocab": saved["vocab"], "merges": [tuple(merge) for merge in saved["merges"]]}


def llama_hf():
    hf = LlamaTokenizer(**_vocabulary(byte_fallback_hf), add_bos_token=True)
    hf.add_tokens([AddedToken("<tool>", special=False)])
    return hf


def qwen_hf():
    return Qwen2Tokenizer(**_vocabulary(byte_level_hf), additional_special_tokens=["<|im_end|>"])


def gpt2_hf():
    hf = GPT2Tokenizer(**_vocabulary(byte_level_hf), add_bos_token=True, add_prefix_space=True)
    hf.chat_template = TEMPLATE
    return hf


KINDS = [
    *(byte_level_hf, metaspace_hf, byte_fallback_hf, word_piece_hf),
    *(splitting_hf, cutting_hf, left_hf, llama_hf, qwen_hf, gpt2_hf),
]
TEXTS = [
    *dict.fromkeys(CORPUS),
    *("", " ", "</s><s>hello", "a <tool> b<|im_end|>c", "  two  spaces\n\n", "é! added word"),
]

PROGRAM = """
import json, sys
from engine.config import EngineConfig
from engine.text.chat_template import ChatTemplate
from engine.text.loading import load_text

out = {}
for name, folder in json.loads(sys.argv[1]).items():
    tokenizer, defaults = load_text(EngineConfig(model=folder))
    texts = json.loads(sys.argv[2])
    ids = [[tokenizer.encode(text, special) for special in (True, False)] for text in texts]
    cut = [tokenizer.encode_at_most(text, 4) for text in texts]
    out[name] = {
        "ids": ids,
        "cut": cut,
        "texts": [[tokenizer.decode(one, skip) for skip in (True, False)] for one, _ in ids],
        "size": tokenizer.vocab_size,
        "longest": tokenizer.longest_token,
        "ends": tokenizer.eos_token_ids,
        "special": sorted(tokenizer.special_ids),
        "facts": [tokenizer.facts.special_tokens, tokenizer.facts.chat_template],
    }
    if tokenizer.facts.chat_template:
        out[name]["chat"] = ChatTemplate(tokenizer).render([{"role": "user", "content": "hi"}])
print(json.dumps([out, sorted({"torch", "transformers", "numpy"} & sys.modules.keys())]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind in KINDS if FULL else (metaspace_hf, cutting_hf, llama_hf, gpt2_hf):
        made[kind.__name__] = str(tmp_path_factory.mktemp(kind.__name__))
        kind().save_pretrained(made[kind.__name__])
    return made


def in_a_fresh_process(folders, cache):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(folders), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_a_process_without_transformers_has_the_same_tokens(folders, tmp_path):
    found, imported = in_a_fresh_process(folders, tmp_path)
    assert imported == []
    for name, folder in folders.items():
        hf = AutoTokenizer.from_pretrained(folder)
        expected = Tokenizer.of(hf)
        cutting = AutoTokenizer.from_pretrained(folder)  # it stays set to cut
        ours = found[name]
        for i, text in enumerate(TEXTS):
            ids = [expected.encode(text, special) for special in (True, False)]
            assert ours["ids"][i] == ids, (name, text)
            if name != "cutting_hf":  # transformers' own call would cut
                assert ids[0] == hf.encode(text)
            cut = cutting(text, truncation=True, max_length=4)["input_ids"]
            assert ours["cut"][i] == cut, (name, text)
            texts = [expected.decode(ids[0], skip) for skip in (True, False)]
            assert ours["texts"][i] == texts, (name, text)
        assert ours["size"] == len(hf)
        assert ours["longest"] == max(map(len, hf.get_vocab()))
        assert ours["ends"] == ([] if hf.eos_token_id is None else [hf.eos_token_id])
        assert ours["special"] == sorted(expected.special_ids)
        assert ours["facts"] == [hf.special_tokens_map, hf.chat_template]
        if hf.chat_template:
            talk = [{"role": "user", "content": "hi"}]
            assert ours["chat"] == hf.apply_chat_template(
                talk, tokenize=False, add_generation_prompt=True
            )
    again, imported = in_a_fresh_process(folders, tmp_path)  # from the answers that were kept
    assert again == found and imported == []
