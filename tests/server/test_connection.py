"""What a connection may send before its key is checked: headers within 64 kB, in time, one Host."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from engine.server.http.connection import BoundedConnection

pytestmark = pytest.mark.slow

HEAD = b"GET /health HTTP/1.1\r\n"
HOST = b"Host: here\r\n"


@pytest.fixture
def connect(server):
    opened = []

    def open_one() -> socket.socket:
        address = server.url.removeprefix("http://").split(":")
        opened.append(socket.create_connection((address[0], int(address[1])), timeout=10))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


def answer(connection: socket.socket) -> tuple[int, dict]:
    """Status and body of what comes until the server closes."""
    data = b""
    while part := connection.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    assert head, "the server closed without an answer"
    return int(head.split()[1]), json.loads(body)


def ask(connection: socket.socket, *headers: bytes, head: bytes = HEAD) -> tuple[int, dict]:
    connection.sendall(head + b"".join(headers) + b"Connection: close\r\n\r\n")
    return answer(connection)


def assert_error(reply: tuple[int, dict], status: int, *words: str) -> None:
    assert reply[0] == status and reply[1]["error"]["code"] == status, reply
    for word in words:
        assert word in reply[1]["error"]["message"]


@pytest.mark.parametrize(
    "large",
    [
        b"X-Large: " + b"a" * 70_000 + b"\r\n",
        b"X-Large: " + b"a" * 10_000_000 + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(80)),
        b"".join(b"X-%d: a\r\n" % i for i in range(20_000)),
    ],
)
def test_headers_beyond_64_kb(connect, large):
    connection = connect()
    with contextlib.suppress(OSError):  # it may have closed already
        connection.sendall(HEAD + HOST + large + b"\r\n")
    assert_error(answer(connection), 431, "65,536")


def test_a_long_address(connect):
    assert_error(ask(connect(), HOST, head=b"GET /%s HTTP/1.1\r\n" % (b"a" * 70_000)), 431)


def test_headers_of_60_kb_pass(connect):
    assert ask(connect(), HOST, b"X-Large: " + b"a" * 60_000 + b"\r\n")[0] == 200


def test_headers_are_counted_for_each_request(connect):
    connection = connect()
    for _ in range(4):
        connection.sendall(HEAD + HOST + b"X-Large: " + b"a" * 30_000 + b"\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_exactly_one_host(connect):
    assert_error(ask(connect()), 400, "0 Host")
    assert_error(ask(connect(), HOST, HOST), 400, "2 Host")
    assert ask(connect(), HOST)[0] == 200
    assert ask(connect(), head=b"GET /health HTTP/1.0\r\n")[0] == 200  # has no such header


def test_what_is_no_http(connect):
    connection = connect()
    connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert_error(answer(connection), 400)


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
"""What Java's client sends with its first request to each http:// address."""
BODY = b'{"prompt":"hello","max_tokens":2}'
JSON = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST
WHOLE = [
    JSON + OFFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    JSON + b"Content-Length: %d\r\n" % len(BODY) + OFFER + b"\r\n" + BODY,
    JSON + OFFER + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
]


def answers(connection: socket.socket, count: int) -> list[dict]:
    """The bodies of so many answers on one connection."""
    read, data = [], b""
    while len(read) < count:
        part = connection.recv(65536)
        assert part, data
        data += part
        while b"\r\n\r\n" in data:
            head, _, rest = data.partition(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            if len(rest) < length:
                break
            assert head.startswith(b"HTTP/1.1 200"), (head, rest)
            read.append(json.loads(rest[:length]))
            data = rest[length:]
    return read


@pytest.mark.parametrize("request_", WHOLE)
@pytest.mark.parametrize("size", [10_000, 7, 60, 200])
def test_an_offer_of_another_protocol_is_ignored(connect, request_, size):
    connection = connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(2):  # and the connection goes on
        for start in range(0, len(request_), size):
            connection.sendall(request_[start : start + size])
            time.sleep(0.001)
        (said,) = answers(connection, 1)
        assert said["usage"]["completion_tokens"] == 2
    plain = HEAD + HOST + b"\r\n"
    connection.sendall(request_ + HEAD + HOST + OFFER + b"\r\n" + request_ + plain)
    assert ["choices" in each for each in answers(connection, 4)] == [True, False, True, False]


def test_no_protocol_but_http_is_spoken(connect, server):
    assert server.server.config.ws_protocol_class is None  # whatever packages there are
    socket_ = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    connection = connect()
    connection.sendall(HEAD + HOST + socket_ + b"\r\n")
    assert answers(connection, 1)[0]["status"] == "ready"
    for target in (b"CONNECT here:80 HTTP/1.1\r\n", b"CONNECT / HTTP/1.1\r\n"):
        assert_error(ask(connect(), HOST, head=target), 400)


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + HOST + b"X-Slow: "])
def test_slow_headers(connect, monkeypatch, sent):
    monkeypatch.setattr(BoundedConnection, "HEAD_S", 0.3)
    connection = connect()
    start = time.monotonic()
    try:
        while time.monotonic() - start < 5:  # a byte now and then keeps nothing open
            connection.sendall(sent[:1])
            sent = sent[1:] or (b"a" if sent else b"")
            connection.settimeout(0.05)
            try:
                if connection.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                pass
    except OSError:
        pass
    connection.settimeout(10)
    assert_error(answer(connection), 408, "0.3 s")


def test_slow_bodies(connect, server, monkeypatch):
    monkeypatch.setattr(BoundedConnection, "BODY_S", 0.3)
    connection = connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"prompt":'
    )
    assert_error(answer(connection), 408, "body", "0.3 s")
    assert server.complete("a", max_tokens=1)["choices"]


def test_no_clock_runs_while_an_answer_is_made_or_a_connection_rests(run_server, monkeypatch):
    monkeypatch.setattr(BoundedConnection, "HEAD_S", 0.2)
    monkeypatch.setattr(BoundedConnection, "BODY_S", 0.2)
    with run_server(step_s=0.02) as slow:
        for _ in range(2):  # on one connection
            assert slow.complete("a", max_tokens=20, ignore_eos=True)["choices"]
            time.sleep(0.3)


def test_a_bad_request_behind_one_that_runs_takes_nobodys_answer(run_server):
    with run_server(step_s=0.02) as slow:
        host, port = slow.url.removeprefix("http://").split(":")
        body = b'{"prompt":"a","max_tokens":20,"ignore_eos":true}'
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: here\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body + HEAD + b"\r\n"
            )  # fmt: skip
            assert connection.recv(65536) == b""
        slow.wait_until_idle()
