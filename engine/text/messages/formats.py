"""List how models write calls of tools, and their reasoning.

Each format is a few marks and one of six ways to write what stands between them. A mark may consist
of several tokens: those are `inner`, and are read as their text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine.text.messages.brace_calls import QUOTE, BraceCalls
from engine.text.messages.call_body import CallBody
from engine.text.messages.json_calls import JsonCalls
from engine.text.messages.keyed_calls import KeyedCalls
from engine.text.messages.named_calls import EitherCalls, NamedCalls
from engine.text.messages.python_calls import PythonCalls
from engine.text.messages.tagged_calls import TaggedCalls, Tags

Schemas = Mapping[str, Any]
"""The parameters' schema of each tool, by its name."""
Body = Callable[[Schemas], CallBody]


class CallFormat(NamedTuple):
    """Describe how calls are written: marks, and what reads the text between them.

    Without `begin`, an answer that begins with one of `starts` is a call. `kept`: the mark is also
    the beginning of what stands between.
    """

    name: str
    body: Body
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    around: tuple[str, ...] = ()  # marks around all calls, which say nothing
    inner: tuple[str, ...] = ()  # tokens that the body, or a longer mark, reads as their text
    starts: str = ""
    hint: str = ""  # what else stands in a template that speaks of this format, but writes none
    new_id: str = "call"  # how ids look: "call", "nine" (Mistral's), "numbered" (Kimi's)


class ReasoningFormat(NamedTuple):
    """Describe how reasoning is written: what begins it, and what ends it."""

    name: str
    begin: str
    end: str
    around: tuple[str, ...] = ()  # marks around what isn't reasoning, which say nothing
    inner: tuple[str, ...] = ()  # tokens of longer marks, read as their text
    again: bool = False  # it may begin behind content, too
    hint: str = ""  # what stands in a template that doesn't have the marks themselves
    restart: str = ""  # what is written behind its end, before anything else
    lead: str = ""  # what is written before content


def _json(_schemas: Schemas) -> CallBody:
    return JsonCalls()


def _json_of_known(schemas: Schemas) -> CallBody:
    return JsonCalls(schemas)  # without a mark, an answer in JSON would be a call


def _python_of_known(schemas: Schemas) -> CallBody:
    return PythonCalls(schemas)


def _tagged(tags: Tags) -> Body:
    return lambda schemas: TaggedCalls(tags, schemas)


def _named(head: str) -> Body:
    pattern = re.compile(head, re.DOTALL)
    return lambda schemas: NamedCalls(pattern)


_MISTRAL = re.compile(r"(?P<name>[^\[\s]+)(\[CALL_ID\](?P<id>[A-Za-z0-9]+))?(\[ARGS\])?")
_QWEN = Tags("<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>")
_GLM = Tags("", "\n", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "")
_INVOKE = Tags('<invoke name="', ">", '<parameter name="', ">", "", "</parameter>", "</invoke>")
_DSML = Tags(
    '<｜DSML｜invoke name="', ">", '<｜DSML｜parameter name="', ">", "", "</｜DSML｜parameter>",
    "</｜DSML｜invoke>",
)  # fmt: skip
_DEEPSEEK = r"(function<｜tool▁sep｜>)?(?P<name>[^\s<]+)(<｜tool▁sep｜>|\s*```json)?\s*"
_KIMI = r"(?P<id>functions\.(?P<name>[^:\s]+):\d+)\s*(<\|tool_call_argument_begin\|>)?"
_SOLAR = r"(?P<id>[^<\s]+)<\|tool_call:name\|>(?P<name>[^<\s]+)<\|tool_call:args\|>"

_CHANNELS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>")
_NO_CALL = (
    "<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>",
    "<|end|>", "<|return|>",
)  # fmt: skip
_HARMONY = (
    r"(?P<name>[^\s<]+)(<\|channel\|>\w+)?\s*(<\|constrain\|>)?\s*(json|code)?\s*<\|message\|>"
)
_HY = ":opensource"
_HUNYUAN = Tags(
    "", f"<tool_sep{_HY}>", f"<arg_key{_HY}>", f"</arg_key{_HY}>", f"<arg_value{_HY}>",
    f"</arg_value{_HY}>", "",
)  # fmt: skip
_K3_CALL = Tags(
    '<|open|>call tool="', "<|sep|>", '<|open|>argument key="', "<|sep|>", "",
    "<|close|>argument<|sep|>", "<|close|>call<|sep|>",
)  # fmt: skip
_K3_TOKENS = ("<|open|>", "<|close|>", "<|sep|>")
_K3_AROUND = ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|end_of_msg|>")

