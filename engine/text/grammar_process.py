"""Check the grammars of requests in a process that is killed when its time is over.

A grammar is a foreign program: compiling one may take seconds, or crash the process that does it.
Run as a module, this file is that process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.structured_outputs import StructuredOutputsError, StructuredOutputsParams
from engine.text.form_to_grammar import Checked, checked_grammar
from engine.text.jobs import do_jobs
from engine.text.sandbox_process import SandboxProcess

CHECK_S = 2.0  # for one grammar; ordinary ones take milliseconds
STACK = 4 * 2**20  # bytes: less than the engine has, so that what passes here doesn't crash there


class GrammarProcess:
    """Run one warm process. Use it from one thread at a time."""

    def __init__(self, check_s: float = CHECK_S):
        self.check_s = check_s
        self._process = SandboxProcess(__name__)

    def check(self, form: StructuredOutputsParams, special: Mapping[str, int]) -> Checked:
        """Do `checked_grammar`. Raises `StructuredOutputsError`, also for too much time."""
        kind = form.form
        job = {"form": msgspec.to_builtins(form), "special": dict(special)}
        try:
            reply = self._process.ask(job, self.check_s)
        except TimeoutError:
            raise StructuredOutputsError(
                kind,
                f"{kind} took more than {self.check_s:g} s to compile and was stopped. Send a"
                " simpler one.",
            ) from None
        except OSError:
            raise StructuredOutputsError(
                kind, f"{kind} used up what compiling may use, and was stopped. Send a simpler one."
            ) from None
        if "error" in reply:
            raise StructuredOutputsError(reply["field"], reply["error"])
        return Checked(reply["grammar"], reply["warnings"])

    def close(self) -> None:
        """Kill the process."""
        self._process.close()


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    """Check one grammar; report any error in the answer."""
    form = StructuredOutputsParams(**job["form"])
    try:
        return checked_grammar(form, job["special"])._asdict()
    except StructuredOutputsError as error:
        return {"error": str(error), "field": error.field}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:500]
        return {"error": f"{form.form} can't be compiled: {reason}", "field": form.form}


def _answer_on_little_stack(job: dict[str, Any]) -> dict[str, Any]:
    replies: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: replies.append(_answer(job)))
    thread.start()
    thread.join()
    return replies[0]


if __name__ == "__main__":
    threading.stack_size(STACK)
    do_jobs(_answer_on_little_stack)
