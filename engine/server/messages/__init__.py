"""Serve Anthropic's Messages API, as one translation to and from a chat."""
