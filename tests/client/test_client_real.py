"""The client against the real server: every suite passes; one that is killed gets no PASS."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.test_client_suites import judge, run, start, verdicts
from tests.support.cases import mostly

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "pocket" / "model"
LISTENS = re.compile(r"^Glasshouse listens on (http://\S+)$", re.MULTILINE)

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def real_server(
    folder: Path, model: Path, *flags: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`koyeb_api_server.py` with this model: (its address, the process)"""
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "koyeb_api_server.py"), "--port", "0", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "CPU_THREADS": "1",
                "HOST": "127.0.0.1",
                "API_KEY": "a-key",
                "MODEL_NAME": str(model),
            },
        )
    try:
        deadline = time.monotonic() + 60
        while not (match := LISTENS.search(log.read_text(errors="replace"))):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield match[1], server
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights: its text is noise, its arithmetic isn't."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.server.tiny_tokenizer import END, VOCAB_SIZE, save_tiny_tokenizer

    folder = tmp_path_factory.mktemp("client") / "tiny-llama"
    torch.manual_seed(7)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"eos_token_id": END, "bos_token_id": None, "max_position_embeddings": 2048}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, **shape, **heads, **ends)).save_pretrained(
        folder
    )
    save_tiny_tokenizer(folder)
    return folder


@pytest.fixture(params=mostly(["pocket", "tiny"], "pocket"))
def model(request: pytest.FixtureRequest) -> Path:
    if request.param == "tiny":
        return request.getfixturevalue("tiny")
    if not (POCKET / "config.json").exists():
        pytest.skip("there is no pocket/model here; `make pocket` trains it")
    return POCKET


def test_every_suite_passes(model: Path, tmp_path: Path) -> None:
    with real_server(tmp_path, model) as (url, _):
        code, report, text = judge(url, tmp_path, "--wait", "120", "--api-key", "a-key")
        chat = run(
            url, "--interactive", "--api-key", "a-key",
            stdin="/temp 0\nWhat is a KV cache?\n/stats\n/blocks\n/why\n",
        )  # fmt: skip
        if model == POCKET:
            agent = run(
                url, "--interactive", "--api-key", "a-key",
                stdin="/temp 0\n/tools\nWhat is 12 times 34?\nWhat time is it?\n/why\n",
            )  # fmt: skip
            assert '[calculator {"expression": "12 * 34"} → 408]' in agent.stdout, agent.stdout
            assert "The result is 408." in agent.stdout
            told = re.search(r"\[clock \{\} → (.+)\]", agent.stdout)
            assert told and f"It is {told[1]}." in agent.stdout, agent.stdout
    assert (code, report["verdict"]) == (0, "PASS"), text
    assert set(verdicts(report).values()) == {"PASS"}, text
    assert len(report["checks"]) == 40
    assert chat.returncode == 0, chat.stdout
    assert "NOT OFFERED" not in chat.stdout
    assert re.search(r"\d+ tokens · [\d.]+ tokens/s · TTFT", chat.stdout)
    assert re.search(r"[1-9]\d* blocks of 16 tokens", chat.stdout)
    assert re.search(r"request.finished: \w+", chat.stdout)


@pytest.mark.parametrize("blocks", mostly([6, 40], 40))
def test_correct_eviction_in_a_small_pool_is_no_fault(
    tiny: Path, tmp_path: Path, blocks: int
) -> None:
    """Its five prompts would evict each other: the client makes them fit, or doesn't offer the
    check."""
    flags = ("--num-gpu-blocks-override", str(blocks), "--max-num-seqs", "4")
    with real_server(tmp_path, tiny, *flags) as (url, _):
        code, report, text = judge(
            url, tmp_path, "--wait", "120", "--api-key", "a-key", "--test", "prefix"
        )
    assert "FAIL" not in verdicts(report).values() and code in (0, 2), text
    evidence = " ".join(str(check["evidence"]) for check in report["checks"])
    if blocks == 40:
        assert verdicts(report)["prefix/cached tokens"] == "PASS", text
        assert "for all to stay in the pool" in evidence
    else:
        assert "evicts what it would have to find again" in evidence


def test_a_server_killed_meanwhile_is_never_praised(tiny: Path, tmp_path: Path) -> None:
    with real_server(tmp_path, tiny, "--max-num-seqs", "2") as (url, server):
        assert run(url, "--test", "errors", "--wait", "120", API_KEY="a-key").returncode == 0
        client = start(url, "--num-requests", "40", API_KEY="a-key")
        while "single/chat" not in (line := client.stdout.readline()):
            assert line, "the client ended too early"
        server.kill()
        text, _ = client.communicate(timeout=60)
    assert client.returncode == 2, text
    assert not any(line.startswith("PASS") for line in text.splitlines())
    assert "went away" in text and "not run: " in text
