"""Render the templates of requests in a process that is killed when its time is over."""

from __future__ import annotations

from typing import Any

from engine.text.errors import TextError
from engine.text.sandbox_process import SandboxProcess

RENDER_S = 2.0  # for one conversation; ordinary ones take less than a millisecond


class TemplateProcess:
    """Run one warm process, `engine.text.sandbox`. Use it from one thread at a time."""

    def __init__(self, render_s: float = RENDER_S):
        self.render_s = render_s
        self._process = SandboxProcess("engine.text.sandbox")

    def start(self) -> None:
        """Start the process unless it runs, and wait until it is ready."""
        self._process.start()

    def render(self, template: str, variables: dict[str, Any], characters: int) -> str:
        """Render `template`. Raises `TextError`, also for too much time or more than
        `characters`."""
        job = {"template": template, "variables": variables, "characters": characters}
        try:
            reply = self._process.ask(job, self.render_s)
        except TimeoutError:
            raise TextError(
                "chat_template",
                f"The chat template took more than {self.render_s:g} s and was stopped.",
            ) from None
        except OSError:
            raise TextError(
                "chat_template", "The chat template used up what it may have, and was stopped."
            ) from None
        if "error" in reply:
            raise TextError(reply["param"], reply["error"])
        return reply["text"]

    def close(self) -> None:
        """Kill the process."""
        self._process.close()
