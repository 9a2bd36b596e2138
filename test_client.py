#!/usr/bin/env python3
"""Test a running LLM server from your laptop, or talk to it. One file; needs `pip install httpx rich`.

    export KOYEB_URL=https://my-app.koyeb.app           # default: http://127.0.0.1:8000
    python test_client.py                               # all suites, a table, an exit code
    python test_client.py --test batch --num-requests 20
    python test_client.py --wait                        # first wait for a cold instance (20 min)
    python test_client.py --interactive                 # chat in the terminal

It judges. A check states what it expects, measures, and ends in PASS, FAIL or NOT OFFERED: this
server has no such thing, so nothing is claimed. Any server that speaks OpenAI's protocol can be
tested; what the engine did inside is read from /metrics (vLLM's names) and /trace (our record).

Exit code: 0 nothing failed · 1 a check failed · 2 no judgement is possible (the server is down,
loading, wants a key, speaks another protocol, went away, offers nothing of what was asked for).

Contents, in reading order
    1. Verdicts       PASS, FAIL, NOT OFFERED, and the exceptions that lead there
    2. Answers        what came back for one request, whole or as a stream
    3. Server         the HTTP side: requests, metrics, tokens, the record
    4. Reaching it    is it there, is it ready, what does it offer
    5. Suites         single, batch, paging, temperature, prefix, streaming, errors, cancel
    6. Interactive    the chat
    7. Report         the table, the JSON file, the exit code
    8. Main           the command line
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import platform
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

DEFAULT_URL = "http://127.0.0.1:8000"
LONGEST_WAIT = 1200  # seconds; what a plain --wait waits for a cold instance
PROBE_SECONDS = 10.0  # what a server may take to say that it lives

# ================================================================================= 1. Verdicts

PASS, FAIL, NOT_OFFERED = "PASS", "FAIL", "NOT OFFERED"


class Failed(Exception):
    """What was measured isn't what was expected."""


class BadAnswer(Failed):
    """The answer breaks the protocol: no JSON, a missing field, a stream without its end."""


class Refused(Failed):
    """The server answered with an error. `status` and `body` are kept for those who expect one."""

    def __init__(self, response: httpx.Response):
        self.status, self.body = response.status_code, response.text
        super().__init__(f"HTTP {self.status}: {error_text(self.body)}")


class Unreachable(Exception):
    """No complete answer: the connection broke, or the time was up."""


class NotOffered(Exception):
    """The server has no such thing, so nothing can be claimed about it."""


class SuiteEnded(Exception):
    """A check failed that the rest of its suite builds on."""


class Unusable(Exception):
    """The server can't be judged at all. `advice` says what to do."""

    def __init__(self, message: str, advice: str):
        super().__init__(message)
        self.advice = advice


class NotReady(Unusable):
    """It may become usable by waiting: down, starting, or loading its model."""


@dataclass
class Check:
    """One expectation and what became of it. Used as `with suite.check(...) as check:`."""

    suite: str
    name: str
    expectation: str
    evidence: str = ""
    verdict: str = FAIL
    seconds: float = 0.0

    def measured(self, evidence: str) -> None:
        """Add something that was really observed. A check without evidence never passes."""
        self.evidence = f"{self.evidence}; {evidence}" if self.evidence else evidence

    def require(self, condition: bool, otherwise: str) -> None:
        if not condition:
            raise Failed(otherwise)


def error_text(body: str) -> str:
    """The message inside an error body of any common shape, in one line."""
    message: Any = body
    with contextlib.suppress(ValueError):
        message = json.loads(body)
        for key in ("error", "detail", "message", "state", "status"):
            if isinstance(message, dict) and message.get(key):
                message = message[key]
    if isinstance(message, dict):
        message = message.get("message") or json.dumps(message)
    text = re.sub(r"<[^>]+>", " ", str(message)) if "<html" in body.lower() else str(message)
    return one_line(text) or "(empty body)"


def one_line(text: str, limit: int = 220) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """Without control characters: text from a server must not steer the reader's terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() or c in "\u200d\ufe0f"))


# ================================================================================== 2. Answers


@dataclass
class Answer:
    """One answer (its first choice), gathered from one body or from the chunks of a stream."""

    id: str = ""
    text: str = ""
    finish: list[str] = field(default_factory=list)  # every finish_reason that was sent
    usage: dict | None = None
    usage_alone: bool = False  # usage came in a chunk of its own, with `choices: []`
    roles: list[str] = field(default_factory=list)
    token_ids: list[int] | None = None
    logprobs: dict | None = None
    arrivals: list[float] = field(default_factory=list)  # seconds after sending, of each text
    done: bool = False  # a stream: [DONE] was seen
    seconds: float = 0.0  # from sending to the last byte
    sent: float = field(default_factory=time.perf_counter)

    def take(self, body: Any, on_text: Callable[[str], None] | None = None) -> None:
        """Add a whole body, or one chunk. Raises `BadAnswer` if it isn't shaped as one."""
        now = time.perf_counter() - self.sent
        if not isinstance(body, dict):
            raise BadAnswer(f"a JSON object was expected, got {one_line(json.dumps(body), 80)}")
        if body.get("error"):
            raise BadAnswer(f"the stream carries an error: {error_text(json.dumps(body))}")
        choices = body.get("choices")
        if not isinstance(choices, list):
            raise BadAnswer(f"no `choices` in {one_line(json.dumps(body), 120)}")
        self.id = self.id or str(body.get("id") or "")
        if isinstance(body.get("usage"), dict):
            self.usage, self.usage_alone = body["usage"], not choices
        for choice in choices:
            if not isinstance(choice, dict):
                raise BadAnswer("an entry of `choices` isn't an object")
            message = choice.get("delta") or choice.get("message") or {}
            text = choice.get("text") or message.get("content") or ""
            if message.get("role"):
                self.roles.append(message["role"])
            if choice.get("finish_reason"):
                self.finish.append(choice["finish_reason"])
            if choice.get("logprobs"):
                self.logprobs = choice["logprobs"]
            if isinstance(choice.get("token_ids"), list):
                self.token_ids = (self.token_ids or []) + choice["token_ids"]
            if text:
                self.text += text
                self.arrivals.append(now)
                if on_text:
                    on_text(text)

    def count(self, name: str) -> int:
        """`prompt_tokens`, `completion_tokens` or `total_tokens` of its usage."""
        value = (self.usage or {}).get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadAnswer(f"usage.{name} is {value!r}; a count was expected")
        return value

    @property
    def cached_tokens(self) -> int | None:
        details = (self.usage or {}).get("prompt_tokens_details")
        return details.get("cached_tokens") if isinstance(details, dict) else None

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        if not self.arrivals:
            raise Failed("no text arrived, so there is no time to the first token")
        return self.arrivals[0]

    def rate(self) -> tuple[float, float]:
        """(tokens per second, seconds between tokens), from the first text to the last."""
        span, tokens = self.arrivals[-1] - self.ttft, self.count("completion_tokens") - 1
        if tokens < 1 or span <= 0:
            raise Failed("all of the text came at one moment: no rate can be measured")
        return tokens / span, span / tokens


async def server_sent_events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of each event. Splits at newlines only (a JSON text may hold other line ends)."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):  # the others are comments (heartbeats) and blank lines
                yield line[5:].strip().decode("utf-8", "replace")


def parse_json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        raise BadAnswer(f"not JSON: {one_line(shown, 80) or '(empty)'}") from None


# =================================================================================== 3. Server


class Metrics:
    """A page of /metrics: `page["vllm:num_requests_running"]` is the sum over its label sets."""

    LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([-+.\deEinfNa]+)")

    def __init__(self, text: str):
        self.values: dict[str, float] = {}
        self.labels: dict[str, dict[str, str]] = {}
        for line in text.splitlines():
            if match := self.LINE.match(line):
                name, labels, value = match.groups()
                self.values[name] = self.values.get(name, 0.0) + float(value)
                self.labels[name] = dict(re.findall(r'(\w+)="([^"]*)"', labels or ""))

    def first(self, *names: str) -> float:
        """The value of the first name that the page has."""
        for name in names:
            if name in self.values:
                return self.values[name]
        raise NotOffered(f"/metrics has no {names[0]}")

    @property
    def running(self) -> float:
        return self.first("vllm:num_requests_running", "llamacpp:requests_processing")

    @property
    def kv_usage(self) -> float:
        return self.first("vllm:kv_cache_usage_perc")

    @property
    def prefix_hits(self) -> float:
        return self.first("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits")


@dataclass
class Facts:
    """What the server says of itself."""

    model: str = ""
    models: list[str] = field(default_factory=list)
    made_by: str = ""  # `owned_by` of the model card: "vllm", "llamacpp", …
    version: str = ""
    max_model_len: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    prefix_caching: bool | None = None
    seats: int | None = None  # requests that can run at once


