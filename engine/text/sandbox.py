"""Render the template of a request, as a process of its own that may be killed at any time.

A template is a foreign program. Jinja's sandbox protects the machine, but doesn't prevent endless
work; the process that started this one ends it when its time is over. Limits that are checked here
have better error messages. A job and its answer are

    {"template": …, "variables": {…}, "characters": …}
    {"text": …} or {"error": …, "param": …}
"""

from __future__ import annotations

from typing import Any

import jinja2
from jinja2.runtime import Context

from engine.text.environment import ChatEnvironment
from engine.text.jobs import do_jobs
from engine.text.template import not_jinja

LONGEST_REPETITION = 100_000  # entries or characters
LARGEST_NUMBER = 4_096  # bits


class Refused(Exception):
    """Report that a template does something that no chat template needs."""


class Sandbox(ChatEnvironment):
    """Provide what chat templates expect, without operators that make huge values from small
    ones."""

    intercepted_binops = frozenset({"**", "*"})

    def __init__(self) -> None:
        super().__init__()
        del self.globals["lipsum"]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise Refused("the operator ** is not allowed")
        for value, times in ((left, right), (right, left)):
            repeats = isinstance(value, (str, list, tuple)) and isinstance(times, int)
            if repeats and len(value) * times > LONGEST_REPETITION:
                raise Refused(f"a repetition may be at most {LONGEST_REPETITION:,} long")
        numbers = isinstance(left, int) and isinstance(right, int)
        if numbers and left.bit_length() + right.bit_length() > LARGEST_NUMBER:
            raise Refused(f"a number may have at most {LARGEST_NUMBER:,} bits")
        return super().call_binop(context, operator, left, right)


def render(template: str, variables: dict[str, Any], characters: int) -> str:
    """Render a template, to at most `characters` characters. Raises what the template raises."""
    pieces, length = [], 0
    for piece in Sandbox().from_string(template).generate(**variables):
        length += len(piece)
        if length > characters:
            raise Refused(f"it wrote more than {characters:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def answer(job: dict[str, Any]) -> dict[str, str]:
    """Do one job; report any error in the answer."""
    try:
        return {"text": render(job["template"], job["variables"], job["characters"])}
    except jinja2.TemplateSyntaxError as error:
        return {"error": not_jinja(error), "param": "chat_template"}
    except Refused as error:
        return {"error": f"The chat template is refused: {error}.", "param": "chat_template"}
    except MemoryError:
        return {"error": "The chat template needs too much memory.", "param": "chat_template"}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:500]
        message = f"The chat template can't render these messages: {reason}"
        return {"error": message, "param": "messages"}


if __name__ == "__main__":
    do_jobs(answer)
