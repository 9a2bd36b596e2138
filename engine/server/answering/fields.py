"""List the fields that clients of such APIs send, each once: served, without effect, or refused.

`unknown_fields` applies this table and those of `newer_fields.py`, docs/API_FIELDS.md shows them,
and a test compares them with the classes of the bodies, and with the request classes of vLLM 0.33
and of the clients of OpenAI and Anthropic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.server.answering.field import REFUSED, Field
from engine.server.answering.newer_fields import MESSAGES, RESPONSES
from engine.server.http.errors import bad_request

BODIES = ("completions", "chat", "tokenize", "detokenize")
ROUTES = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "responses": "/v1/responses",
    "input_tokens": "/v1/responses/input_tokens",
}
"""Where each body is sent."""

_GENERATION = "completions chat"


def _served(names: str, bodies: str = _GENERATION) -> tuple[Field, ...]:
    return tuple(Field(name, bodies) for name in names.split())


def _without_effect(note: str, names: str) -> tuple[Field, ...]:
    return tuple(Field(name, no_effect=_GENERATION, note=note) for name in names.split())


def _refused(names: str, *passes: Any, note: str = "") -> tuple[Field, ...]:
    return tuple(
        Field(name, refused=_GENERATION, passes=passes, note=note) for name in names.split()
    )


FIELDS: tuple[Field, ...] = (
    Field("model", "completions chat tokenize detokenize", note='"" means the one that is served'),
    # ------------------------------------------------------------------------------- the prompt
    Field("prompt", "completions tokenize"),
    Field("messages", "chat tokenize", note="text parts only; a developer's is a system's where "
          "the template knows no such role"),
    *_served("chat_template chat_template_kwargs add_generation_prompt continue_final_message",
             "chat tokenize"),
    Field("reasoning_effort", "chat", "completions", note="a variable of the chat template, and "
          "`enable_thinking` beside it (false for none)"),
    Field("tools", "chat tokenize", refused="completions", passes=([],), note="of type function"),
    Field("tool_choice", "chat tokenize", refused="completions", passes=("none",), note="none, "
          "auto, required, a function by its name, or allowed_tools"),
    Field("parallel_tool_calls", "chat tokenize", "completions", note="false: an answer ends "
          "behind its first call"),
    Field("include_reasoning", "chat", refused="completions", passes=(True,), note="false: "
          "reasoning is left out; otherwise it is `reasoning_content`, and `reasoning` alike"),
    Field("add_special_tokens", "completions chat tokenize"),
    Field("truncate_prompt_tokens", _GENERATION, note="−1: what the context leaves"),
    Field("truncation_side", _GENERATION, note="left (the default) keeps the last tokens, right "
          "the first"),
    Field("tokens", "detokenize"),
    # --------------------------------------------------------------------------------- sampling
    Field("n", _GENERATION),
    Field("best_of", _GENERATION, note="only if it equals n"),
    *_served("temperature top_p top_k min_p repetition_penalty frequency_penalty presence_penalty "
             "seed stop stop_token_ids include_stop_str_in_output ignore_eos max_tokens"),
    Field("max_completion_tokens", "chat", refused="completions"),
    *_served("min_tokens logit_bias allowed_token_ids bad_words"),
    # --------------------------------------------------------------------------------- its form
    Field("response_format", _GENERATION, note="text, json_object, json_schema (with or without "
          "strict, the schema is held to) or structural_tag"),
    Field("structured_outputs", _GENERATION, note="one of json, json_object, regex, choice, "
          "grammar and structural_tag, and how JSON may be spaced"),
    *(Field(name, _GENERATION, note="an older name of a part of structured_outputs")
      for name in ("structural_tag", "guided_json", "guided_regex", "guided_choice",
                   "guided_grammar", "guided_whitespace_pattern")),
    # ------------------------------------------------------------------------------- the answer
    Field("echo", "completions", refused="chat", passes=(False,)),
    Field("logprobs", _GENERATION, note="−1 in completions: the whole vocabulary, where "
          "--max-logprobs allows it"),
    Field("top_logprobs", "chat", refused="completions", passes=(0,), note="−1: as for logprobs"),
    Field("prompt_logprobs", _GENERATION, note="−1: as for logprobs"),
    Field("logprob_token_ids", _GENERATION, note="needs logprobs, whose most probable ones they "
          "replace; at most 128"),
    *_served("skip_special_tokens spaces_between_special_tokens return_token_ids "
             "return_tokens_as_token_ids stream stream_options"),
    Field("return_token_strs", "tokenize"),
    # ------------------------------------------------------------------------------ the request
    Field("priority", _GENERATION, note="under --scheduling-policy priority"),
    *_served("cache_salt request_id"),
    Field("trace", _GENERATION, note="this engine's own: full records this request at level full"),
    # --------------------------------------------------------------------------- without effect
    *_without_effect("says something about the caller, nothing about the answer",
                     "user safety_identifier session_id metadata"),
    *_without_effect("every prompt's prefix is cached anyway",
                     "prompt_cache_key prompt_cache_retention prompt_cache_options"),
    *_without_effect("no answer is kept for later", "store"),
    *_without_effect("all requests are served alike", "service_tier"),
    *_without_effect("a hint for speed", "prediction"),
    *_without_effect("there is one backend of grammars", "guided_decoding_backend"),
    *_without_effect("no model is told of it", "verbosity"),
    *_without_effect("about images and sounds, which no model here takes",
                     "mm_payload return_mm_kwargs"),
    # ---------------------------------------------------------------------------------- refused
    *_refused("suffix", ""),
    *_refused("functions", [], note="the older form of tools"),
    *_refused("function_call", "none", note="the older form of tool_choice"),
    *_refused("use_beam_search early_stopping", False),
    *_refused("length_penalty", 1),
    *_refused("prompt_embeds documents logits_processors", []),
    *_refused("modalities", ["text"]),
    *_refused("audio"),
    *_refused("web_search_options moderation vllm_xargs", {}),
    *_refused("kv_transfer_params ec_transfer_params", {}),
    *(Field(name, refused="completions chat tokenize", passes=({},))
      for name in ("mm_processor_kwargs", "media_io_kwargs")),
    *_refused("repetition_detection", {}),
    *_refused("watermarking", False),
    *_refused("thinking_token_budget", -1),
    *_refused("stream_interval", 1, note="the server's is `--stream-interval`"),
    *_refused("return_prompt_text return_token_offsets return_weight_versions", False),
    *_refused("routed_experts_prompt_start", 0),
)  # fmt: skip

TABLES: tuple[tuple[tuple[str, ...], tuple[Field, ...]], ...] = (
    (BODIES, FIELDS),
    (("messages", "count_tokens"), MESSAGES),
    (("responses", "input_tokens"), RESPONSES),
)
"""The bodies of an API, and their table."""

_KNOWN = {
    body: {field.name: field for field in table if field.verdict(body)}
    for bodies, table in TABLES
    for body in bodies
}


def unknown_fields(body: str, extra: Mapping[str, Any]) -> list[str]:
    """Check `extra`, the fields that the class of `body` doesn't declare; return the unknown ones.

    Raises `ApiError` 400 for a field that is refused: without it the answer wouldn't be what was
    asked for, so it is never ignored.
    """
    unknown = []
    for name, value in extra.items():
        field = _KNOWN[body].get(name)
        if field is None:
            unknown.append(name)
        elif field.verdict(body) == REFUSED and value not in field.passes:
            raise bad_request(f"{name} is not supported by this server. Leave it out.", name)
    return sorted(unknown)
