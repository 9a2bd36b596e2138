"""Set up OpenTelemetry spans, if configured. `spans.py` makes the spans.

OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 turns them on; the other OTEL_… variables have
their usual meaning. Without it nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loguru import logger

from engine import __version__
from engine.config import EngineConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from engine.server.telemetry.spans import RequestSpans

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
PACKAGES = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
CLOSE_TIMEOUT_S = 3.0  # a missing collector must not keep a server from ending


class Telemetry:
    """Send spans to a collector: `spans` subscribes to the record, `close()` sends the last
    ones."""

    def __init__(self, provider: TracerProvider, spans: RequestSpans):
        self.spans = spans
        self._provider = provider

    def close(self) -> None:
        """End the open spans and send the waiting ones, for `CLOSE_TIMEOUT_S` at most."""
        self.spans.close("the server ended")
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(CLOSE_TIMEOUT_S)
        if last.is_alive():
            logger.warning(
                "The collector took no spans for {:g} s: some are lost.", CLOSE_TIMEOUT_S
            )


def connect(config: EngineConfig, environ: Mapping[str, str] = os.environ) -> Telemetry | None:
    """Set up spans for a server of this configuration; None if they are off or impossible.

    If they are impossible, one line of the log says why.
    """
    found = [(name, environ[name]) for name in ENDPOINTS if environ.get(name)]
    if not found or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    variable, endpoint = found[0]
    problem = ""
    if config.trace == "off":
        problem = "spans are made from the record, and --trace is off"
    for name in PROTOCOLS:
        if environ.get(name, PROTOCOL) != PROTOCOL:
            problem = f"{name} is {environ[name]!r}, and only {PROTOCOL} is spoken here"
    if not problem:
        try:
            telemetry = _telemetry(config)
        except ImportError as error:
            problem = f"{error.name or error} is not installed (pip install {PACKAGES})"
    if problem:
        logger.warning("{} is set, but no spans are sent: {}.", variable, problem)
        return None
    place = urlsplit(endpoint)  # without user and password
    logger.info("OpenTelemetry is on: one span for each request, sent to {}.", place.hostname)
    return telemetry


def _telemetry(config: EngineConfig) -> Telemetry:
    """Set up the spans. Raises ImportError without the packages."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from engine.server.telemetry.spans import RequestSpans

    ours = Resource({"service.name": "glasshouse", "service.version": __version__})
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over our names.
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `close` has a limit
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Telemetry(provider, RequestSpans(provider, config.model_name))