class Server:
    """Speaks to one server. Every time is measured from just before the request is sent."""

    def __init__(self, url: str, api_key: str | None, timeout: float):
        self.url = base_url(url)
        self.timeout = timeout  # seconds for one whole request
        self.facts = Facts()
        self.on_answer: Callable[[], None] = lambda: None
        self.has_key = bool(api_key)
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        self.http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=PROBE_SECONDS),
            limits=httpx.Limits(max_connections=None),  # N at once means N at once
            trust_env=not local,  # a proxy can't reach this machine
        )

    async def request(
        self, method: str, path: str, limit: float | None = None, **options: Any
    ) -> httpx.Response:
        """Any request, read to its end. Raises `Unreachable`; the status is the caller's matter."""
        limit = limit or self.timeout
        try:
            return await asyncio.wait_for(self.http.request(method, path, **options), limit)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            raise Unreachable(f"{path}: no answer within {limit:g} s") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{path}: {describe(error)}") from None

    async def ask(
        self,
        prompt: str | list[dict],
        *,
        stream: bool = False,
        on_text: Callable[[str], None] | None = None,
        whole: bool = True,
        into: Answer | None = None,
        **params: Any,
    ) -> Answer:
        """One completion (a text) or chat answer (a list of messages).

        `whole=False` waits as long as bytes keep coming (a chat); `into` lets the caller see the
        answer while it grows, and keep it when it is cancelled. Raises `Refused`, `BadAnswer`, `Unreachable`.
        """
        answer = into or Answer()
        chat = not isinstance(prompt, str)
        body = {"model": self.facts.model, "messages" if chat else "prompt": prompt, **params}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        answer.sent = time.perf_counter()
        try:
            exchange = self._exchange(path, body, answer, on_text)
            await asyncio.wait_for(exchange, self.timeout if whole else None)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            raise Unreachable(
                f"no complete answer within {self.timeout:g} s (--timeout); "
                f"{len(answer.text)} characters had come"
            ) from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{describe(error)} after {len(answer.text)} characters") from None
        finally:
            answer.seconds = time.perf_counter() - answer.sent
        self.on_answer()
        return answer

    async def _exchange(
        self, path: str, body: dict, answer: Answer, on_text: Callable[[str], None] | None
    ) -> None:
        async with self.http.stream("POST", path, json=body) as response:
            if response.status_code != 200 or not body.get("stream"):
                await response.aread()
                if response.status_code != 200:
                    raise Refused(response)
                answer.take(parse_json(response.content))
                return
            async for data in server_sent_events(response):
                if answer.done:
                    raise BadAnswer(f"more came after [DONE]: {one_line(data, 60)}")
                if data == "[DONE]":
                    answer.done = True
                else:
                    answer.take(parse_json(data), on_text)
        if not answer.done:
            raise BadAnswer(f"the stream ended without [DONE], after {len(answer.text)} characters")

    async def metrics(self) -> Metrics:
        response = await self.request("GET", "/metrics", limit=PROBE_SECONDS)
        return Metrics(offered(response, "/metrics").text)

    async def count_tokens(self, text: str, special: bool) -> int:
        """Tokens of `text` by the server's own tokenizer; `special`: with those that a prompt gets."""
        bodies = (
            {"model": self.facts.model, "prompt": text, "add_special_tokens": special},
            {"content": text, "add_special": special},  # llama.cpp's way
        )
        for body in bodies:
            response = offered(await self.request("POST", "/tokenize", json=body), "/tokenize")
            tokens = parse_json(response.text).get("tokens")
            if isinstance(tokens, list) and (tokens or not text):
                return len(tokens)
        raise NotOffered("/tokenize gives no tokens")

    async def record(self, ids: Sequence[str], ended: bool = True) -> list[dict]:
        """The events of these requests, oldest first, with the steps that computed for them.

        `ids` are those of the answers. `ended`: wait (up to 3 s) until each has its end recorded.
        Raises `NotOffered` without /trace, or when the record holds nothing of them.
        """
        deadline = time.perf_counter() + 3.0
        while True:
            response = offered(await self.request("GET", "/trace"), "/trace")
            if "html" in response.headers.get("content-type", ""):
                raise NotOffered("/trace is a web page here")
            events = [e for e in map(parse_json, response.text.splitlines()) if concerns(e, ids)]
            mine = [e for e in events if any(owns(id, e.get("request_id", "")) for id in ids)]
            over = {e["request_id"] for e in mine if e["kind"] in ENDS}
            missing = [id for id in ids if not any(owns(id, rid) for rid in over)]
            if (mine and not (ended and missing)) or time.perf_counter() > deadline:
                if not mine:
                    raise NotOffered("/trace holds no event of these requests (is it off?)")
                return events
            await asyncio.sleep(0.1)


ENDS = ("request.finished", "request.aborted")


def owns(answer_id: str, request_id: str) -> bool:
    """Does a request of the record belong to the answer with this id? ("cmpl-7" has "7", "7.1", "cmpl-7-0".)"""
    names = {answer_id, answer_id.split("-", 1)[-1]} - {""}
    return any(request_id == n or request_id.startswith((f"{n}.", f"{n}-")) for n in names)


def concerns(event: dict, ids: Sequence[str]) -> bool:
    if event.get("kind") == "step.planned":
        return any(owns(id, row[0]) for row in event.get("rows", []) for id in ids)
    if event.get("kind") == "engine.kv_sized":
        return True
    return any(owns(id, event.get("request_id", "")) for id in ids)


def offered(response: httpx.Response, what: str) -> httpx.Response:
    if response.status_code in (404, 405, 501):
        raise NotOffered(f"the server has no {what} (HTTP {response.status_code})")
    if response.status_code != 200:
        raise Refused(response)
    return response


def base_url(url: str) -> str:
    """The address without path: accepts `app.koyeb.app`, a trailing slash, a trailing /v1."""
    url = url.strip() if "://" in url else f"https://{url.strip()}"
    if re.match(r"https://(127\.|localhost\b|\[::1\])", url) and "https" not in sys.argv:
        url = url.replace("https://", "http://", 1)
    return re.sub(r"/+(v1/*)?$", "", url)


def describe(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}".rstrip(": "), 120)


# ============================================================================== 4. Reaching it


async def read_facts(server: Server, model: str | None) -> Facts:
    """Find out whether the server can be judged, and what it says of itself. Raises `Unusable`."""
    await probe(server, "/health", required=False)
    response = await probe(server, "/v1/models", required=True)
    wrong = "Check --url: it must be the server's address, without a path."
    try:
        cards = json.loads(response.text)["data"]
        ids = [str(card["id"]) for card in cards]
    except (ValueError, KeyError, TypeError):
        raise Unusable(
            f"{server.url}/v1/models isn't a list of models: {one_line(response.text, 80)}", wrong
        ) from None
    if not ids or (model and model not in ids):
        raise Unusable(
            f"the model {model!r} isn't served; served: {', '.join(ids) or 'none'}",
            "Name one of these with --model, or leave --model out.",
        )
    card = cards[ids.index(model) if model else 0]
    facts = Facts(model=card["id"], models=ids, made_by=str(card.get("owned_by") or ""))
    length = card.get("max_model_len") or (card.get("meta") or {}).get("n_ctx")
    facts.max_model_len = length if isinstance(length, int) else None
    server.facts = facts
    with contextlib.suppress(Unreachable, Failed, NotOffered, AttributeError):
        version = offered(await server.request("GET", "/version", limit=PROBE_SECONDS), "")
        facts.version = str(parse_json(version.text).get("version", ""))
    with contextlib.suppress(Unreachable, Failed, NotOffered, AttributeError):
        props = offered(await server.request("GET", "/props", limit=PROBE_SECONDS), "")
        facts.seats = parse_json(props.text).get("total_slots")
        settings = parse_json(props.text).get("default_generation_settings") or {}
        facts.max_model_len = settings.get("n_ctx") or facts.max_model_len
    with contextlib.suppress(Unreachable, Failed, NotOffered, ValueError):
        info = (await server.metrics()).labels.get("vllm:cache_config_info", {})
        facts.block_size = int(info["block_size"]) if "block_size" in info else None
        facts.num_blocks = int(info["num_gpu_blocks"]) if "num_gpu_blocks" in info else None
        if "enable_prefix_caching" in info:
            facts.prefix_caching = info["enable_prefix_caching"].lower() in ("true", "1")
    return facts


