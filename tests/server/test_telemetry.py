"""OpenTelemetry spans: one a request, from the record; off unless they are asked for."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from loguru import logger
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engine.config import EngineConfig
from engine.server.openapi import STREAMS
from engine.server.telemetry import connect
from engine.server.telemetry import spans as spans_module
from engine.server.telemetry.spans import RequestSpans
from engine.trace import events as ev

HELLO = [{"role": "user", "content": "hello"}]
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Collected:
    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def by_id(self) -> dict:
        spans = self.exporter.get_finished_spans()
        return {span.attributes["gen_ai.response.id"]: span for span in spans}

    def wait_for(self, request_id: str):
        deadline = time.monotonic() + 10
        while request_id not in self.by_id():
            assert time.monotonic() < deadline, f"no span of {request_id}: {list(self.by_id())}"
            time.sleep(0.02)
        return self.by_id()[request_id]


@pytest.fixture(scope="module")
def collected():
    return Collected()


@pytest.fixture(scope="module")
def observed(run_server, collected):
    """A server whose spans stay in this process."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            spans = RequestSpans(collected.provider, "tiny")
            connected = connect.Telemetry(collected.provider, spans)
            patch.setattr(connect, "connect", lambda config: connected)
            server = stack.enter_context(run_server(step_s=0.01))
        yield server


def event_values(span) -> dict:
    return {event.name.removeprefix("glasshouse."): dict(event.attributes) for event in span.events}


def test_a_request_is_a_span(observed, collected):
    before = time.time_ns()
    answer = observed.complete(
        "hello", max_tokens=6, temperature=0.5, top_p=0.9, seed=7, request_id="told"
    )
    span = collected.wait_for(answer["id"])
    assert span.name == "text_completion tiny" and span.kind is SpanKind.SERVER
    assert span.parent is None and span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "glasshouse",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert before - 10**7 < span.start_time < span.end_time < time.time_ns() + 10**7


def test_its_times_add_up(observed, collected):
    answer = observed.complete("hello", max_tokens=9)
    span = collected.wait_for(answer["id"])
    times = event_values(span)
    assert list(times) == ["queued", "admitted", "first_token", "ended"]
    assert 10 <= times["first_token"]["glasshouse.prefill_ms"] < 500  # a step takes 10 ms
    assert 80 <= times["ended"]["glasshouse.decode_ms"] < 2000
    queue, prefill, decode = (
        times[name][f"glasshouse.{key}_ms"]
        for name, key in (("admitted", "queue"), ("first_token", "prefill"), ("ended", "decode"))
    )
    queued = next(e for e in span.events if e.name == "glasshouse.queued")
    whole_ms = (span.end_time - queued.timestamp) / 1e6
    assert queue + prefill + decode == pytest.approx(whole_ms, abs=1.0)
    stamps = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert stamps == sorted(stamps)


def test_chat_and_several_sequences_and_the_prefix_cache(observed, collected):
    body = {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 4, "n": 2}
    for cached in (False, True):
        answer = observed.http.post("/v1/chat/completions", json=body).json()
        span = collected.wait_for(answer["id"])
        assert span.name == "chat tiny"
        assert span.attributes["gen_ai.request.choice.count"] == 2
        assert span.attributes["gen_ai.response.finish_reasons"] == ("length", "length")
        usage = answer["usage"]
        assert span.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
        assert span.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 8
        assert (span.attributes["gen_ai.usage.cache_read.input_tokens"] > 0) is cached


@pytest.mark.parametrize("route", sorted(STREAMS))
def test_every_route_that_writes_text_has_its_operation(observed, collected, route):
    """The field's names: a prompt is completed, all others are chats."""
    before = collected.by_id().keys()
    body = {
        "/v1/completions": {"prompt": "hello"},
        "/v1/responses": {"input": "hello", "max_output_tokens": 16},
    }.get(route, {"messages": HELLO, "max_tokens": 2})
    answer = observed.http.post(route, json={"model": "tiny", **body})
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 10
    while not (new := collected.by_id().keys() - before):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    [span] = (collected.by_id()[name] for name in new)
    operation = "text_completion" if route == "/v1/completions" else "chat"
    assert span.attributes["gen_ai.operation.name"] == operation
    assert span.name == f"{operation} tiny"


