"""List the fields of the newer APIs, as `fields.py` does for the older ones.

They are apart because their names mean other things there.
"""

from __future__ import annotations

from typing import Any

from engine.server.answering.field import Field

_OWN_NOTE = "as in /v1/chat/completions"


def _served(names: str, bodies: str, note: str = "") -> tuple[Field, ...]:
    return tuple(Field(name, bodies, note=note) for name in names.split())


def _without_effect(note: str, names: str, bodies: str) -> tuple[Field, ...]:
    return tuple(Field(name, no_effect=bodies, note=note) for name in names.split())


def _refused(names: str, bodies: str, *passes: Any, note: str = "") -> tuple[Field, ...]:
    return tuple(Field(name, refused=bodies, passes=passes, note=note) for name in names.split())


_CALLER = "says something about the caller, nothing about the answer"
_ALIKE = "all requests are served alike"
_PREFIX = "every prompt's prefix is cached anyway"

# ---------------------------------------------------------------------------------- Anthropic's
_MESSAGE, _BOTH = "messages", "messages count_tokens"
MESSAGES: tuple[Field, ...] = (
    Field("model", _BOTH, note='"" means the one that is served'),
    Field("messages", _BOTH, note="blocks of text, thinking, tool_use and tool_result; a last "
          "message of the assistant is gone on with"),
    Field("system", _BOTH, note="text; a block that begins with x-anthropic-billing-header is "
          "left out, and named in the record"),
    Field("max_tokens", _MESSAGE),
    *_served("temperature top_p top_k stop_sequences stream", _MESSAGE),
    Field("tools", _BOTH, note="those that the client runs; a type of Anthropic's own is refused"),
    Field("tool_choice", _BOTH, note="without tools it asks for nothing"),
    Field("thinking", _BOTH, note="the variable `enable_thinking` of the chat template; nothing "
          "holds the model to budget_tokens"),
    Field("output_config", _BOTH, note="format is held to; effort is the variable "
          "`reasoning_effort` of the chat template"),
    *_served("min_p repetition_penalty frequency_penalty presence_penalty seed min_tokens "
             "ignore_eos truncate_prompt_tokens truncation_side priority cache_salt request_id "
             "trace",
             _MESSAGE, _OWN_NOTE),
    *_served("chat_template_kwargs", _BOTH, _OWN_NOTE),
    *_without_effect(_CALLER, "metadata user_profile_id workspace_id inference_geo diagnostics "
                     "billing_policy betas", _BOTH),
    *_without_effect(_ALIKE, "service_tier speed", _BOTH),
    *_without_effect(_PREFIX, "cache_control", _BOTH),
    *_without_effect("the conversation is used as it is sent", "context_management compaction",
                     _BOTH),
    *_without_effect("there is one model", "fallbacks fallback_credit_token", _BOTH),
    *_refused("container", _BOTH),
    *_refused("mcp_servers", _BOTH, []),
    *_refused("thread", _BOTH, note="in the form after which the client's tool runner sends the "
              "whole conversation"),
)  # fmt: skip

# ------------------------------------------------------------------------- OpenAI's Responses API
_RESPONSE, _ALSO = "responses", "responses input_tokens"
RESPONSES: tuple[Field, ...] = (
    Field("model", _ALSO, note='"" means the one that is served'),
    Field("input", _ALSO, note="text, or items: messages of text, function_call, "
          "function_call_output, reasoning, item_reference"),
    Field("instructions", _ALSO, note="of this request alone"),
    Field("previous_response_id", _ALSO, note="404 where that answer isn't kept"),
    Field("tools", _ALSO, note="functions; other types are refused by name"),
    *_served("tool_choice parallel_tool_calls", _ALSO),
    Field("reasoning", _ALSO, note="effort is a variable of the chat template, and "
          "`enable_thinking` beside it; with summary, thoughts come in its place"),
    Field("text", _ALSO, note="format: text, json_object or json_schema; no model is told of "
          "verbosity"),
    Field("truncation", _ALSO, note="auto leaves out the oldest turns"),
    *_served("max_output_tokens temperature top_p top_logprobs stream stream_options metadata",
             _RESPONSE),
    Field("include", _RESPONSE, note="message.output_text.logprobs; the rest is of tools that "
          "aren't here, or is there anyway"),
    Field("store", _RESPONSE, note="true (the default) keeps the answer for a while"),
    Field("stop", _RESPONSE, note=_OWN_NOTE),
    *_served("top_k min_p repetition_penalty frequency_penalty presence_penalty seed min_tokens "
             "ignore_eos truncate_prompt_tokens truncation_side priority cache_salt request_id "
             "trace", _RESPONSE, _OWN_NOTE),
    *_served("chat_template_kwargs", _ALSO, _OWN_NOTE),
    *_without_effect(_CALLER, "user safety_identifier", _ALSO),
    *_without_effect(_ALIKE, "service_tier access_programs", _ALSO),
    *_without_effect(_PREFIX, "prompt_cache_key prompt_cache_retention prompt_cache_options",
                     _ALSO),
    *_without_effect("about tools of OpenAI's own, which aren't here", "max_tool_calls", _ALSO),
    *_without_effect("no model is told of it", "personality", _ALSO),
    *_refused("background", _ALSO, False),
    *_refused("conversation prompt background_options", _ALSO),
    *_refused("context_management", _ALSO, []),
    *_refused("moderation image", _ALSO, {}),
)  # fmt: skip