async def probe(server: Server, path: str, required: bool) -> httpx.Response:
    """GET something that a usable server has. Raises `NotReady` or `Unusable`, with advice."""
    try:
        response = await server.request("GET", path, limit=min(PROBE_SECONDS, server.timeout))
    except Unreachable as error:
        raise NotReady(
            f"nothing usable answers at {server.url} ({error})",
            "Is it started, and is --url (or KOYEB_URL) right? A cold instance: add --wait.",
        ) from None
    status, text = response.status_code, error_text(response.text)
    if status in (502, 503, 504):
        who = "the server is not ready" if "json" in response.headers.get("content-type", "") else (
            "no instance answers behind the address yet"
        )  # fmt: skip
        raise NotReady(f"{who} (HTTP {status} on {path}: {text})", "Wait for it: add --wait.")
    if status in (401, 403):
        said = "refused the key that was given" if server.has_key else "wants an API key"
        raise Unusable(
            f"the server {said} (HTTP {status} on {path})",
            "Pass the key that it was started with: --api-key KEY, or API_KEY in the environment.",
        )
    if status != 200 and (required or status >= 500):
        raise Unusable(
            f"HTTP {status} on {server.url}{path}: {text}",
            "This isn't a working OpenAI-compatible server; look at its log, and check --url.",
        )
    return response


async def reach(server: Server, model: str | None, wait: float, console: Console) -> Facts:
    """`read_facts`, polling for up to `wait` seconds while the server is cold."""
    start, said, last_line = time.perf_counter(), "", 0.0
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(console.status("")) if wait and console.is_terminal else None
        while True:
            try:
                return await read_facts(server, model)
            except NotReady as reason:
                waited = time.perf_counter() - start
                if waited >= wait:
                    if wait:
                        raise Unusable(
                            f"not ready after {waited:.0f} s: {reason}",
                            "Read the server's log; wait longer with --wait SECONDS.",
                        ) from None
                    raise
                line = f"waiting, {waited:.0f} of at most {wait:.0f} s: {reason}"
                if status:
                    status.update(escape(line))
                elif str(reason) != said or waited - last_line >= 15:
                    console.print(escape(line))
                    said, last_line = str(reason), waited
                await asyncio.sleep(min(2.0, max(0.05, wait - waited)))


async def first_token(server: Server) -> None:
    """A server that can't produce one token is wrong, whatever its /health says."""
    try:
        answer = await server.ask("Hello", max_tokens=1, temperature=0)
    except (Failed, Unreachable) as error:
        raise Unusable(
            f"the server is up, but a request for one token fails: {error}",
            "Look at the server's log; nothing else can be judged before this works.",
        ) from None
    if not answer.finish:
        raise Unusable(
            "the server's answer to a request for one token has no finish_reason",
            "This isn't a working OpenAI-compatible server; look at its log.",
        )


# =================================================================================== 5. Suites

QUESTIONS = (
    "What is a KV cache?",
    "What does PagedAttention do?",
    "What is continuous batching?",
    "Why does a server stream its tokens?",
    "What is a token?",
    "What does temperature change?",
    "What is prefix caching?",
    "When is a request preempted?",
)
STORY = "Once upon a time there was a little"
WORDS = (
    "river stone garden window lantern mountain winter morning bread copper silver harbor teacher "
    "letter station forest candle bridge violin planet island feather engine market shadow thunder"
).split()


def fresh_text(num_words: int) -> str:
    """A text that no server has seen: random words, the first ones already unlike any other text."""
    draw = random.SystemRandom()
    words = [f"{draw.randrange(10_000)}", *(draw.choice(WORDS) for _ in range(num_words - 1))]
    return " ".join(words)


@dataclass
class Options:
    num_requests: int = 8
    max_tokens: int = 64


