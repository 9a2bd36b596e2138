"""The client against servers that work, that offer little, and that are wrong in one way each.

Every check passes on the working server and fails on the server with the fault that it is for. The
client runs as a program of its own, except in the long table of faults, where `main` is called.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import test_client as client
from glasshouse.command import run as glasshouse
from tests.client.fake_openai import serve
from tests.support.cases import mostly

CLIENT = Path(__file__).resolve().parents[2] / "test_client.py"


def start(url: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the client."""
    clean = {k: v for k, v in os.environ.items() if k not in ("KOYEB_URL", "API_KEY")}
    return subprocess.Popen(
        [sys.executable, "-u", str(CLIENT), *(["--url", url] if url else []), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, "PYTHONUTF8": "1", **environment},
    )


def run(
    url: str, *arguments: str, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the client to its end."""
    process = start(url, *arguments, **environment)
    out, err = process.communicate(stdin, timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def judge(url: str, tmp_path: Path, *arguments: str) -> tuple[int, dict, str]:
    """(exit code, the JSON report, what was printed)"""
    report = tmp_path / "report.json"
    done = run(url, "--json", str(report), *arguments)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.returncode, json.loads(report.read_text()), done.stdout


def verdicts(report: dict) -> dict[str, str]:
    return {f"{c['suite']}/{c['name']}": c["verdict"] for c in report["checks"]}


def test_the_console_command_chats_or_tests(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is a block?\n"))
    with serve() as url:
        assert glasshouse(["chat", "--url", url, "--test=single"]) == 0
        out = capsys.readouterr().out
        assert "PASS  6 checks: 0 failed" in out and "/quit" not in out
        assert glasshouse(["chat", "--url", url]) == 0
    assert "/quit" in capsys.readouterr().out


def test_a_key_is_sent_as_it_is_without_what_stands_around_it(tmp_path: Path) -> None:
    for given in ("sesame", " sesame\r\n"):
        with serve(api_key="sesame") as url:
            code, _, text = judge(url, tmp_path, "--test", "single", "--api-key", given)
        assert code == 0, text
    with serve() as url:  # any text can be sent
        assert judge(url, tmp_path, "--test", "single", "--api-key", "sésame €")[0] == 0


def test_a_working_server_passes_every_check(tmp_path: Path) -> None:
    with serve(api_key="secret") as url:
        code, report, text = judge(url, tmp_path, "--api-key", "secret")
    assert set(verdicts(report).values()) == {"PASS"}, text
    assert (code, report["verdict"], report["exit_code"]) == (0, "PASS", 0)
    assert len(report["checks"]) == 40
    assert all(c["evidence"] and c["expectation"] for c in report["checks"])
    assert "secret" not in text + json.dumps(report)
    assert {c["suite"] for c in report["checks"]} == {
        "single",
        "batch",
        "paging",
        "temperature",
        "prefix",
        "streaming",
        "errors",
        "cancel",
    }


def test_what_a_server_does_not_offer_is_not_a_failure(tmp_path: Path) -> None:
    with serve("bare", "no_template", "no_prefix_cache", "no_usage_chunk") as url:
        code, report, text = judge(url, tmp_path)
    missing = {name for name, verdict in verdicts(report).items() if verdict == "NOT OFFERED"}
    assert code == 0, text
    assert missing >= {
        "single/speed",
        "single/tokenizer",
        "single/chat",
        "batch/shared steps",
        "paging/blocks visible",
        "prefix/cached tokens",
        "streaming/usage",
        "streaming/chat",
        "errors/wrong key",
        "cancel/leaves",
    }
    assert "FAIL" not in verdicts(report).values()


def test_metrics_stand_in_for_the_record(tmp_path: Path) -> None:
    with serve("no_trace", step=0.005) as url:
        for suite in ("batch", "paging"):
            code, report, text = judge(url, tmp_path, "--test", suite)
            assert (code, set(verdicts(report).values())) == (0, {"PASS"}), text
        code, report, text = judge(url, tmp_path, "--test", "cancel")
    assert code == 0, text
    assert verdicts(report)["cancel/on record"] == "NOT OFFERED"


def test_llama_cpp_is_judged_by_what_it_offers(tmp_path: Path) -> None:
    with serve("llamacpp", "any_model", "clamps", step=0.001) as url:
        code, report, text = judge(url, tmp_path, "--num-requests", "3")
    missing = {name for name, verdict in verdicts(report).items() if verdict == "NOT OFFERED"}
    assert (code, report["server"]["max_model_len"]) == (0, 1024), text
    assert missing == {
        "batch/shared steps",  # total_slots is 1
        "batch/speed-up",
        "paging/blocks visible",
        "errors/unknown model",
        "errors/max_tokens −1",
        "errors/wrong key",
        "cancel/leaves",
    }


def test_nothing_offered_is_no_success(tmp_path: Path) -> None:
    with serve("bare") as url:
        code, report, text = judge(url, tmp_path, "--test", "paging")
    assert (code, report["verdict"]) == (2, "NO JUDGEMENT")
    assert "PASS" not in text


FAULTS = [  # (suite, what the server does wrong, the check that must fail)
    ("single", "empty", "answers"),
    ("single", "bad_json", "answers"),
    ("single", "no_choices", "answers"),
    ("single", "buffered", "first token"),
    ("single", "truncated", "first token"),
    ("single", "no_done", "first token"),
    ("single", "error_chunk", "first token"),
    ("single", "garbage", "first token"),
    ("single", "total_lie", "usage"),
    ("single", "usage_low", "usage"),
    ("single", "usage_lie", "usage"),
    ("single", "prompt_lie", "tokenizer"),
    ("batch", "serial", "shared steps"),
    ("batch", "serial", "speed-up"),
    ("batch", "serial far", "speed-up"),  # hiding the network's time is no gain
    ("batch", "greedy_noise", "same answers"),
    ("paging", "two_blocks", "blocks used"),
    ("paging", "reserve", "blocks used"),
    ("paging", "breaks", "requests"),  # at a request between two checks
    ("paging", "leak", "given back"),
    ("paging", "leak", "pool after"),
    ("temperature", "greedy_noise", "temperature 0"),
    ("temperature", "temperature_ignored", "diversity"),
    ("temperature", "seed_ignored", "seed"),
    ("prefix", "cache_lie", "cached tokens"),
    ("prefix", "no_prefix_cache", "cached tokens"),
    ("streaming", "buffered", "spread"),
    ("streaming", "truncated", "spread"),
    ("streaming", "other_text", "same text"),
    ("streaming", "finish_twice", "end"),
    ("streaming", "no_role", "chat"),
    ("errors", "any_model", "unknown model"),
    ("errors", "json_500", "bad JSON"),
    ("errors", "clamps", "max_tokens −1"),
    ("errors", "vague", "prompt too long"),
    ("cancel", "deaf", "seat"),
    ("cancel", "seat_leak", "seat"),
    ("cancel", "leak", "on record"),
]


CASES = sorted({(suite, wrong) for suite, wrong, _ in FAULTS})
ALWAYS = {(suite, check): (suite, wrong) for suite, wrong, check in reversed(FAULTS)}
"""For each check the first fault that it must find."""


@pytest.mark.parametrize("fault", mostly(CASES, *ALWAYS.values()), ids="-".join)
def test_each_fault_fails_its_check(
    fault: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, wrong = fault
    path = tmp_path / "report.json"
    options = ["--test", suite, "--num-requests", "4", "--max-tokens", "32", "--timeout", "15"]
    with serve(*wrong.split(), step=0.004 if suite in ("batch", "cancel") else 0.001) as url:
        code = client.main(["--url", url, "--json", str(path), *options])  # no start-up: many cases
    text, report = capsys.readouterr().out, json.loads(path.read_text())
    found = verdicts(report)
    for check in (c for s, f, c in FAULTS if (s, f) == fault):
        assert found.get(f"{suite}/{check}") == "FAIL", text
    assert (code, report["verdict"]) == (1, "FAIL"), text
    assert not any(line.startswith("PASS") for line in text.splitlines())
