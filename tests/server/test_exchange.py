"""What holds for every answer: its id, HEAD, gzip bodies, other sites, how it is reached."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import zlib

import httpx
import pytest

from engine.config import ConfigError, EngineConfig
from engine.server import lifecycle
from engine.server.app import MAX_BODY_BYTES
from engine.server.ending import Server
from engine.server.lifecycle import bind_unix
from engine.server.openapi import STREAMS
from engine.server.routes.absent import ABSENT
from engine.server.service import Service
from tests.server.fake_engine import fake

OWN = re.compile(r"[0-9a-f]{32}")
HELLO = {"prompt": "hello", "max_tokens": 2}


# --------------------------------------------------------------------------------- X-Request-Id


@pytest.mark.parametrize("given", ["mine-1", "a.b c/d", "x" * 3000, "ünïcode"])
def test_an_id_comes_back_as_it_came(server, given):
    headers = {"X-Request-Id": given.encode()}
    for method, path, body, status in (
        ("POST", "/v1/completions", HELLO, 200),
        ("POST", "/v1/completions", {**HELLO, "stream": True}, 200),
        ("POST", "/v1/chat/completions", {"messages": []}, 400),
        ("POST", "/v1/completions", {**HELLO, "model": "another"}, 404),
        ("GET", "/v1/models", None, 200),
        ("GET", "/metrics", None, 200),
        ("GET", "/nowhere", None, 404),
        ("PUT", "/v1/models", None, 405),
    ):
        answer = server.http.request(method, path, json=body, headers=headers)
        assert answer.status_code == status
        ids = [value for name, value in answer.headers.raw if name.lower() == b"x-request-id"]
        assert ids == [given.encode()], (method, path)


def test_an_answer_without_one_gets_one_that_is_the_generations_own(server):
    answer = server.http.post("/v1/completions", json=HELLO)
    assert OWN.fullmatch(answer.headers["x-request-id"])
    assert answer.json()["id"] == f"cmpl-{answer.headers['x-request-id']}"
    with server.http.stream("POST", "/v1/completions", json={**HELLO, "stream": True}) as stream:
        first = json.loads(next(stream.iter_lines()).removeprefix("data: "))
        assert first["id"] == f"cmpl-{stream.headers['x-request-id']}"
    assert OWN.fullmatch(server.http.get("/nowhere").headers["x-request-id"])


def test_ids_on_what_fails_before_and_within_a_route(run_server):
    with run_server(api_key="open-sesame") as guarded:
        mine = {"X-Request-Id": "mine"}
        refused = httpx.get(f"{guarded.url}/v1/models", headers=mine)
        assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine")
        guarded.service.config.served_model_name = None  # a bug of ours
        broken = guarded.http.get("/v1/models", headers=mine)
        assert (broken.status_code, broken.headers["x-request-id"]) == (500, "mine")
        counted = guarded.http.get("/metrics").text
        line = 'http_requests_total{handler="/v1/models",method="GET",status="5xx"} 1.0'
        assert line in counted


# ------------------------------------------------------------------------------------------ HEAD


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ping", "/version", "/v1/models", "/v1/models/tiny", "/metrics",
             "/trace", "/load", "/openapi.json"],
)  # fmt: skip
def test_head_says_what_get_would(server, path):
    got, head = server.http.get(path), server.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_of_a_stream_ends(server):
    answer = server.http.head("/trace/stream", timeout=5)
    assert (answer.status_code, answer.content) == (200, b"")
    assert server.http.head("/nowhere").status_code == 404
    assert server.http.head("/v1/completions").status_code == 405


def test_ping_may_be_posted(run_server):
    with run_server(api_key="open-sesame") as guarded:
        answer = httpx.post(f"{guarded.url}/ping")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")


# ------------------------------------------------------------------------------------ gzip bodies


def post_packed(server, body: bytes, coding: str = "gzip") -> httpx.Response:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    return server.http.post("/v1/completions", content=body, headers=headers)


def test_a_gzip_body_is_read(server):
    plain = server.http.post("/v1/completions", json=HELLO).json()["choices"]
    packed = gzip.compress(json.dumps(HELLO).encode())
    assert post_packed(server, packed).json()["choices"] == plain
    assert post_packed(server, packed, "X-GZIP").json()["choices"] == plain

    def slowly():
        for byte in packed:
            yield bytes([byte])

    assert post_packed(server, slowly()).json()["choices"] == plain
    large = gzip.compress(json.dumps({**HELLO, "user": "u" * 3_000_000}).encode())
    assert post_packed(server, large).status_code in (200, 400)  # unpacked in several pieces


def bomb(mebibytes: int) -> bytes:
    """Spaces as one gzip stream: a packed block again and again. Its end and sum are never read."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + block * mebibytes


