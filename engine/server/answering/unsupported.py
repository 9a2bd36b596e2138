"""Fields that clients of such APIs know and that this server doesn't act on."""

from __future__ import annotations

from typing import Any

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    # field: the values that ask for nothing, and pass
    "suffix": ("",),
    "echo": (False,),  # of chat; completions declare it
    "max_completion_tokens": (),  # of completions; chat declares these two
    "top_logprobs": (),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structural_tag": (),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "prompt_embeds": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "reasoning_effort": (),
    "verbosity": (),
    "documents": ([],),
    "mm_processor_kwargs": (),
    "logits_processors": ([],),
    "kv_transfer_params": (),
    "vllm_xargs": (),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "thinking_token_budget": (),
}
"""Refused by name, never ignored: an answer that leaves them out isn't what was asked for."""

WITHOUT_EFFECT = frozenset(
    {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Say something about the caller and nothing about the answer: accepted without a word."""
