"""Make one OpenTelemetry span of each request's record.

    chat pocket ├── queued ── admitted ──── first token ───────────────── (end) ┤
                      queue_ms      prefill_ms                decode_ms

Attributes follow OpenTelemetry's semantic conventions for generative AI (`gen_ai.*`); others are
called `glasshouse.*`. A span has no text of people.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine import __version__
from engine.sampling_params import SamplingParams
from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.sequences import request_of

MOST_OPEN = 4096
"""Most open requests: one whose end never comes must not be kept for ever."""

_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_DEFAULTS = SamplingParams()
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "choice.count",
}


class _Open:
    """Hold a request that hasn't ended."""

    def __init__(self, span: Span, queued: ev.RequestQueued):
        self.span = span
        self.num_prompt_tokens = queued.num_prompt_tokens
        self.num_cached_tokens = 0
        self.num_output_tokens = 0
        self.admitted_ns = 0
        self.first_token_ns = 0
        self.reasons: dict[str, str] = {queued.request_id: ""}  # of each sequence; "": it runs
        self.failure = ""  # why no token could be drawn for one of them


class RequestSpans:
    """Subscribe to the record and make spans.

    The record's times become clock times, by the difference of both when this object was made.
    """

    def __init__(self, provider: TracerProvider, model: str):
        self._tracer = provider.get_tracer("glasshouse", __version__)
        self._model = model
        self._clock_ns = time.time_ns() - time.monotonic_ns()
        self._received: OrderedDict[str, ev.RequestReceived] = OrderedDict()  # not queued yet
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._sampling: dict[int, list[str]] = {}  # step → requests whose first token it draws

    def __call__(self, events: list[Event]) -> None:
        for event in events:
            self._see(event)

    def close(self, why: str) -> None:
        """End every open span as failed."""
        now = time.monotonic_ns()
        while self._open:
            self._fail(next(iter(self._open)), now, "cancelled", why)

    # ------------------------------------------------------------------------------ events

    def _see(self, event: Event) -> None:
        name = request_of(event.request_id)
        request = self._open.get(name)
        if isinstance(event, ev.RequestReceived):
            self._received[name] = event
            _bound(self._received)
        elif isinstance(event, ev.RequestQueued):
            self._queued(event)
        elif isinstance(event, ev.RequestRefused):
            self._refused(event)
        elif isinstance(event, ev.StepPlanned):
            self._planned(event)
        elif isinstance(event, ev.StepFinished):
            for name in self._sampling.pop(event.step, ()):
                if name in self._open:
                    self._first_token(self._open[name], event.ts_ns)
        elif isinstance(event, ev.EngineFailed):
            for name in list(self._open):
                self._fail(name, event.ts_ns, "engine_failed", event.message)
        elif request is None:
            return
        elif isinstance(event, ev.RequestAdmitted):
            request.admitted_ns, request.num_cached_tokens = event.ts_ns, event.num_cached_tokens
            self._event(request.span, event, "admitted", queue_ms=event.waited_us / 1e3)
        elif isinstance(event, ev.RequestForked):
            request.reasons[event.request_id] = ""
        elif isinstance(event, ev.RequestPreempted):
            self._event(request.span, event, "preempted", mode=event.mode)
        elif isinstance(event, ev.RequestResumed):
            self._event(request.span, event, "resumed", waited_ms=event.waited_us / 1e3)
        elif isinstance(event, ev.RequestFinished | ev.RequestAborted):
            self._ended(name, request, event)

    def _queued(self, event: ev.RequestQueued) -> None:
        received = self._received.pop(event.request_id, None)
        span = self._span(event, received)
        params: dict[str, Any] = received.params if received is not None else {}
        max_tokens = params.get("max_tokens") or event.max_tokens
        span.set_attribute("gen_ai.request.max_tokens", max_tokens)
        self._event(span, event, "queued", queue_length=event.queue_length)
        self._open[event.request_id] = _Open(span, event)
        if len(self._open) > MOST_OPEN:
            self._fail(next(iter(self._open)), event.ts_ns, "unknown", "the record lost its end")

    def _refused(self, event: ev.RequestRefused) -> None:
        span = self._span(event, self._received.pop(event.request_id, None))
        span.set_attribute("error.type", "refused")
        span.set_status(Status(StatusCode.ERROR, _without_text(event.why)))
        span.end(self._time(event.ts_ns))

    def _planned(self, event: ev.StepPlanned) -> None:
        first = [
            row.request_id
            for row in event.rows
            if row.samples
            and (request := self._open.get(row.request_id)) is not None
            and not request.first_token_ns
        ]
        if first:
            self._sampling[event.step] = first

    def _first_token(self, request: _Open, ts_ns: int) -> None:
        if not request.first_token_ns:
            request.first_token_ns = ts_ns
            prefill = {"glasshouse.prefill_ms": (ts_ns - request.admitted_ns) / 1e6}
            request.span.add_event("glasshouse.first_token", prefill, self._time(ts_ns))

    def _ended(
        self, name: str, request: _Open, event: ev.RequestFinished | ev.RequestAborted
    ) -> None:
        """End a sequence, and with the last one the request.

        All siblings of n > 1 fork before any of them can end.
        """
        reason = event.reason if isinstance(event, ev.RequestFinished) else "abort"
        request.reasons[event.request_id] = reason
        if reason == "error":
            request.failure = _without_text(event.why)
        request.num_output_tokens += event.num_output_tokens
        if event.num_output_tokens:  # its step is booked a little later
            self._first_token(request, event.ts_ns)
        if not all(request.reasons.values()):
            return
        if "error" in request.reasons.values():
            self._fail(name, event.ts_ns, "no_token", request.failure)
        elif "abort" in request.reasons.values():
            self._fail(name, event.ts_ns, "cancelled", event.why)
        else:
            self._end(name, event.ts_ns)

    # ------------------------------------------------------------------------------ spans

    def _span(self, event: Event, received: ev.RequestReceived | None) -> Span:
        """Start a span at the time its request was received."""
        name, start_ns, route = event.request_id, event.ts_ns, ""
        params: dict[str, Any] = {}
        parent = Context()
        if received is not None:
            start_ns, route = received.ts_ns, received.route
            parent = TraceContextTextMapPropagator().extract(received.trace_context, parent)
            always = {"temperature": _DEFAULTS.temperature, "top_p": _DEFAULTS.top_p}
            params = always | received.params
        operation = _OPERATIONS.get(route, "text_completion")
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "glasshouse",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": name,
        }
        for parameter, attribute in _PARAMETERS.items():
            if params.get(parameter) is not None:
                attributes[f"gen_ai.request.{attribute}"] = params[parameter]
        return self._tracer.start_span(
            f"{operation} {self._model}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=self._time(start_ns),
        )

    def _end(self, name: str, ts_ns: int) -> None:
        request = self._open.pop(name)
        span = request.span
        if request.first_token_ns:
            decode_ms = (ts_ns - request.first_token_ns) / 1e6
            span.add_event(
                "glasshouse.ended", {"glasshouse.decode_ms": decode_ms}, self._time(ts_ns)
            )
        reasons = [reason or "error" for reason in request.reasons.values()]
        span.set_attribute("gen_ai.response.finish_reasons", reasons)
        span.set_attribute("gen_ai.usage.input_tokens", request.num_prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", request.num_output_tokens)
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", request.num_cached_tokens)
        span.end(self._time(ts_ns))

    def _fail(self, name: str, ts_ns: int, error_type: str, why: str) -> None:
        span = self._open[name].span
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR, why))
        self._end(name, ts_ns)

    def _event(self, span: Span, event: Event, name: str, **values: float | str) -> None:
        attributes = {f"glasshouse.{key}": value for key, value in values.items()}
        span.add_event(f"glasshouse.{name}", attributes, self._time(event.ts_ns))

    def _time(self, ts_ns: int) -> int:
        """Convert nanoseconds of CLOCK_MONOTONIC to nanoseconds since 1970."""
        return ts_ns + self._clock_ns


def _without_text(why: str) -> str:
    """Return a reason without what it quotes: texts in quotes, and details behind a colon."""
    return _QUOTED.sub("…", why.partition(": ")[0])


def _bound(known: OrderedDict[str, Any]) -> None:
    while len(known) > MOST_OPEN:
        known.popitem(last=False)
