"""Make Prometheus metrics and OpenTelemetry spans from the engine's stats and events."""
