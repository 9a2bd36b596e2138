"""Connect the server process and the engine process by pairs of Unix stream sockets.

    orders     server ──▶ engine ┐ one pair, both ways: a token goes from the thread that computed
    news       engine ──▶ server ┘ it to the event loop that sends it on, with no thread between
    record     engine ──▶ server   a pair of its own, so that a burst of events delays no token

On the wire a message is its length (4 bytes, little-endian), then its bytes. When a process ends,
however it ends, the kernel closes its side, and the other side reads all that was sent and then the
end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from struct import Struct
from typing import Generic, TypeVar

T = TypeVar("T")

_LENGTH = Struct("<I")
_HEAD = _LENGTH.size
_PIECE = 2**18  # bytes requested at once: about what the kernel holds for a pair


def framed(message: bytes) -> bytes:
    """Return a message as it is sent: its length, then its bytes."""
    return _LENGTH.pack(len(message)) + message


class Frames:
    """Split a stream into the messages that `framed` made."""

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of an incomplete message

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that these bytes complete."""
        if not self._rest and len(data) >= _HEAD:
            (length,) = _LENGTH.unpack_from(data)
            if len(data) == _HEAD + length:  # nearly always: one message, in one piece
                return [data[_HEAD:]]
        rest = self._rest
        rest += data
        messages, at = [], 0
        while len(rest) - at >= _HEAD:
            (length,) = _LENGTH.unpack_from(rest, at)
            end = at + _HEAD + length
            if end > len(rest):
                break
            messages.append(bytes(rest[at + _HEAD : end]))
            at = end
        del rest[:at]
        return messages


class Closed(Exception):
    """Report that the other side has ended."""


class Channel(Generic[T]):
    """Hold one end, for threads that may block. `decode` decodes the messages."""

    def __init__(self, end: socket.socket, decode: Callable[[bytes], T]):
        end.setblocking(True)
        end.set_inheritable(False)  # a process started from here must not keep it open
        self._end = end
        self._decode = decode
        self._frames = Frames()
        self._buffer = memoryview(bytearray(_PIECE))  # one for all steps
        self._unsent = bytearray()  # of messages that were kept

    def send(self, message: bytes) -> None:
        """Send a message. Blocks while the other side is some hundred messages behind. Raises
        `Closed`."""
        try:
            self._end.sendall(framed(message))
        except ConnectionError as error:
            raise Closed from error

    def keep(self, message: bytes) -> None:
        """Keep a message for `flush`. Don't use it and `send` on the same channel."""
        self._unsent += framed(message)

    def flush(self) -> None:
        """Send of the kept messages what the other side takes now. Raises `Closed`."""
        try:
            while self._unsent:
                del self._unsent[: self._end.send(self._unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except ConnectionError as error:
            raise Closed from error

    @property
    def num_unsent(self) -> int:
        """Count the bytes that `flush` hasn't sent yet."""
        return len(self._unsent)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a message arrives."""
        return self._end.fileno()

    def receive(self, wait: bool) -> list[T] | None:
        """Return the messages that have arrived; None if the other side has closed.

        With `wait`, block until at least a part of one arrives.
        """
        messages: list[T] = []
        flags = 0 if wait else socket.MSG_DONTWAIT
        while True:
            try:
                length = self._end.recv_into(self._buffer, 0, flags)
            except BlockingIOError:
                return messages
            except ConnectionResetError:  # it ended before it had read everything
                length = 0
            if not length:
                return messages or None
            messages += map(self._decode, self._frames.feed(bytes(self._buffer[:length])))
            flags = socket.MSG_DONTWAIT

    def close(self) -> None:
        self._end.close()