def test_the_bomb_is_one():
    unpacked = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(bomb(3))
    assert unpacked == b" " * (3 * 2**20)


@pytest.mark.parametrize(
    ("body", "coding", "status", "says"),
    [
        (b"no gzip", "gzip", 400, "no valid gzip"),
        (b"", "gzip", 400, "ends before"),
        (gzip.compress(b"{}")[:-3], "gzip", 400, "ends before"),
        (gzip.compress(b"{}") + b"more", "gzip", 400, "goes on after"),
        (gzip.compress(b" " * (MAX_BODY_BYTES + 1)), "gzip", 413, "at most 16,777,216"),
        (bomb(1024), "gzip", 413, "at most 16,777,216"),
        (b"{}", "br", 415, "reads gzip"),
        (b"{}", "gzip, gzip", 415, "reads gzip"),
    ],
    ids=["none", "empty", "short", "long", "limit", "bomb", "brotli", "twice"],
)
def test_a_bad_body_is_refused(server, body, coding, status, says):
    answer = post_packed(server, body, coding)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert server.complete("a", max_tokens=1)


# ------------------------------------------------------------------------------------ other sites


ASKED = {
    "Origin": "https://chat.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_other_sites_are_not_let_in_by_default(server):
    answer = server.http.get("/v1/models", headers={"Origin": "https://chat.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert server.http.options("/v1/completions", headers=ASKED).status_code == 405


def test_a_preflight_passes_without_the_key(run_server):
    site = "https://chat.example"
    with run_server(api_key="open-sesame", allowed_origins=[site]) as guarded:
        asked = httpx.options(f"{guarded.url}/v1/completions", headers=ASKED)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == site
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "authorization" in asked.headers["access-control-allow-headers"]
        other = httpx.options(
            f"{guarded.url}/v1/completions", headers={**ASKED, "Origin": "https://x"}
        )
        assert other.status_code == 400
        refused = httpx.post(f"{guarded.url}/v1/completions", headers={"Origin": site}, json=HELLO)
        assert refused.status_code == 401  # a preflight opens nothing
        assert refused.headers["access-control-allow-origin"] == site  # so that the page can say so
        answer = guarded.http.post(
            "/v1/completions", headers={"Origin": site}, json={**HELLO, "stream": True}
        )
        assert answer.headers["access-control-allow-origin"] == site
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


# ------------------------------------------------------------------------------ how it is reached


def test_behind_a_proxy_that_shows_it_under_a_path(run_server):
    with run_server(api_key="open-sesame", root_path="/api") as behind:
        for prefix in ("", "/api"):  # some proxies take the path away, some pass it on
            assert httpx.get(f"{behind.url}{prefix}/health").status_code == 200
            assert httpx.get(f"{behind.url}{prefix}/v1/models").status_code == 401
            assert behind.http.get(f"{prefix}/v1/models").status_code == 200
        assert httpx.get(f"{behind.url}/api/api/health").status_code == 401
        assert httpx.get(f"{behind.url}/apihealth").status_code == 401
        assert behind.http.get("/openapi.json").json()["servers"] == [{"url": "/api"}]


class OnSocket:
    """A server on a listener of its own."""

    def __init__(self, config: EngineConfig, listener: socket.socket):
        self.server = Server(Service(config, fake()))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.server.should_exit = True
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


def wait_for_completion(client: httpx.Client) -> dict:
    for _ in range(300):
        answer = client.post("/v1/completions", json=HELLO)
        if answer.status_code == 200:
            return answer.json()
        threading.Event().wait(0.1)
    raise TimeoutError(answer.text)


def test_on_a_unix_socket(tokenizer_folder, tmp_path):
    path = str(tmp_path / "socket")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()  # a server that was killed leaves its file
    config = EngineConfig(model=str(tokenizer_folder), uds=path, log_format="off")
    listener = bind_unix(path)
    assert lifecycle.address(config, listener) == f"http+unix://{path}"
    with OnSocket(config, listener):
        transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            assert wait_for_completion(client)["choices"]
        with pytest.raises(ConfigError, match="another server listens"):
            bind_unix(path)


@pytest.mark.parametrize("path", ["/nowhere/socket", "x" * 200])
def test_a_path_that_can_be_no_socket(path):
    with pytest.raises(ConfigError, match=r"--uds .*can't listen there"):
        bind_unix(path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and there is none")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
        " -keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


def test_https(tokenizer_folder, certificate):
    files = {"ssl_keyfile": "key.pem", "ssl_certfile": "cert.pem"}
    config = EngineConfig(
        model=str(tokenizer_folder),
        log_format="off",
        **{name: str(certificate / file) for name, file in files.items()},
    )
    listener = lifecycle.bind("127.0.0.1", 0)
    url = lifecycle.address(config, listener)
    assert url.startswith("https://127.0.0.1:")
    with (
        OnSocket(config, listener),
        httpx.Client(
            base_url=url, verify=ssl.create_default_context(cafile=certificate / "cert.pem")
        ) as client,
    ):
        assert wait_for_completion(client)["choices"]


def test_files_of_https_are_checked_at_the_start(certificate):
    key, cert = str(certificate / "key.pem"), str(certificate / "cert.pem")
    for options, says in (
        ({"ssl_keyfile": key}, "needs --ssl-certfile"),
        ({"ssl_certfile": cert}, "can't be used"),
        ({"ssl_certfile": cert, "ssl_keyfile": "nowhere"}, "nowhere can't be used"),
        ({"ssl_certfile": cert, "ssl_keyfile": key, "ssl_cert_reqs": 2}, "--ssl-ca-certs"),
        ({"ssl_certfile": cert, "ssl_keyfile": key, "ssl_cert_reqs": 3}, "0, 1 or 2"),
        ({"root_path": "api"}, "--root-path"),
        ({"root_path": "/api/"}, "--root-path"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            EngineConfig(**options)


# ----------------------------------------------------------------- names, keys, what is absent


def test_several_names_and_keys(run_server):
    with run_server(api_key=["one", "two"], served_model_name=["first", "second"]) as server:
        for key, status in (("one", 200), ("two", 200), ("three", 401), ("one two", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status
        cards = server.http.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == ["first", "second"]
        assert server.http.get("/v1/models/second").json()["id"] == "second"
        for name in ("first", "second"):
            assert server.complete("a", model=name, max_tokens=1)["model"] == "first"
        refused = server.refusal(status=404, prompt="a", model="third")
        assert "'first', 'second'" in refused["message"]


def test_a_key_may_have_any_printable_characters(run_server):
    """Clients send UTF-8 (curl, ours) or, where that suffices, Latin-1 (requests)."""
    keys = ["a bc", "sésame à", "ключ €", '"quoted", {json}', "a" * 4000]
    with run_server(api_key=keys) as server:
        for key in keys:
            ways = {key.encode()}
            with contextlib.suppress(UnicodeEncodeError):
                ways.add(key.encode("latin-1"))
            for name, before in ((b"authorization", b"Bearer "), (b"x-api-key", b"")):
                for sent in [*ways, key.encode()[:-1], key.encode() + b"x"]:
                    headers = [(name, before + sent)]
                    answer = httpx.get(f"{server.url}/v1/models", headers=headers)
                    assert answer.status_code == (200 if sent in ways else 401), (key, sent)


@pytest.mark.parametrize("path", sorted(ABSENT))
def test_a_route_that_is_known_and_not_served_is_the_requests_fault(server, path):
    answer = server.http.post(path, json={"model": "tiny", "input": "a"})
    assert answer.status_code == 400  # of a 404 a proxy would think that the server is gone
    error = answer.json()["error"]
    assert path in error["message"] and error["type"] == "BadRequestError"
    if path != "/v1/embeddings":  # what the server does is said whole, and is true
        assert set(re.findall(r"/v\d/[a-z/]+", error["message"])) - {path} == STREAMS.keys()
        assert STREAMS.keys() <= server.http.get("/openapi.json").json()["paths"].keys()


def test_variables_of_the_template_have_defaults(run_server, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ mood }} {{ messages[0].content }}")
    with run_server(
        chat_template=str(template), default_chat_template_kwargs={"mood": "calm"}
    ) as server:
        for kwargs, text in ((None, "calm a"), ({"mood": "wild"}, "wild a"), ({}, "calm a")):
            asked = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": kwargs}
            tokens = server.http.post("/tokenize", json=asked).json()["tokens"]
            told = server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
            assert told == text
