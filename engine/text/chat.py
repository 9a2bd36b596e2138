"""Chat templates: a list of messages becomes the one text that the model was trained to answer.

The template is the model's own or the one given with --chat-template; transformers renders it in
Jinja's sandbox, with the model's special tokens. What comes out is tokenized *without* adding
special tokens: the template writes them itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from engine.text.errors import TextError
from engine.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
_PASSED_ON = {"tools", "documents"}  # arguments of transformers that templates know by these names


class ChatTemplate:
    """Renders conversations for one model.

    `chat_template`: a file, or the text of a template; None for the model's own. Raises `TextError`
    at once if it is neither, or isn't valid Jinja.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None):
        self._hf = tokenizer.hf
        self._template = None if chat_template is None else read_template(chat_template)
        parameters = inspect.signature(self._hf.apply_chat_template).parameters
        self._reserved = {name for name in parameters if name != "kwargs"} - _PASSED_ON
        self._reserved |= {"messages", "conversations"}

    def render(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`: dicts with "role" and "content" (a string, or text parts).

        `add_generation_prompt` ends it with the beginning of an answer; `continue_final_message`
        leaves the last message open, so that the model goes on with it. `chat_template` is this
        request's own template (text). `chat_template_kwargs` are further variables of the template.

        Raises `TextError` naming the field that is wrong.
        """
        extra = dict(chat_template_kwargs or {})
        for name in extra:
            if name in self._reserved:
                raise TextError(
                    f"chat_template_kwargs.{name}",
                    f"chat_template_kwargs can't set {name!r}; it is for the template's variables.",
                )
        if continue_final_message and add_generation_prompt:
            raise TextError(
                "continue_final_message",
                "continue_final_message leaves the last message open, add_generation_prompt begins "
                "a new one: set add_generation_prompt to false.",
            )
        template = chat_template if chat_template is not None else self._template
        if template is None and not self._hf.chat_template:
            raise TextError(
                "messages",
                "This model has no chat template. Start the engine with --chat-template FILE, or "
                "send a plain prompt to /v1/completions.",
            )
        conversation = _conversation(messages)
        try:
            return self._hf.apply_chat_template(
                conversation,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **extra,
            )
        except jinja2.TemplateSyntaxError as error:
            raise TextError("chat_template", _not_jinja(error)) from None
        except Exception as error:
            # A template is a program: raise_exception(), missing keys, wrong types, endless ranges.
            raise TextError(
                "messages",
                f"The chat template can't render these messages: {type(error).__name__}: {error}",
            ) from None


def read_template(chat_template: str) -> str:
    """The text of a template given as a file or as text. Raises `TextError` if it is neither."""
    looks_like_text = "{" in chat_template or "\n" in chat_template
    if not looks_like_text:
        try:
            chat_template = Path(chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(
                "chat_template",
                f"--chat-template is {chat_template!r}: neither a template file that can be read "
                f"({error}) nor the text of a template.",
            ) from None
    try:
        # transformers' extra tag {% generation %} is left to it; the grammar is checked here.
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
    except jinja2.TemplateSyntaxError as error:
        raise TextError("chat_template", _not_jinja(error)) from None
    return chat_template


def _not_jinja(error: jinja2.TemplateSyntaxError) -> str:
    return f"The chat template is no valid Jinja, line {error.lineno}: {error.message}"


def _conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not messages:
        raise TextError("messages", "messages is empty; give at least one.")
    conversation = []
    for place, message in enumerate(messages):
        path = f"messages.{place}"
        if not isinstance(message, Mapping):
            raise TextError(path, f'{path} must be an object with "role" and "content".')
        if not isinstance(message.get("role"), str):
            raise TextError(f"{path}.role", f'{path}.role must be a string, such as "user".')
        conversation.append({**message, "content": _content(message, f"{path}.content")})
    return conversation


def _content(message: Message, path: str) -> str:
    """A message's content as one string: text parts are joined by newlines."""
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
