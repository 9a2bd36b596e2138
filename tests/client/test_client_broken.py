"""The client against servers that can't be judged: exit code 2, one clear line, never a PASS."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.fake_openai import serve
from tests.client.test_client_suites import judge, run, start, verdicts


@contextlib.contextmanager
def raw_server(reply: bytes | None) -> Iterator[str]:
    """Answer each request with these bytes and disconnect; None: accept it and send nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_ones = []

    def loop() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.append(connection)
                if reply is not None:
                    connection.recv(65536)
                    connection.sendall(reply)
                    connection.close()

    threading.Thread(target=loop, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        for connection in open_ones:
            connection.close()


def dead_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def refuses_to_judge(url: str, tmp_path: Path, *arguments: str) -> str:
    code, report, text = judge(url, tmp_path, *arguments)
    assert (code, report["exit_code"], report["verdict"]) == (2, 2, "NO JUDGEMENT")
    assert "PASS" not in text
    assert report["checks"] == []
    assert report["message"]
    return text


def test_nothing_listens(tmp_path: Path) -> None:
    text = refuses_to_judge(dead_port(), tmp_path)
    assert "--url" in text and "--wait" in text


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("broken", "HTTP 500"),
        ("loading", "reading weights, 40 %"),
        ("html", "Welcome to nginx"),
        ("no_models", "isn't a list of models"),
        ("hang", "within 1 s"),
    ],
)
def test_a_server_that_is_not_usable(fault: str, says: str, tmp_path: Path) -> None:
    with serve(fault) as url:
        assert says in refuses_to_judge(url, tmp_path, "--timeout", "1")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"\x00\x01 this is no HTTP\r\n\r\n", "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "broke"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", "oops"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "--wait"),
        (None, "within 1 s"),
    ],
)
def test_broken_http(reply: bytes | None, says: str, tmp_path: Path) -> None:
    limit = "1" if reply is None else "30"  # only silence takes all of it
    with raw_server(reply) as url:
        assert says in refuses_to_judge(url, tmp_path, "--timeout", limit)


def test_keys(tmp_path: Path) -> None:
    with serve(api_key="right") as url:
        assert "API_KEY" in refuses_to_judge(url, tmp_path)
        text = refuses_to_judge(url, tmp_path, "--api-key", "wrong-one")
        assert "refuses the key" in text and "wrong-one" not in text
        code, _, _ = judge(url, tmp_path, "--test", "errors", "--api-key", "right")
        assert code == 0
        assert run(url, "--test", "errors", API_KEY="right").returncode == 0
    with serve("key_ignored", api_key="right") as url:
        code, report, _ = judge(url, tmp_path, "--test", "errors", "--api-key", "right")
    assert (code, verdicts(report)["errors/wrong key"]) == (1, "FAIL")


def test_an_unknown_model(tmp_path: Path) -> None:
    with serve() as url:
        text = refuses_to_judge(url, tmp_path, "--model", "gpt-5")
    assert "served: fake" in text


def test_unusable_arguments(tmp_path: Path) -> None:
    assert run("http://[", "--test", "single").returncode == 2
    assert run(dead_port(), "--api-key", "ключ").returncode == 2
    assert run(dead_port(), "--num-requests", "1").returncode == 2
    assert run(dead_port(), "--wait", "soon").returncode == 2
    with serve() as url:
        done = run(url, "--test", "errors", "--json", str(tmp_path / "no" / "folder.json"))
    assert done.returncode == 2 and "--json" in done.stdout and "Traceback" not in done.stderr


def test_wait_for_a_cold_server(tmp_path: Path) -> None:
    with serve(ready_after=1) as url:
        code, _, text = judge(url, tmp_path, "--wait", "30", "--test", "errors")
    assert code == 0, text
    assert "waiting" in text and "reading weights" in text
    text = refuses_to_judge(dead_port(), tmp_path, "--wait", "1")
    assert re.search(r"not ready after [1-9]\d* s", text)


def test_the_server_goes_away_meanwhile(tmp_path: Path) -> None:
    with serve(step=0.02) as url:
        client = start(url, "--num-requests", "8", "--json", str(tmp_path / "report.json"))
        while "single/chat" not in (line := client.stdout.readline()):
            assert line, "the client ended too early"
    text, _ = client.communicate(timeout=60)
    assert client.returncode == 2, text
    assert not any(line.startswith("PASS") for line in text.splitlines())
    assert "went away" in text and "not run: " in text


def test_the_address_is_read_kindly(tmp_path: Path) -> None:
    with serve() as url:
        host = url.removeprefix("http://")
        for address in (f"{url}/", f"{url}/v1", f"{url}/v1/", host):
            assert run(address, "--test", "errors").returncode == 0
        assert run("", "--test", "errors", KOYEB_URL=url).returncode == 0
