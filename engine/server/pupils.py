"""Let a class ask by phone: who joined, what each one asked, and what became of it.

A phone joins with a code that the teacher's page shows. Everything is bounded: the number of names,
one open question for each, the length of a question and of its answer.
"""

from __future__ import annotations

import hmac
import re
import secrets
import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from engine.trace.events import Event
from engine.trace.sequences import request_of
from engine.trace.story import Line, Story

MOST_NAMES = 60
MOST_CHARACTERS = 300  # of a question
MOST_TOKENS = 160  # of an answer
LINES_KEPT = 24  # of a question's life

NAME = re.compile(r"[A-Za-z]{1,12}")
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I and O, which look like digits
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


class ClassError(Exception):
    """Refuse what a phone asks for. The text is for its owner."""


@dataclass
class Asked:
    """Hold the latest question of a phone."""

    request_id: str
    open: bool = True
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))


class Classroom:
    """Keep a class. `see` is called on the record's thread, all else on the event loop."""

    def __init__(self) -> None:
        self.code = "".join(secrets.choice(_LETTERS) for _ in range(5))
        self._asked: dict[str, Asked] = {}  # by name
        self._names: dict[str, str] = {}  # request → name
        self._story = Story(with_summaries=False)
        self._lock = threading.Lock()

    @property
    def num_names(self) -> int:
        return len(self._asked)

    def check_code(self, code: str) -> None:
        if not hmac.compare_digest(code.upper().encode(), self.code.encode()):
            raise ClassError("This is not the code of this class: look at the screen again.")

    def ask(self, name: str) -> str:
        """Begin a question of a phone; return the request id that names it. Its caller ends it with
        `close`. Raises ClassError."""
        if not NAME.fullmatch(name):
            raise ClassError("A name is 1 to 12 letters from A to Z.")
        with self._lock:
            before = self._asked.get(name)
            if before is None and len(self._asked) >= MOST_NAMES:
                raise ClassError(f"The class is full: it has {MOST_NAMES} names.")
            if before and before.open:
                raise ClassError(f"{name} has an open question: wait for its end.")
            if before:
                self._names.pop(before.request_id, None)
            own = f"as-{name}-{secrets.token_hex(4)}"
            self._asked[name] = Asked(f"chatcmpl-{own}")
            self._names[f"chatcmpl-{own}"] = name
        return own

    def close(self, name: str) -> None:
        """End a phone's question: it has its answer, or gets none."""
        with self._lock:
            self._asked[name].open = False

    def life(self, name: str) -> dict[str, object]:
        """Return what is known of a phone's latest question: {"open", "lines"}."""
        with self._lock:
            asked = self._asked.get(name)
            if asked is None:
                return {"open": False, "lines": []}
            return {"open": asked.open, "lines": list(asked.lines)}

    def see(self, events: list[Event]) -> None:
        """Keep the log's lines about the questions."""
        lines = list(self._story.tell(events))
        with self._lock:
            for line in lines:
                self._keep(line)

    def _keep(self, line: Line) -> None:
        name = self._names.get(request_of(line.request_id))
        if name is not None:
            step = f"step {line.first_step}: " if line.first_step else ""
            self._asked[name].lines.append(f"{step}{line.text}")


def address(origin: str, root_path: str, code: str) -> str:
    """Return the address that phones open: the page's own, or this machine's in its network.

    The code stands behind "#", which no server and no proxy gets to see.
    """
    parts = urlsplit(origin)
    host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    if host in _LOOPBACK:
        host = own_address() or host
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{port}{root_path}/class#{code}"


def own_address() -> str:
    """Return this machine's address in its network, "" if it has none. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: chooses an interface only
        except OSError:
            return ""
        return str(probe.getsockname()[0])