class Suite:
    """One subject. `run` sends requests and judges them, check by check."""

    name = ""
    title = ""

    def __init__(self, server: Server, options: Options, on_check: Callable[[Check], None]):
        self.server, self.options, self.on_check = server, options, on_check
        self.ask = server.ask

    async def run(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def check(self, name: str, expectation: str, vital: bool = False):
        """Judge one expectation. Raises `SuiteEnded` if a vital one fails, or the server is gone."""
        check = Check(self.name, name, expectation)
        start, end_suite = time.perf_counter(), False
        try:
            yield check
            check.verdict = PASS if check.evidence else FAIL
        except NotOffered as reason:
            check.verdict, check.evidence, end_suite = NOT_OFFERED, str(reason), vital
        except Unreachable as error:
            check.measured(str(error))
            end_suite = True
        except Failed as error:
            check.measured(str(error))
            end_suite = vital
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            check.measured(f"the answer isn't shaped as it should be ({describe(error)})")
            end_suite = vital
        check.seconds = time.perf_counter() - start
        self.on_check(check)
        if end_suite:
            raise SuiteEnded

    async def same_text(self, prompt: str, a: Answer, b: Answer, **params: Any) -> tuple[bool, str]:
        """Do two greedy answers agree? (agree, what was seen)

        Where they part, the two best candidates may be equally probable up to rounding (bf16
        sums depend on the batch): that is a tie, and counts as agreement, with its gap stated.
        """
        if a.text == b.text:
            return True, "equal"
        common = len(os.path.commonprefix([a.text, b.text]))
        parted = f"they part after {common} characters ({a.text[common:][:12]!r}, {b.text[common:][:12]!r})"
        with contextlib.suppress(Failed, KeyError, TypeError, IndexError):
            again = (await self.ask(prompt, logprobs=5, **params)).logprobs or {}
            ends = itertools.accumulate(map(len, again["tokens"]))
            at = next((i for i, end in enumerate(ends) if end > common), None)
            if at is not None:
                best, second = sorted(again["top_logprobs"][at].values(), reverse=True)[:2]
                if best - second <= 0.1:
                    return True, f"{parted}: a tie, {best - second:.3f} nats between the candidates"
                parted += f"; the best candidate leads by {best - second:.2f} nats"
        return False, parted


class Single(Suite):
    name, title = "single", "one request alone"

    async def run(self) -> None:
        limit = self.options.max_tokens
        params = {"max_tokens": limit, "temperature": 0, "ignore_eos": True}
        with self.check(
            "answers", "a request is answered with text and one finish_reason", True
        ) as c:
            whole = await self.ask(QUESTIONS[0], return_token_ids=True, **params)
            c.measured(f"{len(whole.text)} characters in {whole.seconds:.2f} s, {whole.finish}")
            c.require(bool(whole.text), "the text is empty")
            c.require(len(whole.finish) == 1, "finish_reason must be there exactly once")
        with self.check(
            "first token", "text arrives before the answer is complete (TTFT)", True
        ) as c:
            answer = await self.ask(QUESTIONS[0], stream=True, **params)
            c.measured(f"TTFT {answer.ttft * 1000:.0f} ms of {answer.seconds * 1000:.0f} ms")
            c.require(len(set(answer.arrivals)) > 1, "everything arrived at one moment")
        with self.check(
            "speed", "tokens come one after another, so that their rate can be measured"
        ) as c:
            if answer.usage is None:
                raise NotOffered("no usage in the stream, so tokens can't be counted")
            rate, between = answer.rate()
            gaps = sorted(b - a for a, b in itertools.pairwise(answer.arrivals))
            p95 = gaps[min(len(gaps) - 1, int(len(gaps) * 0.95))]
            c.measured(
                f"{rate:.1f} tokens/s, {between * 1000:.1f} ms between tokens "
                f"(95 % of the chunks within {p95 * 1000:.1f} ms)"
            )
        with self.check("usage", "the counts add up and fit the text") as c:
            self._judge_usage(c, whole, limit)
            pieces = len(answer.arrivals) - 1  # a last piece may be text held back until the end
            c.require(
                answer.usage is None or pieces <= answer.count("completion_tokens"),
                f"the stream had {pieces + 1} pieces of text, more than the tokens it counts",
            )
        with self.check("usage against /tokenize", "the server's tokenizer counts the same") as c:
            prompt = await self.server.count_tokens(QUESTIONS[0], special=True)
            again = await self.server.count_tokens(whole.text, special=False)
            said, drawn = whole.count("prompt_tokens"), whole.count("completion_tokens")
            c.measured(
                f"prompt {said}, tokenized {prompt}; output {drawn}, tokenized again {again}"
            )
            c.require(said == prompt, "the prompt's count differs")
            # Tokens that were drawn needn't be those that the text is cut into again, but nearly.
            near = abs(drawn - again) <= max(3, drawn // 4) or len(whole.token_ids or []) == drawn
            c.require(near, "the output's count doesn't fit its text")
        with self.check("chat", "a chat message is answered by the assistant") as c:
            try:
                chat = await self.ask([{"role": "user", "content": QUESTIONS[0]}], max_tokens=limit)
            except Refused as refused:
                if refused.status in (404, 405, 501) or "template" in refused.body:
                    raise NotOffered(str(refused)) from None
                raise
            c.measured(f"{one_line(chat.text, 60)!r}, {chat.finish}")
            c.require(chat.roles == ["assistant"], f"the role is {chat.roles}")
            c.require(len(chat.finish) == 1, "finish_reason must be there exactly once")

    @staticmethod
    def _judge_usage(c: Check, answer: Answer, limit: int) -> None:
        if answer.usage is None:
            raise Failed("the answer has no usage")
        prompt, drawn = answer.count("prompt_tokens"), answer.count("completion_tokens")
        total = answer.count("total_tokens")
        c.measured(f"{prompt} + {drawn} = {total}, limit {limit}, {answer.finish[0]}")
        c.require(prompt + drawn == total, "they don't add up")
        c.require(0 < prompt and 0 < drawn <= limit, "the counts are impossible")
        c.require(
            answer.finish != ["length"] or drawn == limit, "stopped by length, but not at the limit"
        )
        if answer.token_ids is not None:
            c.measured(f"{len(answer.token_ids)} token ids returned")
            c.require(len(answer.token_ids) == drawn, "the token ids are of another number")


class Batch(Suite):
    name, title = "batch", "many at once"

    async def run(self) -> None:
        n = self.options.num_requests
        prompts = [f"{QUESTIONS[i % len(QUESTIONS)]} ({i + 1})" for i in range(n)]
        params = {"max_tokens": self.options.max_tokens, "temperature": 0, "ignore_eos": True}
        with self.check(
            "all answered", f"{n} requests one by one, then {n} at once, all answered", True
        ) as c:
            start = time.perf_counter()
            alone = [await self.ask(p, **params) for p in prompts]
            middle = time.perf_counter()
            async with Sampler(self.server) as sampler:
                together = await asyncio.gather(
                    *(self.ask(p, stream=True, **params) for p in prompts)
                )
                end = time.perf_counter()
            one_by_one, at_once = middle - start, end - middle
            c.measured(f"{one_by_one:.2f} s one by one, {at_once:.2f} s at once")
        with self.check(
            "shared steps", "the server's own record shows requests computed together"
        ) as c:
            self._one_seat()
            try:
                self._judge_record(c, await self.server.record([a.id for a in together]), together)
            except NotOffered:
                peak = sampler.peak("running")
                c.measured(
                    f"num_requests_running reached {peak:.0f} in {len(sampler.rows)} samples"
                )
                c.require(peak >= 2, "never two at a time")
        with self.check(
            "speed-up", "at once is at least 1.2 times as fast (a mere queue: 1.0)"
        ) as c:
            self._one_seat()
            gain = one_by_one / at_once
            tokens = sum(a.count("completion_tokens") for a in together)
            c.measured(f"{gain:.2f}×; {tokens / at_once:.1f} tokens/s at once")
            c.require(gain >= 1.2, "no gain from running them together")
        with self.check("same answers", "greedy answers are the same alone and in company") as c:
            judged = [
                await self.same_text(p, a, b, **params) for p, a, b in zip(prompts, alone, together)
            ]
            equal = sum(note == "equal" for _, note in judged)
            c.measured(f"{equal} of {n} equal")
            for number, (same, note) in enumerate(judged, 1):
                if note != "equal":
                    c.measured(f"request {number}: {note}")
                c.require(same, "another text")

    def _one_seat(self) -> None:
        if self.server.facts.seats == 1:
            raise NotOffered("the server runs one request at a time (total_slots 1)")

    @staticmethod
    def _judge_record(c: Check, events: list[dict], answers: list[Answer]) -> None:
        steps = [e for e in events if e["kind"] == "step.planned"]
        owners = [{a.id for a in answers for r in s["rows"] if owns(a.id, r[0])} for s in steps]
        most = max(range(len(steps)), key=lambda i: len(owners[i]))
        drawn = sum(a.count("completion_tokens") for a in answers)
        c.measured(
            f"up to {len(owners[most])} of {len(answers)} in one step (step {steps[most].get('step')}); "
            f"{drawn} tokens in {len(steps)} steps"
        )
        c.require(len(owners[most]) >= 2, "no step computed two of them")
        c.require(len(steps) < drawn, "as many steps as tokens")


class Sampler:
    """Reads /metrics over and over while something runs. Without /metrics it stays empty."""

    def __init__(self, server: Server):
        self.server, self.rows, self.task = server, [], None
        self.reason = "no sample was taken"

    async def __aenter__(self) -> Sampler:
        self.task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _sample(self) -> None:
        try:
            while True:
                self.rows.append(await self.server.metrics())
                await asyncio.sleep(0.01)
        except (NotOffered, Failed, Unreachable) as reason:
            self.reason = str(reason)

    def peak(self, what: str) -> float:
        if not self.rows:
            raise NotOffered(self.reason)
        return max(getattr(row, what) for row in self.rows)


@dataclass
class Pages:
    """What the record says of one request's block table."""

    table: dict[int, int] = field(default_factory=dict)  # position in the table → block
    shared: int = 0  # positions that were there already: prefix cache
    grants: list[tuple[int, int, int]] = field(default_factory=list)  # (step, position, blocks)
    freed: list[int] = field(default_factory=list)
    preempted: int = 0

    @classmethod
    def of(cls, events: Iterable[dict], answer_id: str) -> Pages:
        pages = cls()
        for event in events:
            if not owns(answer_id, event.get("request_id", "")):
                continue
            kind, index, blocks = event["kind"], event.get("index", 0), event.get("blocks", [])
            if kind in ("block.allocated", "block.shared"):
                pages.table.update({index + i: block for i, block in enumerate(blocks)})
                if kind == "block.shared":
                    pages.shared += len(blocks)
                else:
                    pages.grants.append((event.get("step", 0), index, len(blocks)))
            elif kind == "block.copied":
                pages.table[index] = event.get("dst", 0)
            elif kind == "block.freed":
                pages.freed += blocks
            pages.preempted += kind == "request.preempted"
        return pages


def blocks_for(tokens: int, block_size: int) -> int:
    return math.ceil(tokens / block_size)


class Paging(Suite):
    name, title = "paging", "memory in blocks"

    async def run(self) -> None:
        with self.check(
            "blocks are visible", "the server states its block size and who has which block", True
        ) as c:
            size = self.server.facts.block_size
            probe_id = (await self.ask(fresh_text(4), max_tokens=2)).id
            try:
                events, on_record = await self.server.record([probe_id]), True
            except NotOffered as reason:
                if size is None or not self.server.facts.num_blocks:
                    raise NotOffered(f"{reason}; no block size in /metrics either") from None
                events, on_record = [], False
            sized = [e for e in events if e["kind"] == "engine.kv_sized"]
            size = sized[-1].get("block_size", size) if sized else size
            if not size:
                raise NotOffered("the block size is neither in /trace nor in /metrics")
            source = "/trace" if on_record else "vllm:cache_config_info"
            c.measured(
                f"{size} tokens in a block, {self.server.facts.num_blocks} blocks ({source})"
            )
        context = self.server.facts.max_model_len or 1024
        words = min(12 * size, context // 6)  # a word of ours is one to three tokens
        jobs = {
            "short": (fresh_text(4), max(2, size // 2)),
            "medium": (fresh_text(words // 3), size),
            "long": (fresh_text(words), min(3 * size + 5, context // 4)),
        }
        with self.check("requests", "short and long requests run side by side", True) as c:
            before = await self._kv_usage()
            sent = (
                self.ask(p, max_tokens=m, temperature=0, ignore_eos=True) for p, m in jobs.values()
            )
            async with Sampler(self.server) as sampler:
                answers = dict(zip(jobs, await asyncio.gather(*sent)))
            for name, answer in answers.items():
                c.measured(
                    f"{name} {answer.count('prompt_tokens')} + {answer.count('completion_tokens')} tokens"
                )
        if on_record:
            events = await self._judge_record(answers, size)
        else:
            self._judge_samples(sampler, answers, size)
        await self._judge_after(before)
        self._judge_reserving(answers, size)

    async def _kv_usage(self) -> float | None:
        try:
            return (await self.server.metrics()).kv_usage
        except NotOffered:
            return None

    async def _judge_record(self, answers: dict[str, Answer], size: int) -> None:
        with self.check("blocks used", "blocks = ceil(tokens with K/V / block size)", True) as c:
            events = await self.server.record([a.id for a in answers.values()])
            pages = {name: Pages.of(events, a.id) for name, a in answers.items()}
            if any(p.preempted for p in pages.values()):
                raise NotOffered("a request was preempted meanwhile; ask again on a quiet server")
            for name, answer in answers.items():
                tokens = answer.count("prompt_tokens") + answer.count("completion_tokens")
                used = len(pages[name].table)
                c.measured(f"{name}: {tokens - 1} → {used} blocks")  # the last one drawn has no K/V
                right = {blocks_for(tokens - 1, size), blocks_for(tokens, size)}
                c.require(used in right, f"{min(right)} were expected")
        with self.check(
            "growth", "while drawing, blocks come one at a time, when the last is full"
        ) as c:
            long, prompt = pages["long"], answers["long"].count("prompt_tokens")
            grown = [g for g in long.grants if g[1] >= blocks_for(prompt, size)]
            if not grown:
                raise NotOffered("the answer ended before it needed another block")
            c.measured(
                f"long: {len(long.table) - len(grown)} for its prompt, then "
                + ", ".join(f"+{n} at step {step}" for step, _, n in grown)
            )
            c.require(all(n == 1 for _, _, n in grown), "more than one block at a time")
            steps = [step for step, _, _ in grown]
            c.require(len(set(steps)) == len(steps), "several blocks in one step")
        with self.check("given back", "at its end a request gives back every block it had") as c:
            for name, page in pages.items():
                c.measured(f"{name}: {len(page.freed)} of {len(page.table)}")
                c.require(sorted(page.freed) == sorted(page.table.values()), "not the same blocks")

    def _judge_samples(self, sampler: Sampler, answers: dict[str, Answer], size: int) -> None:
        with self.check(
            "blocks used", "blocks in use never exceed sum of ceil(tokens / block size)"
        ) as c:
            most = sum(
                blocks_for(a.count("prompt_tokens") + a.count("completion_tokens"), size)
                for a in answers.values()
            )
            peak = sampler.peak("kv_usage") * (self.server.facts.num_blocks or 0)
            c.measured(f"{peak:.1f} at most in {len(sampler.rows)} samples; the sum is {most}")
            if peak == 0:
                raise NotOffered("kv_cache_usage_perc never moved while it was sampled")
            c.require(peak <= most + len(answers), "more blocks than paging needs")

    async def _judge_after(self, before: float | None) -> None:
        with self.check("pool afterwards", "the pool is as full as before, within 3 s") as c:
            if before is None:
                raise NotOffered("/metrics has no vllm:kv_cache_usage_perc")
            waited, now = await until(self._kv_usage, lambda usage: usage <= before, 3.0)
            c.measured(f"{before:.2%} before, {now:.2%} after {waited:.2f} s")
            c.require(now <= before, "blocks are still in use")

    def _judge_reserving(self, answers: dict[str, Answer], size: int) -> None:
        with self.check(
            "against reserving", "paging takes less than the whole context for each"
        ) as c:
            length = self.server.facts.max_model_len
            if length is None:
                raise NotOffered("the server doesn't state its context length")
            tokens = [
                a.count("prompt_tokens") + a.count("completion_tokens") for a in answers.values()
            ]
            paged = sum(blocks_for(t, size) for t in tokens)
            reserved = len(tokens) * blocks_for(length, size)
            c.measured(
                f"{paged} blocks, {sum(tokens) / paged / size:.0%} of their slots filled; reserving {length} "
                f"tokens each: {reserved} blocks, {sum(tokens) / reserved / size:.0%} filled ({reserved / paged:.1f}×)"
            )
            c.require(paged < reserved, "no less than reserving")


async def until(read: Callable, good: Callable, limit: float) -> tuple[float, Any]:
    """Read again and again until it is good or the time is up: (seconds that passed, last value)."""
    start = time.perf_counter()
    while True:
        value = await read()
        waited = time.perf_counter() - start
        if good(value) or waited >= limit:
            return waited, value
        await asyncio.sleep(0.02)


def diversity(texts: Sequence[str]) -> float:
    """How unlike the texts are: over all pairs, the mean share of their words and signs that only
    one of the two has (Jaccard distance: 0 = the same ones, 1 = none in common)."""
    sets = [set(re.findall(r"\w+|[^\w\s]", text.lower())) for text in texts]
    pairs = [(a, b) for a, b in itertools.combinations(sets, 2) if a | b]
    if not pairs:
        raise Failed("the texts are empty")
    return statistics.fmean(1 - len(a & b) / len(a | b) for a, b in pairs)


class Temperature(Suite):
    name, title = "temperature", "how tokens are drawn"

    async def run(self) -> None:
        params = {"max_tokens": min(self.options.max_tokens, 64)}
        with self.check("temperature 0", "three times the same text", True) as c:
            cold = [await self.ask(STORY, temperature=0, **params) for _ in range(3)]
            c.measured(
                f"{len({a.text for a in cold})} different text(s): {one_line(cold[0].text, 50)!r}"
            )
            c.require(len({a.text for a in cold}) == 1, "they differ")
            c.require(bool(cold[0].text.strip()), "the text is empty")
        with self.check(
            "diversity", "grows: 0 at temperature 0, more at 0.7, more again at 1.5"
        ) as c:
            spread = {0.0: diversity([a.text for a in cold])}
            for temperature in (0.7, 1.5):
                drawn = await asyncio.gather(
                    *(
                        self.ask(STORY, temperature=temperature, seed=s, **params)
                        for s in range(1, 9)
                    )
                )
                spread[temperature] = diversity([a.text for a in drawn])
            c.measured(
                "mean pairwise difference of words "
                + ", ".join(f"{s:.2f} at {t:g}" for t, s in spread.items())
            )
            c.require(spread[0.0] == 0 < spread[0.7] < spread[1.5], "it doesn't grow")
        with self.check("seed", "the same seed draws the same text, another seed another") as c:
            a, b, other = [
                (await self.ask(STORY, temperature=1.0, seed=seed, **params)).text
                for seed in (7, 7, 8)
            ]
            c.measured(f"seed 7 twice: {'equal' if a == b else 'different'}; seed 8: "
                       f"{'equal' if a == other else 'different'}")  # fmt: skip
            c.require(a == b, "a seed doesn't repeat")
            c.require(a != other, "the seed has no effect")


class Prefix(Suite):
    name, title = "prefix", "a prompt seen before"

    async def run(self) -> None:
        context = self.server.facts.max_model_len or 2048
        prompts = [fresh_text(min(400, context // 6)) + "\nThe end. Next:" for _ in range(3)]
        params = {"max_tokens": 8, "temperature": 0}
        with self.check(
            "asked twice", "three long new prompts are answered, twice each", True
        ) as c:
            hits = [await self._hits()]
            cold = [await self.ask(p, stream=True, **params) for p in prompts]
            hits.append(await self._hits())
            warm = [await self.ask(p, stream=True, **params) for p in prompts]
            hits.append(await self._hits())
            size = cold[0].count("prompt_tokens") if cold[0].usage else None
            c.measured(f"{size or 'unknown number of'} tokens in the first one")
        first, again, source = self._cached(cold, warm, hits)
        with self.check(
            "cached tokens",
            "none the first time; the second time all full blocks before the last token",
        ) as c:
            if first is None:
                raise NotOffered(
                    "neither usage.prompt_tokens_details nor prefix_cache_hits is reported"
                )
            if self.server.facts.prefix_caching is False and again == 0:
                raise NotOffered("prefix caching is switched off (vllm:cache_config_info)")
            tokens = sum(a.count("prompt_tokens") for a in warm)
            block = self.server.facts.block_size or 64
            expected = sum((a.count("prompt_tokens") - 1) // block * block for a in warm)
            c.measured(f"{first} then {again} of {tokens} tokens ({source})")
            c.require(first < 3 * block, "new prompts were reported as cached")
            c.require(
                expected <= again < tokens, f"between {expected} and {tokens - 1} were expected"
            )
        with self.check("faster", "the first token comes earlier the second time (medians)") as c:
            before, after = (statistics.median(a.ttft for a in answers) for answers in (cold, warm))
            c.measured(
                f"TTFT {before * 1000:.0f} ms, then {after * 1000:.0f} ms ({before / after:.1f}×)"
            )
            if after >= before and not again:
                raise NotOffered(
                    "no cached prefix is reported, and the first token comes no earlier"
                )
            c.require(after < before, "not earlier")
        with self.check("same answers", "greedy answers are the same from the cache") as c:
            for p, a, b in zip(prompts, cold, warm):
                same, note = await self.same_text(p, a, b, **params)
                c.measured(note)
                c.require(same, "another text")

    async def _hits(self) -> float | None:
        try:
            return (await self.server.metrics()).prefix_hits
        except NotOffered:
            return None

    @staticmethod
    def _cached(
        cold: list[Answer], warm: list[Answer], hits: list[float | None]
    ) -> tuple[int | None, int, str]:
        """(tokens cached the first time, the second time, who says so)"""
        if all(a.cached_tokens is not None for a in cold + warm):
            return sum(a.cached_tokens for a in cold), sum(a.cached_tokens for a in warm), "usage"
        if None not in hits:
            return int(hits[1] - hits[0]), int(hits[2] - hits[1]), "vllm:prefix_cache_hits"
        return None, 0, ""


class Streaming(Suite):
    name, title = "streaming", "text as it is made"

    async def run(self) -> None:
        params = {
            "max_tokens": max(self.options.max_tokens, 64),
            "temperature": 0,
            "ignore_eos": True,
        }
        with self.check(
            "spread", "text arrives while it is made: over ≥ 30 % of the decoding time", True
        ) as c:
            shares = []
            for _ in range(3):  # a busy machine may disturb one of them
                one = await self.ask(QUESTIONS[1], **{**params, "max_tokens": 1})
                stream = await self.ask(QUESTIONS[1], stream=True, **params)
                c.require(bool(stream.arrivals), "the stream carries no text")
                span = stream.arrivals[-1] - stream.arrivals[0]
                shares.append(span / max(stream.seconds - one.seconds, span, 1e-6))
                if shares[-1] >= 0.3 and len(set(stream.arrivals)) >= 3:
                    break
            moments = len(set(stream.arrivals))
            c.measured(f"{len(stream.arrivals)} pieces at {moments} moments, over {shares[-1]:.0%} of "
                       f"{stream.seconds:.2f} s less {one.seconds:.2f} s for one token alone")  # fmt: skip
            c.require(
                shares[-1] >= 0.3 and moments >= 3, "it came in one go: something holds it back"
            )
        with self.check("same text", "the pieces make the text of the unstreamed answer") as c:
            whole = await self.ask(QUESTIONS[1], **params)
            same, note = await self.same_text(QUESTIONS[1], whole, stream, **params)
            c.measured(f"{len(stream.text)} and {len(whole.text)} characters, {note}")
            c.require(same, "another text")
        with self.check(
            "end", "finish_reason exactly once, the same as unstreamed; [DONE] last"
        ) as c:
            c.measured(f"{stream.finish}, unstreamed {whole.finish}, [DONE] seen: {stream.done}")
            c.require(
                stream.finish == whole.finish and len(stream.finish) == 1 and stream.done, "not so"
            )
        with self.check("usage", "include_usage: one last chunk without choices, same counts") as c:
            if stream.usage is None:
                raise NotOffered("include_usage has no effect")
            names = ("prompt_tokens", "completion_tokens", "total_tokens")
            counts = [[a.count(name) for name in names] for a in (stream, whole)]
            c.measured(f"{counts[0]}, unstreamed {counts[1]}")
            c.require(stream.usage_alone, "usage came in a chunk with choices")
            c.require(counts[0] == counts[1], "other counts")
        with self.check(
            "chat", "deltas: the role first, then the text of the unstreamed answer"
        ) as c:
            messages = [{"role": "user", "content": QUESTIONS[2]}]
            try:
                whole = await self.ask(messages, max_tokens=32, temperature=0)
            except Refused as refused:
                if refused.status in (404, 405, 501) or "template" in refused.body:
                    raise NotOffered(str(refused)) from None
                raise
            stream = await self.ask(messages, stream=True, max_tokens=32, temperature=0)
            c.measured(f"role {stream.roles}, {len(stream.text)} characters, {stream.finish}")
            c.require(set(stream.roles) == {"assistant"}, "the role must be assistant")
            c.require(len(stream.finish) == 1, "finish_reason must be there exactly once")
            c.require(stream.text == whole.text, f"unstreamed it is {one_line(whole.text, 60)!r}")


class Errors(Suite):
    name, title = "errors", "wrong requests"

    async def run(self) -> None:
        model, prompt = self.server.facts.model, {"prompt": "Hello", "max_tokens": 1}
        llamacpp = self.server.facts.made_by == "llamacpp"
        with self.check("unknown model", "404, saying so") as c:
            if llamacpp:
                raise NotOffered("llama.cpp answers whatever the model's name")
            await self._refusal(c, 404, json={"model": "no-such-model", **prompt})
        with self.check("bad JSON", "400") as c:
            await self._refusal(
                c, 400, content=b'{"model": ', headers={"Content-Type": "application/json"}
            )
        with self.check("max_tokens −1", "400") as c:
            if llamacpp:
                raise NotOffered("llama.cpp takes −1 for no limit")
            await self._refusal(c, 400, json={"model": model, "prompt": "Hello", "max_tokens": -1})
        with self.check("missing prompt", "400") as c:
            await self._refusal(c, 400, json={"model": model, "max_tokens": 1})
        with self.check("prompt too long", "400, with the limit and the prompt's length") as c:
            limit = self.server.facts.max_model_len
            if limit is None:
                raise NotOffered("the server doesn't state its context length")
            body = {"model": model, "prompt": " hello" * (limit + 32), "max_tokens": 1}
            text = await self._refusal(c, 400, json=body)
            numbers = {int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", text)}
            c.require(limit in numbers, f"the limit, {limit}, isn't named")
            c.require(max(numbers) > limit, "the prompt's length isn't named")
        with self.check("wrong key", "401 with a wrong key, 401 without one") as c:
            if not self.server.has_key:
                raise NotOffered("the server wants no key")
            for headers in ({"Authorization": "Bearer not-the-key"}, {"Authorization": ""}):
                body = {"model": model, **prompt}
                await self._refusal(c, 401, shape=False, json=body, headers=headers)
        with self.check("still healthy", "after all that it answers as before") as c:
            health = await self.server.request("GET", "/health", limit=PROBE_SECONDS)
            answer = await self.ask("Hello", max_tokens=4, temperature=0)
            c.measured(
                f"/health {health.status_code}; {answer.finish} after {answer.seconds:.2f} s"
            )
            c.require(health.status_code in (200, 404, 405), "not healthy")

    async def _refusal(self, c: Check, status: int, shape: bool = True, **request: Any) -> str:
        """Send something wrong and expect to be told so. The text of the error."""
        response = await self.server.request("POST", "/v1/completions", **request)
        text = error_text(response.text)
        c.measured(f"HTTP {response.status_code}: {one_line(text, 150)}")
        c.require(response.status_code == status, f"HTTP {status} was expected")
        if shape:
            error = parse_json(response.text).get("error")
            whole = isinstance(error, dict) and bool(error.get("message")) and "type" in error
            c.require(whole, 'the body must be {"error": {"message", "type", …}}')
        return text


class Cancel(Suite):
    name, title = "cancel", "a client that leaves"

    async def run(self) -> None:
        metrics = self.server.metrics
        length = (self.server.facts.max_model_len or 4096) - 64
        with self.check("leaves", "a stream can be closed while it is being made", True) as c:
            quiet = await metrics()
            quiet.running  # noqa: B018  NotOffered where the server doesn't count them
            answer, busy = Answer(), None
            stream = asyncio.create_task(
                self.ask(
                    QUESTIONS[3],
                    stream=True,
                    into=answer,
                    max_tokens=length,
                    temperature=0,
                    ignore_eos=True,
                )
            )
            try:
                await until(
                    lambda: asyncio.sleep(0),
                    lambda _: len(answer.arrivals) >= 3 or stream.done(),
                    self.server.timeout,
                )
                busy = await metrics()
            finally:
                stream.cancel()
                await asyncio.gather(stream, return_exceptions=True)
            left = time.perf_counter()
            c.measured(f"left after {len(answer.arrivals)} pieces of at most {length} tokens")
            c.require(not answer.finish, "it had ended before it could be cancelled")
            c.measured(f"running {quiet.running:.0f} before, {busy.running:.0f} meanwhile")
            c.require(busy.running > quiet.running, "it wasn't counted as running")
        with self.check("seat", "num_requests_running is back within 2 s") as c:
            _, now = await until(metrics, lambda m: m.running <= quiet.running, 5.0)
            c.measured(f"{now.running:.0f} after {time.perf_counter() - left:.2f} s")
            c.require(now.running <= quiet.running, "the seat is still taken")
            c.require(time.perf_counter() - left <= 2.0, "too late")
        with self.check("blocks", "the KV cache is as full as before") as c:
            _, now = await until(metrics, lambda m: m.kv_usage <= quiet.kv_usage, 2.0)
            c.measured(
                f"{quiet.kv_usage:.2%} before, {busy.kv_usage:.2%} meanwhile, {now.kv_usage:.2%} after"
            )
            c.require(now.kv_usage <= quiet.kv_usage, "its blocks are still in use")
        with self.check(
            "on record", "the record says that it was aborted and gave its blocks back"
        ) as c:
            events = await self.server.record([answer.id])
            kinds = [e["kind"] for e in events]
            aborted = next((e for e in events if e["kind"] == "request.aborted"), None)
            pages = Pages.of(events, answer.id)
            c.measured(f"{len(pages.freed)} of {len(pages.table)} blocks freed")
            c.require(aborted is not None, f"no request.aborted; the last is {kinds[-1]}")
            c.measured(f"request.aborted: {aborted.get('why', '')}")
            c.require(sorted(pages.freed) == sorted(pages.table.values()), "not the same blocks")


SUITES = {
    s.name: s for s in (Single, Batch, Paging, Temperature, Prefix, Streaming, Errors, Cancel)
}

# ============================================================================== 6. Interactive

HELP = """/temp X      temperature (0 = always the most probable token)      /top_p X    0 < X ≤ 1
/seed N      repeat a draw; /seed off                                /system T   system message
/stats       times of this chat, and the server's load               /blocks     KV blocks of the last answer
/why         why the last answer waited and stopped                  /save FILE  keep this chat as JSON
/clear       forget the chat                                         /quit       leave (also Ctrl-D)
Ctrl-C stops an answer, not the program."""


class Chat:
    """A conversation in the terminal, or over a pipe: one line in, one answer out."""

    def __init__(
        self, server: Server, loop: asyncio.AbstractEventLoop, console: Console, max_tokens: int
    ):
        self.server, self.loop, self.console = server, loop, console
        self.max_tokens = max_tokens
        self.settings: dict[str, Any] = {}
        self.system = ""
        self.history: list[dict] = []
        self.answers: list[Answer] = []
        self.as_text = False  # no chat template: the conversation goes as plain text

    def run(self) -> int:
        """Read lines until /quit or the end of the input. The exit code: 1 if an answer failed."""
        self.console.print(
            f"[bold]{escape(self.server.facts.model)}[/] at {escape(self.server.url)} · /help, /quit"
        )
        failed = False
        while True:
            try:
                line = input("\n› ") if sys.stdin.isatty() else sys.stdin.readline()
            except EOFError:
                line = ""
            except KeyboardInterrupt:
                self.console.print("(/quit or Ctrl-D leaves)")
                continue
            if (not line and not sys.stdin.isatty()) or line.strip() == "/quit":
                return 1 if failed else 0
            if not sys.stdin.isatty() and line.strip():
                self.console.print(f"\n› {escape(printable(line.strip()))}")
            if line.startswith("/"):
                self._command(line.strip())
            elif line.strip():
                failed |= not self._say(line.strip())

    def _say(self, text: str) -> bool:
        """Ask, print what comes as it comes, then its times. False if it failed."""
        answer = Answer()
        self.history.append({"role": "user", "content": text})
        task = self.loop.create_task(self._answer(answer))
        try:  # Ctrl-C cancels the task; where signals can't reach a loop it interrupts the loop
            self.loop.add_signal_handler(signal.SIGINT, task.cancel)
        except (NotImplementedError, RuntimeError):
            pass
        said, good = "", True
        try:
            self.loop.run_until_complete(task)
        except (asyncio.CancelledError, KeyboardInterrupt):
            task.cancel()
            self.loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            said = "cancelled; "
        except (Failed, Unreachable) as error:
            said, good = f"failed: {error}; ", False
        finally:
            with contextlib.suppress(NotImplementedError, RuntimeError):
                self.loop.remove_signal_handler(signal.SIGINT)
        answer.seconds = time.perf_counter() - answer.sent
        if answer.text:
            self.history.append({"role": "assistant", "content": answer.text})
            self.answers.append(answer)
        else:
            self.history.pop()  # nothing was said in return: as if not asked
        self.console.print(f"\n[dim]{escape(said + self._times(answer))}[/]", highlight=False)
        return good

    async def _answer(self, answer: Answer) -> None:
        params = {"max_tokens": self.max_tokens, **self.settings}
        system = [{"role": "system", "content": self.system}] if self.system else []
        ask = self.server.ask
        if not self.as_text:
            try:
                await ask(
                    system + self.history,
                    stream=True,
                    into=answer,
                    on_text=self._show,
                    whole=False,
                    **params,
                )
                return
            except Refused as refused:
                if refused.status not in (404, 405, 501) and "template" not in refused.body:
                    raise
                self.as_text = True
                self.console.print("[dim](no chat template here: the chat goes as plain text)[/]")
        lines = [f"{m['role'].title()}: {m['content']}\n" for m in system + self.history]
        await ask(
            "".join(lines) + "Assistant:", stream=True, into=answer, on_text=self._show, whole=False,
            stop=["\nUser:"], **params,
        )  # fmt: skip

    def _show(self, text: str) -> None:
        self.console.file.write(printable(text))
        self.console.file.flush()

    @staticmethod
    def _times(answer: Answer) -> str:
        if not answer.arrivals:
            return f"no text after {answer.seconds:.2f} s"
        parts = [f"TTFT {answer.ttft * 1000:.0f} ms", f"{answer.seconds:.2f} s"]
        if answer.usage:
            parts.insert(0, f"{answer.count('completion_tokens')} tokens")
            with contextlib.suppress(Failed):
                parts.append(f"{answer.rate()[0]:.1f} tokens/s")
        return " · ".join(parts + answer.finish)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        commands = {
            "/temp": self._set, "/top_p": self._set, "/seed": self._set, "/system": self._set_system,
            "/stats": self._stats, "/blocks": self._blocks, "/why": self._why, "/save": self._save,
            "/clear": self._clear, "/help": lambda *_: HELP,
        }  # fmt: skip
        try:
            said = (
                commands[name](name, rest.strip()) if name in commands else f"no {name} here: /help"
            )
        except NotOffered as reason:
            said = f"{NOT_OFFERED}: {reason}"
        except (Failed, Unreachable, OSError) as error:
            said = f"that didn't work: {error}"
        self.console.print(escape(printable(said)), highlight=False)

    def _set(self, name: str, value: str) -> str:
        key, read, low, high = {
            "/temp": ("temperature", float, 0, 100),
            "/top_p": ("top_p", float, 0, 1),
            "/seed": ("seed", int, -(2**63), 2**63 - 1),
        }[name]
        if value in ("", "off"):
            self.settings.pop(key, None)
            return f"{key}: the server's default"
        try:
            number = read(value)
        except ValueError:
            return f"{value!r} isn't a number: {name} {'N' if read is int else 'X'}, or {name} off"
        if not low <= number <= high or (key == "top_p" and number == 0):
            return f"{key} must be between {low} and {high}"
        self.settings[key] = number
        return f"{key}: {number:g}" if read is float else f"{key}: {number}"

    def _set_system(self, _: str, text: str) -> str:
        self.system = text
        return "system message set" if text else "no system message"

    def _clear(self, *_: str) -> str:
        self.history, self.answers = [], []
        return "forgotten"

    def _save(self, _: str, path: str) -> str:
        if not path:
            return "where to? /save FILE"
        chat = {
            "url": self.server.url, "model": self.server.facts.model, "system": self.system,
            "settings": self.settings, "messages": self.history,
            "answers": [{"id": a.id, "usage": a.usage, "seconds": a.seconds, "finish": a.finish,
                         "ttft": a.arrivals[0] if a.arrivals else None} for a in self.answers],
        }  # fmt: skip
        Path(path).expanduser().write_text(json.dumps(chat, indent=2, ensure_ascii=False) + "\n")
        return f"{len(self.history)} messages saved in {path}"

    def _stats(self, *_: str) -> str:
        lines = [f"{len(self.answers)} answers"]
        if self.answers:
            lines.append(f"last: {self._times(self.answers[-1])}")
            lines.append(
                f"median TTFT {statistics.median(a.ttft for a in self.answers) * 1000:.0f} ms"
            )
        try:
            page = self.loop.run_until_complete(self.server.metrics())
            lines.append(f"server: {page.running:.0f} running, "
                         f"{page.first('vllm:num_requests_waiting', 'llamacpp:requests_deferred'):.0f} waiting")  # fmt: skip
            lines.append(f"KV cache in use: {page.kv_usage:.1%}")
        except NotOffered as reason:
            lines.append(f"{NOT_OFFERED}: {reason}")
        return "\n".join(lines)

    def _last(self) -> tuple[Answer, list[dict]]:
        if not self.answers:
            raise NotOffered("there is no answer yet")
        answer = self.answers[-1]
        return answer, self.loop.run_until_complete(self.server.record([answer.id]))

    def _blocks(self, *_: str) -> str:
        answer, events = self._last()
        pages = Pages.of(events, answer.id)
        sized = [e for e in events if e["kind"] == "engine.kv_sized"]
        size = sized[-1].get("block_size", 0) if sized else self.server.facts.block_size
        queued = next((e for e in events if e["kind"] == "request.queued"), {})
        lines = [
            f"{len(pages.table)} blocks" + (f" of {size} tokens" if size else "")
            + f", {pages.shared} of them shared with earlier requests (prefix cache)",
            "table: " + " ".join(str(pages.table[i]) for i in sorted(pages.table)),
            *(f"step {step}: +{n} from position {index} on" for step, index, n in pages.grants),
            f"given back: {len(pages.freed)}",
        ]  # fmt: skip
        if prompt := queued.get("num_prompt_tokens"):
            lines.insert(
                1,
                f"the prompt has {prompt} tokens"
                + (f" = {blocks_for(prompt, size)} blocks" if size else ""),
            )
        if size and self.server.facts.max_model_len:
            lines.append(
                f"reserving the whole context would have taken {blocks_for(self.server.facts.max_model_len, size)}"
            )
        return "\n".join(lines)

    def _why(self, *_: str) -> str:
        answer, events = self._last()
        told = (
            "request.waiting",
            "request.admitted",
            "request.preempted",
            "request.resumed",
            "stop.matched",
            *ENDS,
        )
        lines = []
        for event in (e for e in events if e["kind"] in told):
            facts = {
                k: v
                for k, v in event.items()
                if k not in ("kind", "seq", "ts_ns", "step", "src", "request_id", "why")
            }
            shown = ", ".join(
                f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()
            )
            why = f": {event['why']}" if event.get("why") else ""
            lines.append(f"step {event.get('step', 0):>4} {event['kind']}{why} ({shown})")
        return "\n".join(lines) or "the record has nothing about it any more"


# =================================================================================== 7. Report


class Report:
    """Gathers checks, shows them, and knows the exit code."""

    def __init__(self, url: str, options: dict):
        self.started = time.time()
        self.clock = time.perf_counter()
        self.url, self.options = url, options
        self.facts: Facts | None = None
        self.checks: list[Check] = []
        self.unusable: Unusable | None = None  # why no judgement was possible
        self.not_run: list[str] = []  # suites

    def of(self, verdict: str) -> list[Check]:
        return [c for c in self.checks if c.verdict == verdict]

    @property
    def exit_code(self) -> int:
        if self.unusable or self.not_run or not (self.of(PASS) or self.of(FAIL)):
            return 2
        return 1 if self.of(FAIL) else 0

    @property
    def verdict(self) -> str:
        return (PASS, FAIL, "NO JUDGEMENT")[self.exit_code]

    def print(self, console: Console) -> None:
        if self.checks:
            console.print(self._table())
        seconds = time.perf_counter() - self.clock
        style = {PASS: "bold green", FAIL: "bold red"}.get(self.verdict, "bold yellow")
        counts = f"{len(self.of(PASS))} passed, {len(self.of(FAIL))} failed, {len(self.of(NOT_OFFERED))} not offered"
        if not self.checks:
            counts = "nothing was judged"
        elif self.exit_code == 2:  # the word of success has no place beside a broken server
            counts = f"{len(self.of(FAIL))} of {len(self.checks)} checks failed"
        console.print(f"[{style}]{self.verdict}[/]  {counts}, {seconds:.1f} s", highlight=False)
        for check in self.of(FAIL):
            console.print(
                f"  {check.suite}/{check.name}: {escape(printable(check.evidence))}",
                highlight=False,
            )
        if self.unusable:
            console.print(
                f"{escape(printable(str(self.unusable)))}\n{escape(self.unusable.advice)}",
                highlight=False,
            )
        if self.not_run:
            console.print(f"not run: {', '.join(self.not_run)}", highlight=False)

    def _table(self) -> Table:
        table = Table(show_lines=True, expand=True)
        for header, ratio in (("check", 3), ("expected", 5), ("measured", 8)):
            table.add_column(header, ratio=ratio, overflow="fold")
        table.add_column("verdict", width=11)
        for c in self.checks:
            style = {PASS: "green", FAIL: "bold red"}.get(c.verdict, "yellow")
            measured = escape(printable(c.evidence))
            table.add_row(
                f"[bold]{c.suite}[/]\n{c.name}", c.expectation, measured, f"[{style}]{c.verdict}[/]"
            )
        return table

    def save(self, path: str) -> None:
        body = {
            "url": self.url,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.perf_counter() - self.clock, 3),
            "client": {"python": platform.python_version(), "httpx": httpx.__version__},
            "options": self.options,
            "server": asdict(self.facts) if self.facts else None,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "message": str(self.unusable) if self.unusable else "",
            "not_run": self.not_run,
            "counts": {v: len(self.of(v)) for v in (PASS, FAIL, NOT_OFFERED)},
            "checks": [asdict(c) for c in self.checks],
        }
        Path(path).write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")


async def run_suites(
    server: Server, names: Sequence[str], options: Options, report: Report, console: Console
) -> None:
    """Run them in order. Stops when the server is gone: `report.unusable` then says so."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        overall = progress.add_task("suites", total=len(names))
        answers = progress.add_task("answers", total=None)
        server.on_answer = lambda: progress.advance(answers)

        def on_check(check: Check) -> None:
            report.checks.append(check)
            mark = {PASS: "[green]✓[/]", FAIL: "[bold red]✗[/]"}.get(check.verdict, "[yellow]–[/]")
            progress.console.print(f"{mark} {check.suite}/{check.name}", highlight=False)

        for number, name in enumerate(names):
            suite = SUITES[name](server, options, on_check)
            progress.update(overall, description=f"{name}: {suite.title}")
            seen = len(report.checks)
            with contextlib.suppress(SuiteEnded):
                await suite.run()
            progress.advance(overall)
            if any(c.verdict == FAIL for c in report.checks[seen:]):
                try:
                    await probe(server, "/v1/models", required=True)
                except Unusable as gone:
                    report.unusable = Unusable(
                        f"during {name} the server went away: {gone}", gone.advice
                    )
                    report.not_run = list(names[number + 1 :])
                    return


# ===================================================================================== 8. Main


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    def number(kind: type, low: float) -> Callable[[str], Any]:
        def parse(text: str) -> Any:
            value = kind(text)
            if not value >= low:
                raise argparse.ArgumentTypeError(f"{text} is too small; at least {low}")
            return value

        parse.__name__ = kind.__name__  # argparse names it when the text is no number
        return parse

    parser = argparse.ArgumentParser(
        description="Test a running LLM server, or talk to it.",
        epilog="Exit code: 0 nothing failed, 1 a check failed, 2 no judgement was possible.",
    )
    add = parser.add_argument
    add("--url", default=os.environ.get("KOYEB_URL") or DEFAULT_URL, help=f"server; default: KOYEB_URL, else {DEFAULT_URL}")  # fmt: skip
    add("--api-key", default=os.environ.get("API_KEY") or None, help="default: API_KEY")
    add("--model", help="default: the first one that the server lists")
    add("--test", default="all", choices=("all", *SUITES), help="which suite; default: all")
    add("--num-requests", type=number(int, 2), default=8, metavar="N", help="for batch; default: 8")
    add(
        "--max-tokens",
        type=number(int, 2),
        metavar="N",
        help="of an answer; default: 64, in a chat 512",
    )
    add("--interactive", action="store_true", help="chat in the terminal")
    add("--json", metavar="FILE", help="write every check with its evidence")
    add("--timeout", type=number(float, 0.1), default=120.0, metavar="S", help="seconds for one request; default: 120")  # fmt: skip
    add("--wait", type=number(float, 0), nargs="?", const=LONGEST_WAIT, default=0, metavar="SECONDS",
        help=f"wait until a cold server is ready; without a number {LONGEST_WAIT} s")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    shown = {k: v for k, v in vars(args).items() if k not in ("api_key", "url", "json")}
    report = Report(base_url(args.url), shown)
    loop = asyncio.new_event_loop()
    server = Server(args.url, args.api_key, args.timeout)
    try:
        report.facts = facts = loop.run_until_complete(
            reach(server, args.model, args.wait, console)
        )
        if args.interactive:
            return Chat(server, loop, console, args.max_tokens or 512).run()
        length = f", context {facts.max_model_len}" if facts.max_model_len else ""
        console.print(f"[bold]{escape(facts.model)}[/]{length} at {escape(server.url)}"
                      f" ({escape(' '.join([facts.made_by, facts.version]).strip() or 'unknown make')})")  # fmt: skip
        loop.run_until_complete(first_token(server))
        names = list(SUITES) if args.test == "all" else [args.test]
        options = Options(args.num_requests, args.max_tokens or 64)
        loop.run_until_complete(run_suites(server, names, options, report, console))
    except Unusable as reason:
        report.unusable = reason
    except KeyboardInterrupt:
        console.print("interrupted: nothing is claimed")
        return 130
    finally:
        with contextlib.suppress(Exception):
            loop.run_until_complete(server.http.aclose())
        loop.close()
    report.print(console)
    if args.json:
        report.save(args.json)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