HERMES = CallFormat("hermes", _json, ("<tool_call>",), ("</tool_call>",))
QWEN3_XML = CallFormat(
    "qwen3_xml", _tagged(_QWEN), ("<tool_call>",), ("</tool_call>",), hint="<function="
)
GLM = CallFormat("glm45", _tagged(_GLM), ("<tool_call>",), ("</tool_call>",), hint="<arg_key>")
MISTRAL = CallFormat(
    "mistral", lambda schemas: EitherCalls(_MISTRAL), ("[TOOL_CALLS]",),
    inner=("[ARGS]", "[CALL_ID]"), new_id="nine",
)  # fmt: skip
JSON = CallFormat("llama3_json", _json_of_known, starts="{", around=("<|python_tag|>",))
PYTHONIC = CallFormat(
    "pythonic", _python_of_known, starts="[", around=("<|python_start|>", "<|python_end|>")
)
FORMATS = (
    CallFormat("harmony", _named(_HARMONY),
               ("<|channel|>commentary to=functions.", "<|channel|>analysis to=functions.",
                " to=functions."), ("<|call|>",), inner=_CHANNELS, around=_NO_CALL),
    CallFormat("gemma4", lambda schemas: BraceCalls(), ("<|tool_call>",), ("<tool_call|>",),
               inner=(QUOTE,)),
    CallFormat("apertus", lambda schemas: KeyedCalls(), ("<|tools_prefix|>",),
               ("<|tools_suffix|>",)),
    CallFormat("hunyuan", _tagged(_HUNYUAN), (f"<tool_call{_HY}>",), (f"</tool_call{_HY}>",),
               inner=_HUNYUAN[1:6], around=(f"<tool_calls{_HY}>", f"</tool_calls{_HY}>")),
    CallFormat("kimi_k3", _tagged(_K3_CALL), ("<|open|>tools<|sep|>",), ("<|close|>tools<|sep|>",),
               inner=_K3_TOKENS, around=_K3_AROUND),
    CallFormat("seed_oss", _tagged(_QWEN), ("<seed:tool_call>",), ("</seed:tool_call>",)),
    CallFormat("minimax_m2", _tagged(_INVOKE), ("<minimax:tool_call>",), ("</minimax:tool_call>",)),
    CallFormat("deepseek_v32", _tagged(_DSML), ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"),
               ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"),
               inner=("｜DSML｜",)),
    CallFormat("deepseek_v3", _named(_DEEPSEEK), ("<｜tool▁call▁begin｜>",),
               ("<｜tool▁call▁end｜>",), inner=("<｜tool▁sep｜>",),
               around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")),
    CallFormat("kimi_k2", _named(_KIMI), ("<|tool_call_begin|>",), ("<|tool_call_end|>",),
               inner=("<|tool_call_argument_begin|>",), new_id="numbered",
               around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")),
    CallFormat("solar", _named(_SOLAR), ("<|tool_call:begin|>",), ("<|tool_call:end|>",),
               inner=("<|tool_call:name|>", "<|tool_call:args|>"), around=("<|tool_calls|>",)),
    MISTRAL,
    GLM,
    QWEN3_XML,
    HERMES,
    CallFormat("functionary_v3", _named(r"(?P<name>[^>\s]+)>"), ("<function=",), ("</function>",)),
    CallFormat("lfm2", lambda schemas: PythonCalls(), ("<|tool_call_start|>",),
               ("<|tool_call_end|>",)),
    CallFormat("minimax", _json, ("<tool_calls>",), ("</tool_calls>",)),
    CallFormat("nemotron", _json, ("<TOOLCALL>",), ("</TOOLCALL>",)),
    CallFormat("cohere", _json, ("<|START_ACTION|>",), ("<|END_ACTION|>",)),
    CallFormat("gigachat", _json, ("<|function_call|>",), ("<|message_sep|>",)),
    CallFormat("gigachat3", _json, ("function call<|role_sep|>",), ("<|message_sep|>",),
               inner=("<|role_sep|>",), around=("assistant<|role_sep|>", "<|message_sep|>")),
    CallFormat("granite", _json, ("<|tool_call|>",)),
    CallFormat("phi4_mini_json", _json, ("functools",)),
    JSON,
    PYTHONIC,
)  # fmt: skip
"""In the order in which they are tried on what a template writes."""
ANY_MODEL = JSON
"""What a call is written as that a grammar forces, if the model's own way isn't known."""

_SAME = {"qwen3_coder": QWEN3_XML, "glm47": GLM, "llama4_json": JSON, "llama4_pythonic": PYTHONIC}
CALL_FORMATS = {**{made.name: made for made in FORMATS}, **_SAME}
"""By their names for --tool-call-parser."""

_THINK = ReasoningFormat("think", "<think>", "</think>")
REASONING = (
    ReasoningFormat("harmony", "<|channel|>analysis<|message|>", "<|end|>", around=_NO_CALL,
                    inner=_CHANNELS, again=True, restart="<|start|>assistant",
                    lead="<|channel|>final<|message|>"),
    ReasoningFormat("gemma4", "<|channel>thought", "<channel|>", inner=("<|channel>",)),
    ReasoningFormat("kimi_k3", "<|open|>think<|sep|>", "<|close|>think<|sep|>",
                    around=_K3_AROUND, inner=_K3_TOKENS, hint="open_tag('think')",
                    lead="<|open|>response<|sep|>"),
    ReasoningFormat("hunyuan", f"<think{_HY}>", f"</think{_HY}>", hint="'<think{}>'"),
    ReasoningFormat("apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ReasoningFormat("minimax_m3", "<mm:think>", "</mm:think>"),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
    _THINK,
)  # fmt: skip
"""In the order in which a template is searched for them."""
_THINKERS = "deepseek_r1 deepseek_v3 qwen3 glm45 granite kimi_k2 minimax_m2 nemotron_v3 step3p5"
REASONING_FORMATS = {
    **{made.name: made for made in REASONING},
    **dict.fromkeys(_THINKERS.split(), _THINK),
}
"""By their names for --reasoning-parser."""
