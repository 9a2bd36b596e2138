"""Render a list of messages as the one text that the model was trained to answer.

The template is the model's own or the one given with --chat-template, rendered in Jinja's sandbox
as transformers does it (`apply_chat_template`), with the model's special tokens. The result is
tokenized *without* adding special tokens: the template writes them itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from engine.text.conversation import Render, render_conversation, render_here
from engine.text.errors import TextError
from engine.text.template import check_template, not_jinja, read_template
from engine.text.tokenizer import Tokenizer
from engine.text.tool_calls import parsed_tool_calls

Message = Mapping[str, Any]
MOST_OF_A_REASON = 500  # characters: some reasons contain the whole conversation
RESERVED = {
    *("self", "messages", "conversation", "conversations", "chat_template"),
    *("add_generation_prompt", "continue_final_message", "tokenize", "sanitize_control_tokens"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}
"""Names with another meaning for `apply_chat_template`: a template can't have them as variables."""


class ChatTemplate:
    """Render conversations for one model.

    `chat_template`: a file, or the text of a template; None for the model's own. `foreign` renders
    the templates that come with a request; without it they are trusted, and rendered here.
    `default_kwargs`: variables of the template, where a request doesn't set them. Raises
    `TextError` immediately for a template that can't be read or isn't valid Jinja, and for
    variables with reserved names.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        foreign: Render | None = None,
        default_kwargs: Mapping[str, Any] | None = None,
    ):
        self._special_tokens = tokenizer.facts.special_tokens
        own = tokenizer.facts.chat_template or {}
        self._own = own if isinstance(own, dict) else {"default": own}
        self._only = not isinstance(own, dict)
        self._foreign = foreign
        self._template = None if chat_template is None else read_template(chat_template)
        texts = list(self._own.values()) if self._template is None else []
        for text in texts:
            check_template(text, "The model's own chat template", "Give one with --chat-template.")
        self._text = "".join(texts) if self._template is None else self._template
        self._default_kwargs = dict(default_kwargs or {})
        self._check_kwargs("--default-chat-template-kwargs", self._default_kwargs)

    @property
    def text(self) -> str:
        """Return the template's own text; all of them if the model has several."""
        return self._text

    def render(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Render the prompt for `messages`.

        Messages are dicts with "role" and "content" (a string, or text parts).
        `add_generation_prompt` ends the prompt with the beginning of an answer;
        `continue_final_message` leaves the last message open, so that the model continues it.
        `chat_template` is this request's own template (text). `chat_template_kwargs` are further
        variables of the template.

        Raises `TextError` naming the field that is wrong.
        """
        self._check_kwargs("chat_template_kwargs", chat_template_kwargs or {})
        extra = {**self._default_kwargs, **(chat_template_kwargs or {})}
        if continue_final_message and add_generation_prompt:
            raise TextError(
                "continue_final_message",
                "continue_final_message leaves the last message open, add_generation_prompt begins "
                "a new one: set add_generation_prompt to false.",
            )
        template = chat_template if chat_template is not None else self._template
        if template is None and not self._own:
            raise TextError(
                "messages",
                "This model has no chat template. Start the engine with --chat-template FILE, or "
                "send a plain prompt to /v1/completions.",
            )
        conversation = _conversation(messages, template or self._text)
        variables = {**self._special_tokens, **extra}
        variables["add_generation_prompt"] = add_generation_prompt
        render: Render = render_here
        if chat_template is not None and self._foreign is not None:
            render = self._foreign
        try:
            text = self._of_its_name(template, extra.get("tools"))
            return render_conversation(
                render, text, conversation, variables, continue_final_message, _parts(messages)
            )
        except TextError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise TextError("chat_template", not_jinja(error)) from None
        except Exception as error:
            # A template is a program, so anything may fail: raise_exception(), a missing key, a
            # wrong type.
            reason = f"{type(error).__name__}: {error}"[:MOST_OF_A_REASON]
            raise TextError(
                "messages", f"The chat template can't render these messages: {reason}"
            ) from None

    def _of_its_name(self, template: str | None, tools: Any) -> str:
        """Return a template's text, also if a model has several and one of them is named."""
        if template is not None:
            return template if self._only else self._own.get(template, template)
        if tools is not None and "tool_use" in self._own:
            return self._own["tool_use"]
        if "default" not in self._own:
            raise ValueError(
                "the model has several chat templates and none of them is the default; name one:"
                f" {', '.join(sorted(self._own))}"
            )
        return self._own["default"]

    def _check_kwargs(self, told: str, given: Mapping[str, Any]) -> None:
        for name in given:
            if name in RESERVED:
                raise TextError(
                    f"chat_template_kwargs.{name}",
                    f"{told} can't set {name!r}; it is for the template's variables.",
                )


def _conversation(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Convert messages to the form that a template takes. `template` is its text."""
    if not messages:
        raise TextError("messages", "messages is empty; give at least one.")
    conversation = []
    for place, message in enumerate(messages):
        path = f"messages.{place}"
        if not isinstance(message, Mapping):
            raise TextError(path, f'{path} must be an object with "role" and "content".')
        if not isinstance(message.get("role"), str):
            raise TextError(f"{path}.role", f'{path}.role must be a string, such as "user".')
        made = {**message, "content": _content(message, f"{path}.content")}
        if message["role"] == "developer" and "developer" not in template:
            made["role"] = "system"  # OpenAI's newer name for it
        if message.get("tool_calls"):
            if "tool_calls" not in template:
                raise TextError(
                    f"{path}.tool_calls",
                    f"{path}.tool_calls would be lost: the chat template has no place for them. "
                    "Leave them out, or use a model or a template for tools.",
                )
            made["tool_calls"] = parsed_tool_calls(message["tool_calls"], f"{path}.tool_calls")
        conversation.append(made)
    return conversation


def _parts(messages: Sequence[Message]) -> dict[int, list[Any]]:
    """Return the text parts of each message that has several, by its place."""
    contents = {place: message.get("content") for place, message in enumerate(messages)}
    return {
        place: list(content)
        for place, content in contents.items()
        if isinstance(content, list | tuple) and len(content) > 1
    }


def _content(message: Message, path: str) -> str:
    """Return a message's content as one string: text parts are joined by newlines."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message["role"] == "assistant":
        return ""
    if not isinstance(content, Sequence):
        raise TextError(path, f"{path} must be a string or a list of text parts.")
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise TextError(
                f"{path}.{place}",
                f"{path}.{place} is of type {kind!r}; this engine takes text parts only, "
                '{"type": "text", "text": …}.',
            )
        if not isinstance(part.get("text"), str):
            raise TextError(f"{path}.{place}.text", f"{path}.{place}.text must be a string.")
        texts.append(part["text"])
    return "\n".join(texts)
