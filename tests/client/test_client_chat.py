"""`--interactive`: over a pipe, as a script would use it, and on a terminal, with Ctrl-C."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.client.fake_openai import serve
from tests.client.test_client_suites import CLIENT, run


def chat(url: str, *lines: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    done = run(url, "--interactive", *options, stdin="\n".join(lines) + "\n")
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.returncode, done.stdout


def test_a_scripted_chat(tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    with serve() as url:
        code, text = chat(
            url,
            "/temp 0",
            "/top_p 0.9",
            "/seed 3",
            "/system Be brief.",
            "What is a block?",
            "And a token?",
            "/stats",
            "/blocks",
            "/why",
            f"/save {saved}",
            "/help",
            "/nonsense",
            "/clear",
            "/blocks",
            options=("--max-tokens", "40"),
        )
    assert code == 0, text
    assert len(re.findall(r"\d+ tokens · [\d.]+ tokens/s · TTFT \d+ ms · [\d.]+ s", text)) == 3
    body = json.loads(saved.read_text())
    assert [m["role"] for m in body["messages"]] == ["user", "assistant"] * 2
    assert body["settings"] == {"max_tokens": 40, "temperature": 0.0, "top_p": 0.9, "seed": 3}
    assert body["system"] == "Be brief."
    assert body["messages"][1]["content"].strip() in text
    assert (
        body["answers"][1]["usage"]["prompt_tokens"] > body["answers"][0]["usage"]["prompt_tokens"]
    )
    for said in ("blocks of 16 tokens", "given back:", "reserving 1024 tokens would have taken 64"):
        assert said in text
    assert "request.admitted: a seat and blocks are free" in text
    assert "request.finished" in text and "0 running" in text
    assert "there is no /nonsense" in text
    assert text.rstrip().endswith("NOT OFFERED: there is no answer yet")


def test_settings_out_of_range_change_nothing() -> None:
    with serve() as url:
        code, text = chat(
            url,
            *("/temp hot", "/top_p 0", "/seed 1.5", "/temp nan"),
            *("/save", "/temp 1", "/temp", "/temp off"),
        )
    assert code == 0
    assert text.count("temperature: 1.0") == 2  # set, then shown
    assert text.count("or `off`") == 4
    assert "where to?" in text
    assert "temperature: the server's default" in text


def test_without_a_record_blocks_are_not_offered() -> None:
    with serve("bare", "no_template") as url:
        code, text = chat(url, "What is a block?", "/blocks", "/why", "/stats")
    assert code == 0
    assert "the chat goes as plain text" in text
    assert text.count("NOT OFFERED") == 3
    assert "tokens/s" in text


def test_a_failing_answer_is_said_and_ends_in_a_code() -> None:
    with serve("truncated", "never_ends") as url:
        code, text = chat(url, "Hello", "Hello again")
    assert code == 1
    assert text.count("failed: the stream ended without [DONE]") == 2


def test_control_characters_of_a_server_do_not_reach_the_terminal() -> None:
    import test_client

    assert test_client.printable("a\x1b[2Jb\x07\u202ec\n\td\u00a0é漢") == "a[2Jbc\n\td\u00a0é漢"


def shown(pieces: list[str], width: int) -> list[str]:
    """The lines on a terminal after a `WordWrap` of that width has got these pieces."""
    from test_client import WordWrap

    written: list[str] = []
    wrap = WordWrap(written.append, width)
    for piece in pieces:
        wrap(piece)
    lines, column = [""], 0
    for sign in re.findall(r"\x1b\[K|.|\n", "".join(written)):
        if sign == "\n":
            lines, column = [*lines, ""], 0
        elif sign == "\b":
            column -= 1
        elif sign == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1], column = lines[-1][:column] + sign, column + 1
    return lines


def test_lines_of_an_answer_end_between_words() -> None:
    quick = ["The qui", "ck", " brown", " f", "ox jumps"]
    assert shown(quick, 12) == ["The quick ", "brown fox ", "jumps"]
    assert shown(["1234", " 5678"], 9) == ["1234 5678"]
    assert shown(["1234", " 567", "89"], 9) == ["1234 ", "56789"]
    assert shown(["1234", " 5678", " 9"], 9) == ["1234 5678", "9"]
    assert shown(["a longer-than-the-line b"], 8) == ["a ", "longer-than-the-line", "b"]
    assert shown(["  x:\n", "\n    y = 1"], 20) == ["  x:", "", "    y = 1"]


class Terminal:
    """The client on a pseudo-terminal."""

    def __init__(self, master: int):
        self.master, self.seen = master, ""
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.rest = ""  # the beginning of a colour whose end is not here yet

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, limit: float = 20.0) -> None:
        """Read until the pattern stands in what came since the last match."""
        deadline = time.monotonic() + limit
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"{pattern!r} not in {self.seen[-800:]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the other side was closed
                    came = self.rest + self.decode(os.read(self.master, 4096))
                    cut = re.search(r"\x1b(\[[\d;?]*)?$", came)
                    whole = came[: cut.start()] if cut else came
                    self.rest = came[len(whole) :]
                    self.seen += re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", whole)  # without colours
        self.seen = self.seen[match.end() :]


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[tuple[Terminal, subprocess.Popen]]:
    master, slave = pty.openpty()
    client = subprocess.Popen(
        [sys.executable, str(CLIENT), *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "PYTHONUTF8": "1"},
        start_new_session=True,
        close_fds=True,
        preexec_fn=_take_terminal,
    )
    os.close(slave)
    try:
        yield Terminal(master), client
    finally:
        client.kill()
        client.wait()
        os.close(master)


def _take_terminal() -> None:
    """Make it the controlling terminal, so that a typed Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    with (
        serve("never_ends", step=0.02) as url,
        terminal("--url", url, "--interactive") as (screen, client),
    ):
        screen.expect("› ")
        screen.type("Tell me everything\n")
        screen.expect(r"(\w+ ){5}")
        screen.type("\x03")
        screen.expect("cancelled; .*tokens|cancelled; TTFT")
        screen.expect("› ")
        screen.type("/blocks\n")
        screen.expect("given back: [1-9]")
        screen.type("/why\n")
        screen.expect("request.aborted: the client left")
        screen.expect("› ")
        time.sleep(0.5)  # until it really reads
        screen.type("\x03")
        screen.expect("leaves")
        screen.type("/quit\n")
        assert client.wait(10) == 0


def test_progress_on_a_terminal() -> None:
    with serve() as url, terminal("--url", url, "--test", "batch") as (screen, client):
        screen.expect("batch: many at once")
        screen.expect("✓ batch/all answered")
        screen.expect("PASS.*4 checks: 0 failed")
        assert client.wait(10) == 0


def test_ctrl_c_ends_a_run_of_suites() -> None:
    with serve(step=0.02) as url, terminal("--url", url) as (screen, client):
        screen.expect("single/answers")
        client.send_signal(signal.SIGINT)
        screen.expect("interrupted: nothing is claimed")
        assert client.wait(10) == 130