def test_one_token_has_a_first_token_too(observed, collected):
    span = collected.wait_for(observed.complete("hello", max_tokens=1)["id"])
    assert event_values(span)["ended"] == {"glasshouse.decode_ms": 0.0}


def test_the_callers_trace_is_its_parent(observed, collected):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for header, has_parent in ((parent, True), ("nonsense", False)):
        answer = observed.http.post(
            "/v1/completions",
            json={"prompt": "a", "max_tokens": 2},
            headers={"traceparent": header, "tracestate": "vendor=1"},
        ).json()
        span = collected.wait_for(answer["id"])
        assert (span.parent is not None) is has_parent
        if has_parent:
            assert f"{span.context.trace_id:032x}" == parent[3:35]
            assert f"{span.parent.span_id:016x}" == parent[36:52]
            assert span.context.trace_state["vendor"] == "1"


def test_without_spans_the_record_has_no_state_of_its_vendors(server):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = server.http.post(
        "/v1/completions",
        json={"prompt": "a", "max_tokens": 1},
        headers={"traceparent": parent, "tracestate": "vendor=private"},
    ).json()
    record = server.http.get("/trace", params={"request_id": answer["id"]}).text
    assert parent in record and "private" not in record


def test_a_client_that_leaves(observed, collected):
    body = {"prompt": "hello", "max_tokens": 400, "stream": True, "n": 2, "request_id": "leaver"}
    with observed.http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    span = collected.wait_for("cmpl-leaver")
    assert span.status.status_code is StatusCode.ERROR
    assert "client" in span.status.description
    assert span.attributes["error.type"] == "cancelled"
    assert span.attributes["gen_ai.response.finish_reasons"] == ("abort", "abort")
    assert 2 <= span.attributes["gen_ai.usage.output_tokens"] < 800


def test_a_refused_request(observed, collected):
    prompt = "x" * 600  # the context has 512 tokens
    observed.refusal(prompt=prompt, request_id="long")
    span = collected.wait_for("cmpl-long")
    assert span.attributes["error.type"] == "refused"
    assert span.status.status_code is StatusCode.ERROR and "512" in span.status.description


def test_no_text_is_in_any_span(observed, collected):
    answer = observed.complete("a secret text", max_tokens=8, stop=["zzzz"])
    span = collected.wait_for(answer["id"])
    text = span.to_json()
    assert "secret" not in text and "zzzz" not in text and answer["choices"][0]["text"] not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "(a secret"}},
        {"structured_outputs": {"json": {"type": "a secret"}}},
    ],
)
def test_no_text_is_in_the_span_of_a_refusal(observed, collected, fields):
    name = "-".join(fields) + str(len(str(fields)))
    assert "secret" in observed.refusal(prompt="a", request_id=name, **fields)["message"]
    span = collected.wait_for(f"cmpl-{name}")
    assert span.attributes["error.type"] == "refused" and span.status.description
    assert "secret" not in span.to_json()


def test_a_span_says_why_no_token_could_be_drawn():
    collected = Collected()
    spans = RequestSpans(collected.provider, "tiny")
    spans([ev.RequestQueued(request_id="r", n=2), ev.RequestForked(request_id="r.1", parent="r")])
    why = "no token could be drawn for position 2: its grammar failed: NoExtensionBias"
    spans([ev.RequestFinished(request_id="r.1", reason="error", why=why)])
    spans([ev.RequestAborted(request_id="r", why="the client left")])
    span = collected.by_id()["r"]
    assert span.attributes["error.type"] == "no_token"
    assert span.status.description == "no token could be drawn for position 2"


