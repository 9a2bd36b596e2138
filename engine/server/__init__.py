"""SPEAKS: the OpenAI-compatible HTTP server."""
