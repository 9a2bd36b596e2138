"""What a further server process passes on to the first one, without processes."""

from __future__ import annotations

import asyncio
import select
import socket
import threading

import pytest
import uvicorn
from fastapi import FastAPI

from engine.config import EngineConfig
from engine.server.http.relay import Relay, RelayedConnection


def asked(path="/health/", headers=(), scheme="http", version="1.1"):
    return {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": list(headers), "client": ("10.0.0.7", 1234),
        "scheme": scheme, "http_version": version, "server": ("127.0.0.1", 8000),
    }  # fmt: skip


class Client:
    """Both ways of one request."""

    def __init__(self, body=b""):
        self.pieces = [body[at : at + 2**12] for at in range(0, len(body), 2**12)] or [b""]
        self.messages = []

    async def receive(self):
        if not self.pieces:
            await asyncio.Event().wait()  # it stays
        piece = self.pieces.pop()
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}

    async def send(self, message):
        self.messages.append(message)


def pass_on(tmp_path, *scopes):
    """Pass requests on to a first process; return the heads of its answers and what it saw."""
    address, seen = str(tmp_path / "first"), []
    app = FastAPI()

    @app.get("/health")
    def health():
        pass

    @app.delete("/health", status_code=204)
    def end():
        pass

    async def noted(scope, receive, send):
        seen.append(scope)
        await app(scope, receive, send)

    async def run():
        config = uvicorn.Config(
            noted, uds=address, http=RelayedConnection, log_config=None, lifespan="off"
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        relay, heads = Relay(app, address, EngineConfig()), []
        for scope in scopes:
            client = Client()
            await relay(scope, client.receive, client.send)
            heads.append(client.messages[0])
        server.should_exit = True
        await serving
        return heads

    return asyncio.run(asyncio.wait_for(run(), 60)), seen


def test_the_first_process_sees_how_its_client_asked(tmp_path):
    own = [(b"glasshouse-scheme", b"ftp"), (b"glasshouse-client", b"1.2.3.4")]
    heads, seen = pass_on(
        tmp_path,
        asked(headers=[(b"host", b"a.example:8443"), *own], scheme="https"),
        asked(headers=[(b"host", b"b.example")]),
        asked(version="1.0"),
    )
    answers = [dict(head["headers"]) for head in heads]
    assert [answer[b"location"] for answer in answers] == [
        b"https://a.example:8443/health", b"http://b.example/health", b"http://glasshouse/health",
    ]  # fmt: skip
    for scope in seen:
        assert scope["client"][0] == "10.0.0.7"
        names = [name for name, _ in scope["headers"]]
        assert len(names) == len(set(names))


def test_the_date_is_written_once(tmp_path):
    [head], _ = pass_on(tmp_path, asked(headers=[(b"host", b"a")]))
    assert head["status"] == 307
    assert b"date" not in dict(head["headers"])  # uvicorn writes that of its own process


def test_an_answer_that_comes_before_the_body_was_sent_is_not_lost(tmp_path):
    """A body is refused by its length while it is on its way. The first process closes if asked."""
    address, answered = str(tmp_path / "first"), threading.Event()
    ended, left = select.poll(), []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()

    def refuse():
        with listener, listener.accept()[0] as connection:
            head = b""
            while b"\r\n\r\n" not in head:  # it may come in pieces
                head += connection.recv(2**12)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
            if b"connection: close" in head:
                connection.close()
            answered.set()
            if b"connection: close" not in head:
                ended.register(connection, select.POLLHUP)  # it never reads the rest of the body
                left.append(not ended.poll(60_000))

    class Slow(Client):
        async def receive(self):
            answered.wait(60)  # the relay hasn't read what is there when it sends its next piece
            return await super().receive()

    async def run():
        client = Slow(bytes(2**22))
        await Relay(FastAPI(), address, EngineConfig())(asked(), client.receive, client.send)
        return client.messages

    first = threading.Thread(target=refuse)
    first.start()
    start, *pieces = asyncio.run(asyncio.wait_for(run(), 60))
    first.join()
    assert left == [False]  # the connection ended though most of the body was never read
    assert start["status"] == 413 and b"".join(piece["body"] for piece in pieces) == b"no"


def test_answers_without_a_body_end(tmp_path):
    scope = asked("/health", headers=[(b"host", b"a")])
    heads, _ = pass_on(tmp_path, *({**scope, "method": name} for name in ("HEAD", "DELETE")))
    assert [head["status"] for head in heads] == [405, 204]


def test_an_error_while_asking_is_not_lost(tmp_path):
    """An answer never comes: the request was not sent."""
    address = str(tmp_path / "first")

    async def receive():
        raise ValueError("unforeseen")

    async def run():
        ended = asyncio.Event()

        async def silent(reader, writer):
            await reader.read()
            writer.close()
            ended.set()

        async with await asyncio.start_unix_server(silent, address):
            client = Client()
            with pytest.raises(ValueError, match="unforeseen"):
                await Relay(FastAPI(), address, EngineConfig())(asked(), receive, client.send)
            assert not client.messages
            await ended.wait()  # and its connection is closed

    asyncio.run(asyncio.wait_for(run(), 60))
