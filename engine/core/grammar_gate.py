"""Hold requests back until their grammars are compiled, so that no other request waits for that.

Compiling takes place on a thread of the worker's; everything else here, on the loop's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.core.admission import RequestError
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest, GrammarTokenizer
from engine.trace.events import GrammarCompiled, RequestAborted, RequestRefused

Settled = Callable[[Exception | None], None]
"""Called with None when the core has the request, or with the error that refuses it."""


class GrammarGate:
    """Add requests to a core.

    `later(call)` must let the loop's thread call `call` soon; any thread may call it.
    """

    def __init__(self, core: EngineCore, later: Callable[[Callable[[], None]], None]):
        self.core = core
        self._later = later
        self._grammars = getattr(core.executor, "grammars", None)
        self._pending: dict[str, tuple[CoreRequest, Settled]] = {}  # by request id

    def __len__(self) -> int:
        """Count the requests that are held back."""
        return len(self._pending)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._pending

    def set_tokenizer(self, source: GrammarTokenizer) -> None:
        """Say which tokens there are, before the first grammar."""
        if self._grammars is not None:
            self._grammars.set_tokenizer(source)

    def add(self, request: CoreRequest, settled: Settled) -> None:
        """Add a request: now, or when its grammar is compiled."""
        text = request.params.grammar
        if text is None:
            self._add(request, None, settled)
        elif self._grammars is None:
            self._refuse(request, "This engine can't hold a text to a form.", settled)
        elif request.request_id in self._pending:
            self._add(request, None, settled)  # the core says that the id is in use
        else:
            known = self._grammars.known(text)
            if known is not None:
                self._begin(request, known, 0.0, settled)
                return
            waiting = self._pending[request.request_id] = request, settled
            self._grammars.compile_soon(
                text, lambda made: self._later(lambda: self._compiled(waiting, made))
            )

    def abort(self, request_id: str, why: str) -> None:
        """End a request, here or in the core."""
        if self._pending.pop(request_id, None) is not None:
            self.core.record(RequestAborted(request_id=request_id, why=why))
        else:
            self.core.abort(request_id, why)

    def _compiled(self, waiting: tuple[CoreRequest, Settled], made: Any) -> None:
        request, settled = waiting
        if self._pending.get(request.request_id) is not waiting:
            return  # it was aborted meanwhile
        del self._pending[request.request_id]
        if isinstance(made, Exception):
            self._refuse(request, f"The form can't be held: {made}.", settled)
        else:
            self._begin(request, made, made.duration_us, settled)

    def _begin(
        self, request: CoreRequest, grammar: Any, duration_us: float, settled: Settled
    ) -> None:
        self.core.record(compiled_event(request, duration_us))
        self._add(request, grammar, settled)

    def _add(self, request: CoreRequest, grammar: Any, settled: Settled) -> None:
        try:
            self.core.add_request(request, grammar)
        except Exception as error:  # this request is refused, the others continue
            settled(error)
        else:
            settled(None)

    def _refuse(self, request: CoreRequest, why: str, settled: Settled) -> None:
        told = why if self.core.recorder.text else "its form can't be held"
        self.core.record(RequestRefused(request_id=request.request_id, why=told))
        settled(RequestError("structured_outputs", why))


def compiled_event(request: CoreRequest, duration_us: float) -> GrammarCompiled:
    """Make the event of a request whose grammar is compiled. `duration_us`: 0 if it was known."""
    form = request.params.structured_outputs
    return GrammarCompiled(
        request_id=request.request_id,
        form="tools" if form is None else form.form,
        num_bytes=len((request.params.grammar or "").encode()),
        duration_us=round(duration_us, 1),
        cached=not duration_us,
    )
