"""Prometheus metrics and OpenTelemetry spans, made from what the engine tells."""
