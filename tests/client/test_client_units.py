"""The client's own arithmetic and parsing, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from pathlib import Path

import pytest

import test_client as client


def test_it_is_one_file_of_httpx_rich_and_the_standard_library() -> None:
    text = Path(client.__file__).read_text()
    imported = {
        line.split()[1].split(".")[0]
        for line in text.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported - set(sys.stdlib_module_names) == {"httpx", "rich"}
    compile(text, "test_client.py", "exec", dont_inherit=True)
    contents = re.findall(r"^    (\d\. \w+)", text.split("Contents")[1].split('"""')[0], re.M)
    assert contents == re.findall(r"^# =+ (\d\. \w+)", text, re.M)
    assert len(contents) == 8


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://a.koyeb.app", "https://a.koyeb.app"),
        ("a.koyeb.app/", "https://a.koyeb.app"),
        ("http://h:1/v1/", "http://h:1"),
        ("http://h:1/v1", "http://h:1"),
        ("localhost:8000", "http://localhost:8000"),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("https://h/proxy/v1", "https://h/proxy"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert client.base_url(given) == address


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "no such model", "type": "x"}}', "no such model"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"detail": [{"loc": ["body"]}]}', "[{'loc': ['body']}]"),
        ('{"status": "loading"}', "loading"),
        ("<html><body>502 <b>Bad</b> Gateway</body></html>", "502 Bad Gateway"),
        ("", "(empty body)"),
        ("\x1b[31mred", "[31mred"),
        ("x" * 900, "x" * 219 + "…"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_error_bodies(body: str, message: str) -> None:
    assert client.error_text(body) == message


def test_metrics_are_summed_over_label_sets() -> None:
    page = client.Metrics(
        "# HELP vllm:num_requests_running x\n"
        'vllm:num_requests_running{engine="0",model_name="a{b}"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="a"} 3\n'
        "vllm:kv_cache_usage_perc 2.5e-02\n"
        'vllm:cache_config_info{block_size="16",enable_prefix_caching="False"} 1.0\n'
        "broken line\nvllm:nothing NaN\nvllm:much +Inf\n"
    )
    assert (page.running, page.kv_usage) == (5.0, 0.025)
    assert page.labels["vllm:cache_config_info"]["block_size"] == "16"
    assert page.values["vllm:much"] == float("inf")
    with pytest.raises(client.NotOffered, match="prefix_cache_hits_total"):
        _ = page.prefix_hits


@pytest.mark.parametrize(
    "body",
    [
        [],
        "text",
        None,
        3,
        {},
        {"choices": None},
        {"choices": {}},
        {"choices": ["x"]},
        {"error": {"message": "gone"}},
    ],
)
def test_bodies_that_are_no_answer(body: object) -> None:
    with pytest.raises(client.BadAnswer):
        client.Answer().take(body)


@pytest.mark.parametrize("value", [None, "7", 7.5, True, -1, [7]])
def test_counts_that_are_none(value: object) -> None:
    with pytest.raises(client.BadAnswer, match=r"usage\.completion_tokens"):
        client.Answer(usage={"completion_tokens": value}).count("completion_tokens")


def test_rates_are_measured_between_first_and_last_text() -> None:
    answer = client.Answer(arrivals=[0.5, 0.6, 1.0], usage={"completion_tokens": 11})
    assert answer.rate() == (20.0, 0.05)
    assert answer.ttft == 0.5
    for arrivals, tokens in (([0.5], 11), ([0.5, 0.5], 11), ([0.5, 0.6], 1), ([], 4)):
        with pytest.raises(client.Failed):
            client.Answer(arrivals=arrivals, usage={"completion_tokens": tokens}).rate()


def test_diversity() -> None:
    assert client.diversity(["a b.", "A b."]) == 0
    assert client.diversity(["a b", "c d"]) == 1
    assert client.diversity(["a b", "b c", "a b"]) == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    with pytest.raises(client.Failed):
        client.diversity(["", ""])


def test_requests_of_an_answer() -> None:
    assert client.owns("cmpl-7", "cmpl-7")
    assert client.owns("cmpl-7", "cmpl-7.2") and client.owns("cmpl-7", "cmpl-7:1")
    assert not client.owns("cmpl-7", "cmpl-71")
    assert not client.owns("", "")


def test_pages_of_a_request() -> None:
    events = [
        {"kind": "block.shared", "request_id": "r", "blocks": [4, 5]},
        {"kind": "block.allocated", "request_id": "r", "blocks": [9], "index": 2, "step": 3},
        {"kind": "block.allocated", "request_id": "other", "blocks": [1]},
        {"kind": "block.copied", "request_id": "r", "src": 5, "dst": 6, "index": 1},
        {"kind": "block.allocated", "request_id": "r", "blocks": [2], "index": 3, "step": 19},
        {"kind": "block.freed", "request_id": "r", "blocks": [2, 9, 6, 4]},
    ]
    pages = client.Pages.of(events, "r")
    assert (pages.table, pages.shared) == ({0: 4, 1: 6, 2: 9, 3: 2}, 2)
    assert pages.grants == [(3, 2, 1), (19, 3, 1)]
    assert pages.all_back and not client.Pages.of(events[:-1], "r").all_back
    assert [client.blocks_for(n, 16) for n in (1, 16, 17, 200)] == [1, 1, 2, 13]


def judged(*verdicts: str) -> client.Report:
    report = client.Report("http://h", {})
    report.checks = [client.Check("s", "n", "e", "m", v) for v in verdicts]
    return report


def test_exit_codes() -> None:
    assert judged(client.PASS, client.NOT_OFFERED).exit_code == 0
    assert judged(client.PASS, client.FAIL).exit_code == 1
    assert judged(client.NOT_OFFERED).exit_code == judged().exit_code == 2
    gone = judged(client.PASS)
    gone.unusable = client.Unusable("gone", "look")
    assert (gone.exit_code, gone.verdict) == (2, "NO JUDGEMENT")


def test_a_check_without_evidence_does_not_pass() -> None:
    checks: list[client.Check] = []
    suite = client.Single(
        client.Server("http://127.0.0.1:1", None, 1), client.Options(), checks.append
    )
    with suite.check("usage"):
        pass
    with suite.check("usage") as check:
        check.measured("seen")
    with suite.check("usage"):
        raise KeyError("choices")
    with pytest.raises(client.SuiteEnded), suite.check("usage", vital=True) as check:
        check.require(False, "not so")
    assert [c.verdict for c in checks] == ["FAIL", "PASS", "FAIL", "FAIL"]


def test_a_tie_is_no_difference_and_a_lead_is_one() -> None:
    async def compare(lead: float) -> tuple[bool, str]:
        suite = client.Batch(client.Server("http://127.0.0.1:1", None, 1), client.Options(), print)

        async def ask(*_: object, **__: object) -> client.Answer:
            top = [{" a": -0.1, " x": -9.0}, {" b": -1.0, " c": -1.0 - lead}]
            return client.Answer(logprobs={"tokens": [" a", " b"], "top_logprobs": top})

        suite.ask = ask
        return await suite.same_text("p", client.Answer(text=" a b"), client.Answer(text=" a c"))

    assert asyncio.run(compare(0.01))[0]
    assert asyncio.run(compare(0.125))[0]  # one step of a bf16 logit between 16 and 32
    same, seen = asyncio.run(compare(0.5))
    assert not same and "leads by 0.500 nats" in seen


def test_sampling_ends_even_where_a_cancellation_is_swallowed() -> None:
    class Stubborn:
        async def metrics(self) -> client.Metrics:
            # as `asyncio.wait_for` may, before Python 3.12
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
            return client.Metrics("vllm:num_requests_running 3")

    async def sample() -> float:
        async with client.Sampler(Stubborn()) as sampler:
            await asyncio.sleep(0.025)
        return sampler.peak("running")

    assert asyncio.run(asyncio.wait_for(sample(), 5)) == 3