def test_open_spans_are_bounded_and_end_with_the_server(monkeypatch):
    monkeypatch.setattr(spans_module, "MOST_OPEN", 8)
    collected = Collected()
    spans = RequestSpans(collected.provider, "tiny")
    for number in range(20):
        spans([ev.RequestReceived(request_id=f"lost{number}", ts_ns=1)])
        spans([ev.RequestQueued(request_id=f"r{number}", ts_ns=2, num_prompt_tokens=3)])
    assert len(collected.by_id()) == 12
    spans.close("the server ended")
    ended = collected.by_id()
    assert len(ended) == 20 and ended["r19"].status.description == "the server ended"
    assert ended["r0"].attributes["error.type"] == "unknown"
    assert ended["r0"].attributes["gen_ai.response.finish_reasons"] == ("error",)


def test_a_failed_engine_ends_its_spans():
    collected = Collected()
    spans = RequestSpans(collected.provider, "tiny")
    spans([ev.RequestQueued(request_id="r", ts_ns=2), ev.EngineFailed(message="gone", ts_ns=5)])
    assert collected.by_id()["r"].status.description == "gone"


# ----------------------------------------------------------------------------------------- connect


@pytest.fixture
def lines():
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), format="{level} {message}")
    yield said
    logger.remove(sink)


class Collector(http.server.ThreadingHTTPServer):
    """Takes spans in OTLP over HTTP."""

    def __init__(self):
        self.received: list[ExportTraceServiceRequest] = []
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                self.server.received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args) -> None:
            pass


def test_spans_reach_a_collector_before_the_server_ends(run_server, monkeypatch, lines):
    collector = Collector()
    monkeypatch.setenv(ENDPOINT, f"http://user:word@127.0.0.1:{collector.server_port}")
    try:
        with run_server() as server:
            answer = server.complete("hello", max_tokens=3)
            server.wait_until_idle()
    finally:
        collector.shutdown()
        collector.server_close()
    assert [line for line in lines if "OpenTelemetry" in line] == [
        "INFO OpenTelemetry is on: one span for each request, sent to 127.0.0.1.\n"
    ]
    (group,) = [group for sent in collector.received for group in sent.resource_spans]
    resource = {item.key: item.value.string_value for item in group.resource.attributes}
    assert resource["service.name"] == "glasshouse" and resource["service.version"]
    (span,) = group.scope_spans[0].spans
    attributes = {item.key: item.value for item in span.attributes}
    assert attributes["gen_ai.response.id"].string_value == answer["id"]
    assert attributes["gen_ai.usage.output_tokens"].int_value == 3


def test_a_collector_that_is_gone_delays_no_answer_and_no_end(run_server, monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with run_server() as server:
        server.complete("hello", max_tokens=3)
        started = time.monotonic()
    assert time.monotonic() - started < 9


@pytest.mark.parametrize(
    ("environ", "options", "words"),
    [
        ({}, {}, None),
        ({ENDPOINT: ""}, {}, None),
        ({ENDPOINT: "http://x:4318", "OTEL_SDK_DISABLED": "true"}, {}, None),
        ({ENDPOINT: "http://x:4318"}, {"trace": "off"}, "--trace is off"),
        (
            {ENDPOINT: "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            {},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'",
        ),
    ],
)
def test_when_there_are_no_spans(environ, options, words, lines):
    assert connect.connect(EngineConfig(**options), environ) is None
    assert len(lines) == (words is not None)
    if words is not None:
        assert lines[0].startswith("WARNING") and words in lines[0]


def test_without_the_package_one_line_says_what_to_do(monkeypatch, lines):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert connect.connect(EngineConfig(), {ENDPOINT: "http://x:4318"}) is None
    (line,) = lines
    assert line.startswith(f"WARNING {ENDPOINT} is set, but no spans are sent")
    assert f"pip install {connect.PACKAGES}" in line


def test_nothing_is_imported_when_nobody_asks():
    code = (
        "import sys; from engine.config import EngineConfig; from engine.server import app\n"
        "from engine.server.telemetry.connect import connect\n"
        "assert connect(EngineConfig(), {}) is None\n"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
