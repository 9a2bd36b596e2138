"""What the tests of Anthropic's Messages and OpenAI's Responses API share."""

from __future__ import annotations

import itertools
import json

NUMBERS = itertools.count()


def parsed(text):
    """The events of a stream: (name, data)s."""
    found = []
    for event in text.split("\n\n"):
        if event and not event.startswith(":"):
            name, data = event.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def prompt_of(server, ask, prefix):
    """The prompt of the request that `ask(request_id)` makes: the record has it."""
    name = f"prompt-{next(NUMBERS)}"
    ask(name)
    lines = map(json.loads, server.http.get("/trace").text.splitlines())
    received = [line for line in lines if line["kind"] == "request.received"]
    return next(line for line in received if line["request_id"] == f"{prefix}{name}")
