"""Read and check chat templates at the start, so that no chat fails on a broken one."""

from __future__ import annotations

from pathlib import Path

import jinja2

from engine.text.environment import GenerationTag
from engine.text.errors import TextError


def read_template(chat_template: str) -> str:
    """Return the text of a template given as a file or as text. Raises `TextError` for neither."""
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
    check_template(chat_template)
    return chat_template


def check_template(text: str, name: str = "The chat template", advice: str = "") -> None:
    """Refuse what isn't valid Jinja. Raises `TextError`."""
    try:
        _GRAMMAR.compile(text)
    except jinja2.TemplateSyntaxError as error:
        raise TextError("chat_template", f"{not_jinja(error, name)} {advice}".rstrip()) from None
    except RecursionError:
        raise TextError(
            "chat_template", f"{name} is nested too deeply. {advice}".rstrip()
        ) from None


def not_jinja(error: jinja2.TemplateSyntaxError, name: str = "The chat template") -> str:
    """Report where a template's syntax is wrong."""
    return f"{name} is no valid Jinja, line {error.lineno}: {str(error.message).rstrip('.')}."


_GRAMMAR = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", GenerationTag])
