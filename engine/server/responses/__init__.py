"""Serve OpenAI's Responses API, as one translation to and from a chat."""
