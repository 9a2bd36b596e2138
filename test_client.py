#!/usr/bin/env python3
"""Test a running LLM server from your laptop, or talk to it. One file.

    pip install httpx rich
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
import ast
import asyncio
import contextlib
import functools
import importlib
import io
import itertools
import json
import math
import operator
import os
import platform
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import httpx
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

DEFAULT_URL = "http://127.0.0.1:8000"
LONGEST_WAIT = 1200  # seconds; what a plain --wait waits for a cold instance
PROBE_SECONDS = 10.0  # what a server may take to say that it lives

# ================================================================================= 1. Verdicts

PASS, FAIL, NOT_OFFERED = "PASS", "FAIL", "NOT OFFERED"
STYLES = {PASS: "bold green", FAIL: "bold red", NOT_OFFERED: "yellow"}
MARKS = {PASS: "✓", FAIL: "✗", NOT_OFFERED: "–"}
ABSENT = (404, 405, 501)  # how servers say that they have no such route


class Failed(Exception):
    """What was measured isn't what was expected."""


class BadAnswer(Failed):
    """The answer breaks the protocol: no JSON, a missing field, a stream without its end."""


class Refused(Failed):
    """The server answered with an error. `status` and `body` are kept for those who expect one."""

    def __init__(self, response: httpx.Response):
        self.status, self.body = response.status_code, response.text
        super().__init__(f"HTTP {self.status}: {error_text(self.body)}")

    @property
    def without_chat(self) -> bool:
        """The server has no chat, or its model no chat template."""
        return self.status in ABSENT or (self.status == 400 and "template" in self.body)


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
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)


# ================================================================================== 2. Answers


class Thought(str):
    """Text of what a model thinks before it answers."""


@dataclass
class Answer:
    """One answer (its first choice), gathered from one body or from the chunks of a stream."""

    id: str = ""
    text: str = ""
    reasoning: str = ""
    calls: list[dict] = field(default_factory=list)  # of tools, as a message has them
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
            thought = message.get("reasoning_content") or message.get("reasoning") or ""
            for call in message.get("tool_calls") or ():
                self._take_call(call)
            if message.get("role"):
                self.roles.append(message["role"])
            if choice.get("finish_reason"):
                self.finish.append(choice["finish_reason"])
            if choice.get("logprobs"):
                self.logprobs = choice["logprobs"]
            if isinstance(choice.get("token_ids"), list):
                self.token_ids = (self.token_ids or []) + choice["token_ids"]
            self.reasoning += thought
            self.text += text
            for part in filter(None, (Thought(thought), text)):
                self.arrivals.append(now)
                if on_text:
                    on_text(part)

    def _take_call(self, new: Any) -> None:
        """Add a call, or what is new of one; a whole body's calls have no index."""
        if not isinstance(new, dict) or not isinstance(new.get("function"), dict):
            raise BadAnswer("an entry of `tool_calls` isn't a call")
        place = new.get("index", len(self.calls))
        if place == len(self.calls):
            function = {"name": "", "arguments": ""}
            self.calls.append({"id": "", "type": "function", "function": function})
        elif place not in range(len(self.calls)):
            raise BadAnswer(f"call {place} comes before call {len(self.calls)}")
        call = self.calls[place]
        call["id"] += new.get("id") or ""
        for name in ("name", "arguments"):
            call["function"][name] += new["function"].get(name) or ""

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
        first, tokens = self.ttft, self.count("completion_tokens") - 1
        span = self.arrivals[-1] - first
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
    """A page of /metrics. The value of a name is the sum over its label sets."""

    LINE = re.compile(
        r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+([-+]?[\d.]+(?:[eE][-+]?\d+)?|\+?Inf|NaN)"
    )

    def __init__(self, text: str):
        self.values: dict[str, float] = {}
        self.labels: dict[str, dict[str, str]] = {}
        for match in filter(None, map(self.LINE.match, text.splitlines())):
            name, labels, value = match.groups()
            self.values[name] = self.values.get(name, 0.0) + float(value)
            self.labels[name] = dict(re.findall(r'(\w+)="([^"]*)"', labels or ""))

    def first(self, *names: str) -> float:
        """The value of the first of these names that the page has."""
        for name in names:
            if name in self.values:
                return self.values[name]
        raise NotOffered(f"/metrics has no {names[0]}")

    @property
    def running(self) -> float:
        return self.first("vllm:num_requests_running", "llamacpp:requests_processing")

    @property
    def waiting(self) -> float:
        return self.first("vllm:num_requests_waiting", "llamacpp:requests_deferred")

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
    made_by: str = ""  # `owned_by` of the model card: "vllm", "llamacpp", …
    version: str = ""
    max_model_len: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    prefix_caching: bool | None = None
    seats: int | None = None  # requests that can run at once, where it says so


class Server:
    """Speaks to one server. Every time is measured from just before the request is sent."""

    def __init__(self, url: str, api_key: str | None, timeout: float):
        self.url = base_url(url)
        self.timeout = timeout  # seconds for one whole request
        self.facts = Facts()
        self.on_answer: Callable[[], None] = lambda: None
        key = (api_key or "").strip()  # a form or a file of secrets may have added a line end
        self.has_key = bool(key)
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        self.http = httpx.AsyncClient(
            base_url=self.url,
            headers={b"Authorization": b"Bearer " + key.encode()} if key else {},
            timeout=httpx.Timeout(timeout, connect=PROBE_SECONDS),
            limits=httpx.Limits(max_connections=None),  # N at once means N at once
            trust_env=not local,  # a proxy can't reach this machine
        )

    async def request(
        self, method: str, path: str, limit: float | None = None, **options: Any
    ) -> httpx.Response:
        """Any request, read to its end. Raises `Unreachable`; the status is the caller's matter."""
        with reachable(limit or self.timeout):
            exchange = self.http.request(method, path, **options)
            return await asyncio.wait_for(exchange, limit or self.timeout)

    async def ask(
        self,
        prompt: str | list[dict],
        *,
        stream: bool = False,
        whole: bool = True,
        into: Answer | None = None,
        on_text: Callable[[str], None] | None = None,
        **params: Any,
    ) -> Answer:
        """One completion (a text) or chat answer (a list of messages).

        `whole=False` waits as long as bytes keep coming (a chat). `into` lets the caller see the
        answer grow, and keep it when it is cancelled. Raises `Failed` or `Unreachable`.
        """
        answer, chat = into or Answer(), not isinstance(prompt, str)
        body = {"model": self.facts.model, "messages" if chat else "prompt": prompt, **params}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        answer.sent = time.perf_counter()
        try:
            with reachable(self.timeout, answer):
                exchange = self._exchange(path, body, answer, on_text)
                await asyncio.wait_for(exchange, self.timeout if whole else None)
        finally:
            answer.seconds = time.perf_counter() - answer.sent
        self.on_answer()
        return answer

    async def _exchange(
        self, path: str, body: dict, answer: Answer, on_text: Callable[[str], None] | None
    ) -> None:
        async with self.http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise Refused(response)
            if not body.get("stream"):
                answer.take(parse_json(await response.aread()))
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

    async def get(self, path: str) -> httpx.Response:
        """Something that not every server has. Raises `NotOffered` or `Failed`."""
        return offered(await self.request("GET", path, PROBE_SECONDS), path)

    async def metrics(self) -> Metrics:
        return Metrics((await self.get("/metrics")).text)

    async def count_tokens(self, text: str, special: bool) -> int:
        """Tokens of `text` as the server cuts it; `special`: with those that a prompt gets."""
        bodies = (
            {"model": self.facts.model, "prompt": text, "add_special_tokens": special},
            {"content": text, "add_special": special},  # llama.cpp's way
        )
        for body in bodies:
            response = await self.request("POST", "/tokenize", json=body)
            tokens = parse_json(offered(response, "/tokenize").text).get("tokens")
            if isinstance(tokens, list) and (tokens or not text):
                return len(tokens)
        raise NotOffered("/tokenize gives no tokens")

    async def record(self, ids: Sequence[str]) -> list[dict]:
        """What the record has of the requests with these answer ids, oldest first: their own
        events, the steps that computed for them, the size of the cache.

        Waits up to 3 s for the end of each. Raises `NotOffered` if there is no record of them.
        """
        start, mine = time.perf_counter(), []
        ids = [id for id in ids if id][:MOST_RECORDED]
        path = "/trace?" + "&".join(f"request_id={quote(id)}" for id in ids)
        while True:
            response = offered(await self.request("GET", path, PROBE_SECONDS), "/trace")
            if "html" in response.headers.get("content-type", ""):
                raise NotOffered("/trace is a web page here")
            events = [parse_json(line) for line in response.text.splitlines()]
            mine = [e for e in events if any(owns(id, e.get("request_id", "")) for id in ids)]
            over = [e["request_id"] for e in mine if e["kind"] in ENDS]
            ended = all(any(owns(id, request) for request in over) for id in ids)
            if ended or time.perf_counter() - start > 3.0:
                break
            await asyncio.sleep(0.1)
        if not mine:
            raise NotOffered("/trace has no event of this request (is the record off?)")
        return events


ENDS = ("request.finished", "request.aborted")
MOST_RECORDED = 100  # requests that a server's record is asked about at once


def owns(answer_id: str, request_id: str) -> bool:
    """Is this a request of that answer? "cmpl-7" has "cmpl-7" itself, "cmpl-7.1", "cmpl-7:1"."""
    beginnings = (f"{answer_id}.", f"{answer_id}:")
    return bool(answer_id) and (request_id == answer_id or request_id.startswith(beginnings))


@contextlib.contextmanager
def reachable(limit: float, answer: Answer | None = None) -> Iterator[None]:
    """Turns whatever can happen to a connection into `Unreachable`."""
    try:
        yield
        return
    except (TimeoutError, httpx.TimeoutException):
        said = f"no complete answer within {limit:g} s"
    except httpx.HTTPError as error:
        said = f"the connection broke ({describe(error)})"
    had = f"; {len(answer.text)} characters had come" if answer and answer.text else ""
    raise Unreachable(said + had)


def offered(response: httpx.Response, what: str) -> httpx.Response:
    if response.status_code in ABSENT:
        raise NotOffered(f"the server has no {what} (HTTP {response.status_code})")
    if response.status_code != 200:
        raise Refused(response)
    return response


def base_url(url: str) -> str:
    """The address without path: accepts `app.koyeb.app`, a trailing slash, a trailing /v1."""
    if "://" not in url:
        url = ("http://" if re.match(r"127\.|localhost\b|\[::1\]", url) else "https://") + url
    return re.sub(r"/+(v1/*)?$", "", url.strip())


def describe(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}".rstrip(": "), 120)


# ============================================================================== 4. Reaching it

LOOK = "Look at the server's log, and check --url: the server's address, without a path."


async def read_facts(server: Server, model: str | None) -> Facts:
    """Find out whether the server can be judged, and what it says of itself. Raises `Unusable`."""
    await probe(server, "/health", required=False)
    response = await probe(server, "/v1/models", required=True)
    try:
        cards = {str(card["id"]): card for card in json.loads(response.text)["data"]}
    except (ValueError, KeyError, TypeError):
        said = f"/v1/models isn't a list of models: {one_line(response.text, 80)}"
        raise Unusable(f"{server.url}{said}", LOOK) from None
    card = cards.get(model) if model else next(iter(cards.values()), None)
    if card is None:
        said = f"the model {model} isn't served; served: {', '.join(cards) or 'none'}"
        raise Unusable(said, "Name one of these with --model, or leave --model out.")
    facts = Facts(model=str(card["id"]), made_by=str(card.get("owned_by") or ""))
    facts.max_model_len = card.get("max_model_len")
    absent = contextlib.suppress(
        Unreachable, Failed, NotOffered, AttributeError, LookupError, ValueError
    )
    with absent:
        facts.version = str(parse_json((await server.get("/version")).text)["version"])
    with absent:  # llama.cpp
        props = parse_json((await server.get("/props")).text)
        facts.seats = props.get("total_slots")
        facts.max_model_len = props["default_generation_settings"]["n_ctx"]
    with absent:
        info = (await server.metrics()).labels.get("vllm:cache_config_info", {})
        facts.block_size = int(info.get("block_size", 0)) or None
        facts.num_blocks = int(info.get("num_gpu_blocks", 0)) or None
        caching = info.get("enable_prefix_caching", "").lower()
        facts.prefix_caching = caching in ("true", "1") if caching else None
    return facts


async def probe(server: Server, path: str, required: bool) -> httpx.Response:
    """GET something that a usable server has. Raises `NotReady` or `Unusable`, with advice."""
    try:
        response = await server.request("GET", path, min(PROBE_SECONDS, server.timeout))
    except Unreachable as error:
        advice = "Is it started, and is --url (or KOYEB_URL) right? A cold instance: add --wait."
        raise NotReady(f"{server.url}{path}: {error}", advice) from None
    status = response.status_code
    said = f"HTTP {status} on {server.url}{path}: {error_text(response.text)}"
    if status in (502, 503, 504):
        raise NotReady(f"the server isn't ready ({said})", "Wait for it: add --wait.")
    if status in (401, 403):
        verb = "refuses the key that was given" if server.has_key else "wants an API key"
        advice = "Pass the key that it was started with: --api-key, or API_KEY in the environment."
        raise Unusable(f"the server {verb} ({said})", advice)
    if status != 200 and (required or status >= 500):
        raise Unusable(f"this isn't a working OpenAI-compatible server ({said})", LOOK)
    return response


async def reach(server: Server, model: str | None, wait: float, console: Console) -> Facts:
    """`read_facts`, polling for up to `wait` seconds while the server is cold."""
    start, shown = time.perf_counter(), ("", 0)
    spinner = console.status("") if wait and console.is_terminal else None
    with spinner or contextlib.nullcontext():
        while True:
            try:
                server.facts = await read_facts(server, model)
                return server.facts
            except NotReady as reason:
                waited = time.perf_counter() - start
                if waited >= wait:
                    late = f"not ready after {waited:.0f} s: " if wait else ""
                    raise Unusable(f"{late}{reason}", reason.advice) from None
                line = escape(f"waiting, {waited:.0f} of at most {wait:.0f} s: {reason}")
                if spinner:
                    spinner.update(line)
                elif shown != (shown := (str(reason), int(waited / 15))):
                    console.print(line)  # when the reason changes, and every 15 s
                await asyncio.sleep(min(2.0, wait - waited))


async def first_token(server: Server) -> None:
    """A server that can't produce one token is wrong, whatever its /health says."""
    try:
        answer = await server.ask("Hello", max_tokens=1, temperature=0)
        if not answer.finish:
            raise BadAnswer("the answer has no finish_reason")
    except (Failed, Unreachable) as error:
        said = f"the server is up, but a request for one token fails: {error}"
        raise Unusable(said, LOOK) from None


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
    "river stone garden window lantern mountain winter bread copper silver harbor teacher letter"
)
GREEDY = {"temperature": 0, "ignore_eos": True}
# Nats. bf16 keeps 8 bits, so a logit between 16 and 32 is a multiple of 1/8. Computed in another
# order (alone or in company, with or without cached blocks) each of two may come out one step off.
TIE = 0.25
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def fresh_text(num_words: int) -> str:
    """A text that no server has seen: random words, its beginning already unlike any other's."""
    draw = random.SystemRandom()
    words = (draw.choice(WORDS.split()) for _ in range(num_words - 1))
    return " ".join([str(draw.randrange(10_000)), *words])


@dataclass
class Options:
    num_requests: int = 8
    max_tokens: int = 64


class Suite:
    """One subject. `run` sends requests and judges what comes by what `expects` states."""

    name = ""
    title = ""
    expects: ClassVar[dict[str, str]] = {}

    def __init__(self, server: Server, options: Options, on_check: Callable[[Check], None]):
        self.server, self.options, self.on_check = server, options, on_check
        self.facts, self.ask = server.facts, server.ask

    async def run(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def check(self, name: str, vital: bool = False) -> Iterator[Check]:
        """Judge one expectation. `SuiteEnded` if a vital one doesn't pass, or no answer comes."""
        check = Check(self.name, name, self.expects[name])
        start, end_suite = time.perf_counter(), vital
        try:
            yield check
            check.verdict = PASS if check.evidence else FAIL
            end_suite = vital and not check.evidence
        except NotOffered as reason:
            check.verdict, check.evidence = NOT_OFFERED, str(reason)
        except Unreachable as error:
            check.measured(str(error))
            end_suite = True
        except Failed as error:
            check.measured(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            check.measured(f"the answer isn't shaped as it should be ({describe(error)})")
        check.seconds = time.perf_counter() - start
        self.on_check(check)
        if end_suite:
            raise SuiteEnded

    async def words_for(self, tokens: int) -> int:
        """How many words of ours make that many tokens, or as many as fit: tried with a few."""
        tokens = min(tokens, (self.facts.max_model_len or 2048) * 6 // 10)
        if self.facts.num_blocks and self.facts.block_size:
            tokens = min(tokens, self.facts.num_blocks * self.facts.block_size // 2)
        tried = await self.ask(fresh_text(40), max_tokens=1)
        return max(8, tokens * 40 // (tried.count("prompt_tokens") if tried.usage else 120))

    async def chat(self, **params: Any) -> Answer:
        """A chat answer. Raises `NotOffered` without a chat route, or without a chat template."""
        try:
            return await self.ask([{"role": "user", "content": QUESTIONS[2]}], **params)
        except Refused as refused:
            if refused.without_chat:
                raise NotOffered(str(refused)) from None
            raise

    async def same_text(self, prompt: str, a: Answer, b: Answer, **params: Any) -> tuple[bool, str]:
        """Do two greedy answers agree? (agree, what was seen)

        Where they part, the two best candidates may be equally probable up to rounding (see
        `TIE`): that is a tie, and counts as agreement, with its gap stated.
        """
        if a.text == b.text:
            return True, "equal"
        pairs = enumerate(itertools.zip_longest(a.text, b.text))
        common = next(i for i, (x, y) in pairs if x != y)
        here = f"{a.text[common:][:12]!r}, {b.text[common:][:12]!r}"
        seen = f"they part after {common} characters ({here})"
        with contextlib.suppress(Failed, KeyError, TypeError, IndexError, ValueError):
            again = (await self.ask(prompt, logprobs=5, **params)).logprobs or {}
            ends = itertools.accumulate(map(len, again["tokens"]))
            at = next(i for i, end in enumerate(ends) if end > common)
            best, second = sorted(again["top_logprobs"][at].values(), reverse=True)[:2]
            seen += f", where the best candidate leads by {best - second:.3f} nats"
            return best - second <= TIE, seen
        return False, seen


class Single(Suite):
    name, title = "single", "one request alone"
    expects: ClassVar = {
        "answers": "a request is answered with text and one finish_reason",
        "first token": "text arrives before the answer is complete (TTFT)",
        "speed": "tokens come one after another, so that their rate can be measured",
        "usage": "the counts add up and fit the limit and the text",
        "tokenizer": "usage counts what the server's own /tokenize counts",
        "chat": "a chat message is answered by the assistant",
    }

    async def run(self) -> None:
        limit = self.options.max_tokens
        params = {"max_tokens": limit, **GREEDY}
        with self.check("answers", vital=True) as c:
            whole = await self.ask(QUESTIONS[0], return_token_ids=True, **params)
            c.measured(f"{len(whole.text)} characters in {whole.seconds:.2f} s, {whole.finish}")
            c.require(bool(whole.text), "the text is empty")
            c.require(len(whole.finish) == 1, "finish_reason must be there exactly once")
        with self.check("first token", vital=True) as c:
            answer = await self.ask(QUESTIONS[0], stream=True, **params)
            c.measured(f"TTFT {answer.ttft * 1000:.0f} ms of {answer.seconds * 1000:.0f} ms")
            c.require(len(set(answer.arrivals)) > 1, "everything arrived at one moment")
        with self.check("speed") as c:
            if answer.usage is None:
                raise NotOffered("no usage in the stream, so its tokens can't be counted")
            rate, between = answer.rate()
            gaps = sorted(b - a for a, b in itertools.pairwise(answer.arrivals))
            p95 = gaps[int((len(gaps) - 1) * 0.95)]
            c.measured(f"{rate:.1f} tokens/s, {between * 1000:.1f} ms between tokens")
            c.measured(f"95 % of the pieces within {p95 * 1000:.1f} ms of the last")
        with self.check("usage") as c:
            prompt, drawn, total = map(whole.count, COUNTS)
            ids = whole.token_ids
            c.measured(f"{prompt} + {drawn} = {total}, limit {limit}, {whole.finish[0]}")
            c.measured(f"{drawn if ids is None else len(ids)} token ids")
            c.require(prompt + drawn == total, "they don't add up")
            c.require(prompt > 0 and 0 < drawn <= limit, "the counts are impossible")
            c.require(whole.finish != ["length"] or drawn == limit, "ended before its limit")
            c.require(ids is None or len(ids) == drawn, "another number of token ids")
            pieces = len(answer.arrivals) - 1  # the last one may be text that was held back
            counted = answer.usage is None or pieces <= answer.count("completion_tokens")
            c.require(counted, f"the stream had {pieces + 1} pieces of text, more than tokens")
        with self.check("tokenizer") as c:
            prompt = await self.server.count_tokens(QUESTIONS[0], special=True)
            again = await self.server.count_tokens(whole.text, special=False)
            said, drawn = whole.count("prompt_tokens"), whole.count("completion_tokens")
            c.measured(f"prompt {said}, tokenized {prompt}")
            c.measured(f"output {drawn}, its text tokenized again {again}")
            c.require(said == prompt, "the prompt's count differs")
            # Tokens that were drawn needn't be those that their text is cut into, but nearly.
            near = abs(drawn - again) <= max(3, drawn // 4) or whole.token_ids is not None
            c.require(near, "the output's count doesn't fit its text")
        with self.check("chat") as c:
            chat = await self.chat(max_tokens=limit)
            c.measured(f"{one_line(chat.text, 60)!r}, {chat.finish}")
            c.require(chat.roles == ["assistant"], f"the role is {chat.roles}")
            c.require(len(chat.finish) == 1, "finish_reason must be there exactly once")


class Batch(Suite):
    name, title = "batch", "many at once"
    expects: ClassVar = {
        "all answered": "N requests one by one, then the same N at once, are all answered",
        "shared steps": "the server's own record shows requests that were computed together",
        "speed-up": "at once is 1.3 times as fast or more (a mere queue: 1.0); up to 3 rounds",
        "same answers": "greedy answers are the same alone and in company",
    }

    most: float = math.inf  # how many ran at a time, if the server tells

    async def run(self) -> None:
        n = self.options.num_requests
        prompts = [f"{QUESTIONS[i % len(QUESTIONS)]} ({i + 1})" for i in range(n)]
        params = {"max_tokens": self.options.max_tokens, **GREEDY}
        with self.check("all answered", vital=True) as c:
            gains: list[float] = []
            while not gains or (gains[-1] < 1.3 and len(gains) < 3):  # the machine may be busy
                start = time.perf_counter()
                alone = [await self.ask(p, **params) for p in prompts]
                one_by_one = time.perf_counter() - start
                # All are the same work, so a hiccup of the machine in some of them counts little.
                usual = n * statistics.median(answer.seconds for answer in alone)
                async with Sampler(self.server) as sampler:
                    start = time.perf_counter()
                    together = await asyncio.gather(*(self.ask(p, **params) for p in prompts))
                    at_once = time.perf_counter() - start
                # A queue, too, hides the way there and back of all but one when they come at once.
                gains.append((usual - (n - 1) * await self._round_trip()) / at_once)
            c.measured(f"{n} in {one_by_one:.2f} s one by one, in {at_once:.2f} s at once")
        with self.check("shared steps") as c:
            self._several_seats()
            try:
                events = await self.server.record([a.id for a in together])
            except NotOffered:
                self.most = peak = sampler.peak("running")
                c.measured(
                    f"{peak:.0f} ran together, as {len(sampler.rows)} samples of /metrics say"
                )
                c.require(peak >= 2, "never two at a time")
            else:
                self._judge_steps(c, events, together)
        with self.check("speed-up") as c:
            self._several_seats()
            tokens = sum(a.count("completion_tokens") for a in together)
            c.measured(f"{gains[-1]:.2f}× in round {len(gains)}, the network's time left out")
            c.measured(f"{tokens / at_once:.1f} tokens/s at once")
            c.require(gains[-1] >= 1.3, "no gain from running them together")
            c.require(self.most >= 2, "but never two at a time: a busy machine, not batching")
        with self.check("same answers") as c:
            compared = [
                await self.same_text(prompt, a, b, **params)
                for prompt, a, b in zip(prompts, alone, together)
            ]
            c.measured(f"{sum(seen == 'equal' for _, seen in compared)} of {n} equal")
            for number, (same, seen) in enumerate(compared, 1):
                if seen != "equal":
                    c.measured(f"request {number}: {seen}" + (" (a tie)" if same else ""))
            c.require(all(same for same, _ in compared), "not the same text")

    async def _round_trip(self) -> float:
        """Seconds that a request takes when there is nothing to compute."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            await self.server.request("GET", "/v1/models")
            times.append(time.perf_counter() - start)
        return min(times)

    def _several_seats(self) -> None:
        if self.facts.seats == 1:
            raise NotOffered("the server runs one request at a time (total_slots 1)")

    def _judge_steps(self, c: Check, events: list[dict], answers: list[Answer]) -> None:
        steps = [e for e in events if e["kind"] == "step.planned"]
        together = [
            {a.id for a in answers for row in s["rows"] if owns(a.id, row[0])} for s in steps
        ]
        most, step = max((len(ids), s.get("step", 0)) for ids, s in zip(together, steps))
        self.most = most
        drawn = sum(a.count("completion_tokens") for a in answers)
        c.measured(f"{most} of {len(answers)} in one step (step {step})")
        c.measured(f"{drawn} tokens in {len(steps)} steps")
        c.require(most >= 2, "no step computed two of them")
        c.require(len(steps) < drawn, "as many steps as tokens")


class Sampler:
    """Reads /metrics over and over while something runs. Without /metrics it stays empty."""

    def __init__(self, server: Server):
        self.server, self.rows, self.reason = server, [], "no sample was taken"
        self.over = False  # not a cancellation: before Python 3.12 `wait_for` may swallow that

    async def __aenter__(self) -> Sampler:
        self.task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.over = True
        await self.task

    async def _sample(self) -> None:
        try:
            while not self.over:
                self.rows.append(await self.server.metrics())
                await asyncio.sleep(0.03)
        except (NotOffered, Failed, Unreachable) as reason:
            self.reason = str(reason)

    def peak(self, what: str) -> float:
        if not self.rows:
            raise NotOffered(self.reason)
        peak = max(getattr(row, what) for row in self.rows)
        if peak == 0:
            raise NotOffered(f"/metrics showed nothing in {len(self.rows)} samples")
        return peak


@dataclass
class Pages:
    """What the record says of one request's block table."""

    table: dict[int, int] = field(default_factory=dict)  # position in the table → block
    shared: int = 0  # positions filled with blocks that were there already: prefix cache
    grants: list[tuple[int, int, int]] = field(default_factory=list)  # (step, position, blocks)
    freed: list[int] = field(default_factory=list)
    preempted: int = 0

    @classmethod
    def of(cls, events: Iterable[dict], answer_id: str) -> Pages:
        pages = cls()
        for event in (e for e in events if owns(answer_id, e.get("request_id", ""))):
            kind, index, blocks = event["kind"], event.get("index", 0), event.get("blocks", [])
            if kind in ("block.allocated", "block.shared"):
                pages.table.update(enumerate(blocks, index))
            if kind == "block.allocated":
                pages.grants.append((event.get("step", 0), index, len(blocks)))
            elif kind == "block.shared":
                pages.shared += len(blocks)
            elif kind == "block.copied":
                pages.table[index] = event.get("dst", 0)
            elif kind == "block.freed":
                pages.freed += blocks
            pages.preempted += kind == "request.preempted"
        return pages

    @property
    def all_back(self) -> bool:
        return sorted(self.freed) == sorted(self.table.values())


def blocks_for(tokens: int, block_size: int) -> int:
    return math.ceil(tokens / block_size)


class Paging(Suite):
    name, title = "paging", "memory in blocks"
    expects: ClassVar = {
        "blocks visible": "the server states its block size, and which blocks a request has",
        "requests": "short and long requests run side by side",
        "blocks used": "blocks = ceil(tokens with K/V / block size); the last token drawn has none",
        "growth": "while drawing, blocks come one at a time, when the last one is full",
        "given back": "at its end a request gives back every block that it had",
        "pool after": "the pool is as full as before, within 3 s",
        "reserving": "paging takes less than reserving the whole context for each request",
    }

    async def run(self) -> None:
        with self.check("blocks visible", vital=True) as c:
            size, on_record = await self._block_size()
            source = "/trace" if on_record else "vllm:cache_config_info"
            c.measured(f"{size} tokens in a block, {self.facts.num_blocks} blocks ({source})")
        words, context = await self.words_for(12 * size), self.facts.max_model_len or 1024
        jobs = {
            "short": (fresh_text(4), max(2, size // 2)),
            "medium": (fresh_text(words // 3), size),
            "long": (fresh_text(words), min(3 * size + 5, context // 4)),
        }
        with self.check("requests", vital=True) as c:
            before = await self._kv_usage()
            async with Sampler(self.server) as sampler:
                sent = (self.ask(text, max_tokens=m, **GREEDY) for text, m in jobs.values())
                answers = dict(zip(jobs, await asyncio.gather(*sent)))
            tokens = {name: sum(map(a.count, COUNTS[:2])) for name, a in answers.items()}
            for name, answer in answers.items():
                prompt, drawn, _ = map(answer.count, COUNTS)
                c.measured(f"{name} {prompt} + {drawn} tokens")
        if on_record:
            await self._judge_record(answers, tokens, size)
        else:
            with self.check("blocks used") as c:
                most = sum(blocks_for(t, size) for t in tokens.values())
                peak = sampler.peak("kv_usage") * (self.facts.num_blocks or 0)
                c.measured(
                    f"{peak:.0f} at most, in {len(sampler.rows)} samples; by that rule {most}"
                )
                c.require(peak <= most + len(answers), "more blocks than paging needs")
        with self.check("pool after") as c:
            if before is None:
                raise NotOffered("/metrics has no vllm:kv_cache_usage_perc")
            waited, now = await until(self._kv_usage, lambda usage: usage <= before, 3.0)
            c.measured(f"{before:.4%} before, {now:.4%} after {waited:.2f} s")
            c.require(now <= before, "blocks are still in use")
        with self.check("reserving") as c:
            if self.facts.max_model_len is None:
                raise NotOffered("the server doesn't state its context length")
            paged = sum(blocks_for(t, size) for t in tokens.values())
            reserved = len(tokens) * blocks_for(context, size)
            filled = sum(tokens.values()) / size
            c.measured(f"paging {paged} blocks, {filled / paged:.0%} of their slots filled")
            c.measured(
                f"reserving {context} tokens each {reserved}, {filled / reserved:.0%} filled"
            )
            c.require(paged < reserved, "no less than reserving")

    async def _block_size(self) -> tuple[int, bool]:
        """(tokens in a block, whether the record shows the blocks of a request)"""
        one = await self.ask(fresh_text(4), max_tokens=2)
        try:
            events = await self.server.record([one.id])
        except NotOffered as reason:
            if not self.facts.block_size or not self.facts.num_blocks:
                raise NotOffered(f"{reason}, and /metrics has no block size") from None
            return self.facts.block_size, False
        size = block_size(events) or self.facts.block_size
        if not size:
            raise NotOffered("the block size is neither in /trace nor in /metrics")
        return size, True

    async def _kv_usage(self) -> float | None:
        try:
            return (await self.server.metrics()).kv_usage
        except NotOffered:
            return None

    async def _judge_record(self, answers: dict[str, Answer], tokens: dict, size: int) -> None:
        with self.check("blocks used", vital=True) as c:
            events = await self.server.record([a.id for a in answers.values()])
            pages = {name: Pages.of(events, a.id) for name, a in answers.items()}
            if any(p.preempted for p in pages.values()):
                raise NotOffered("a request was preempted meanwhile; ask again on a quiet server")
            for name, page in pages.items():
                right = {blocks_for(tokens[name] - 1, size), blocks_for(tokens[name], size)}
                c.measured(f"{name}: {tokens[name] - 1} → {len(page.table)} blocks")
                c.require(len(page.table) in right, f"{min(right)} were expected")
        with self.check("growth") as c:
            first = blocks_for(answers["long"].count("prompt_tokens"), size)
            grown = [grant for grant in pages["long"].grants if grant[1] >= first]
            if not grown:
                raise NotOffered("the answer ended before it needed another block")
            came = ", ".join(f"+{blocks} at step {step}" for step, _, blocks in grown)
            c.measured(f"long: {first} for its prompt, then {came}")
            steps = [step for step, _, _ in grown]
            c.require(all(blocks == 1 for _, _, blocks in grown), "several blocks at a time")
            c.require(len(set(steps)) == len(steps), "several blocks in one step")
        with self.check("given back") as c:
            for name, page in pages.items():
                c.measured(f"{name}: {len(page.freed)} of {len(page.table)}")
            c.require(all(page.all_back for page in pages.values()), "not the same blocks")


def block_size(events: Iterable[dict]) -> int | None:
    return next((e.get("block_size") for e in events if e["kind"] == "engine.kv_sized"), None)


async def until(read: Callable, good: Callable, limit: float) -> tuple[float, Any]:
    """Read again and again until it is good or the time is up: (seconds passed, last value)."""
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
    expects: ClassVar = {
        "temperature 0": "three times the same text",
        "diversity": "grows: 0 at temperature 0, more at 0.2, more again at 1.5 if it can",
        "seed": "the same seed draws the same text, another seed another",
    }

    async def run(self) -> None:
        limit = min(self.options.max_tokens, 64)

        async def draw(temperature: float, seed: int | None = None) -> str:
            answer = await self.ask(
                STORY, temperature=temperature, max_tokens=limit, **({"seed": seed} if seed else {})
            )
            return answer.text

        with self.check("temperature 0", vital=True) as c:
            cold = [await draw(0) for _ in range(3)]
            c.measured(f"{len(set(cold))} different text(s), {one_line(cold[0], 50)!r}")
            c.require(bool(cold[0].strip()), "the text is empty")
            c.require(len(set(cold)) == 1, "they differ")
        with self.check("diversity") as c:
            low, high = [
                diversity(await asyncio.gather(*(draw(t, seed) for seed in range(1, 9))))
                for t in (
                    0.2,
                    1.5,
                )  # from about 0.5 on, eight short texts differ as much as they can
            ]
            c.measured(
                f"words that differ, mean over pairs: 0 at 0, {low:.2f} at 0.2, {high:.2f} at 1.5"
            )
            saturated = low > 0.85  # flat probabilities: hardly a word is shared already
            c.require(low > 0 and (low < high or saturated), "it doesn't grow")
        with self.check("seed") as c:
            a, b, other = [await draw(1.0, seed) for seed in (7, 7, 8)]
            shown = ["different", "equal"]
            c.measured(f"seed 7 twice: {shown[a == b]}; seed 8: {shown[a == other]}")
            c.require(a == b, "a seed doesn't repeat")
            c.require(a != other, "the seed has no effect")


class Prefix(Suite):
    name, title = "prefix", "a prompt seen before"
    PROMPTS, LONGEST, SHORTEST = 5, 1500, 96  # the last two in tokens
    AROUND, DRAWN = 48, 8  # tokens that may stand around a prompt's words, and that are drawn
    SLOW_ENOUGH = 1000  # tokens: a prompt so long takes clearly longer than one that is found
    expects: ClassVar = {
        "asked twice": "long new prompts are answered, twice each: five, or what the pool can keep",
        "cached tokens": "none the first time; then all full blocks before the last token",
        "faster": "the first token comes earlier the second time (the best of all each)",
        "same answers": "greedy answers are the same from the cache",
    }

    async def run(self) -> None:
        params = {"max_tokens": self.DRAWN, "temperature": 0}
        with self.check("asked twice", vital=True) as c:
            count, each = self._fitting()
            if not count:
                raise NotOffered(
                    f"the pool of {self.facts.num_blocks} blocks can't keep one prompt of"
                    f" {self.SHORTEST} tokens: it evicts what it would have to find again"
                )
            words = await self.words_for((each - self.AROUND) * 9 // 10)
            prompts = [fresh_text(words) + "\nThe end. Next:" for _ in range(count)]
            if each < self.LONGEST:
                c.measured(f"{count} of at most {each} tokens, for all to stay in the pool")
            hits = [await self._hits()]
            cold = [await self.ask(p, stream=True, **params) for p in prompts]
            hits.append(await self._hits())
            warm = [await self.ask(p, stream=True, **params) for p in prompts]
            hits.append(await self._hits())
            tokens = [a.count("prompt_tokens") if a.usage else 0 for a in warm]
            c.measured(f"{tokens[0] or 'an unknown number of'} tokens in the first one")
        source = "usage"
        first, again = (sum_known(a.cached_tokens for a in answers) for answers in (cold, warm))
        if first is None and None not in hits:
            first, again, source = hits[1] - hits[0], hits[2] - hits[1], "vllm:prefix_cache_hits"
        with self.check("cached tokens") as c:
            if first is None or again is None:
                raise NotOffered("neither usage nor /metrics tells of cached tokens")
            if self.facts.prefix_caching is False and again == 0:
                raise NotOffered("prefix caching is switched off (vllm:cache_config_info)")
            block = self.facts.block_size or 64
            expected = sum((t - 1) // block * block for t in tokens)
            c.measured(f"{first:.0f}, then {again:.0f} of {sum(tokens)} tokens ({source})")
            c.require(first < len(cold) * block, "new prompts are reported as cached")
            c.require(expected <= again < sum(tokens), f"at least {expected} were expected")
        with self.check("faster") as c:
            before, after = (min(a.ttft for a in answers) for answers in (cold, warm))
            c.measured(f"TTFT {before * 1000:.0f} ms, then {after * 1000:.0f} ms")
            if after >= before and each < self.SLOW_ENOUGH:
                raise NotOffered("prompts that the pool can keep are too short to tell by time")
            if after >= before and not again:
                raise NotOffered(
                    "no cached prefix is reported, and the first token comes no earlier"
                )
            c.require(after < before, "not earlier")
        with self.check("same answers") as c:
            for prompt, a, b in zip(prompts, cold, warm):
                same, seen = await self.same_text(prompt, a, b, **params)
                c.measured(seen)
                c.require(same, "another text")

    def _fitting(self) -> tuple[int, int]:
        """(prompts, tokens of each) that the pool keeps all at once, with what each draws."""
        blocks, size = self.facts.num_blocks, self.facts.block_size or 64
        if blocks is None:
            return self.PROMPTS, self.LONGEST
        for count in range(self.PROMPTS, 0, -1):
            each = min(self.LONGEST, (blocks - 1) // count * size - self.DRAWN)
            if each >= max(self.SHORTEST, 2 * size):
                return count, each
        return 0, 0

    async def _hits(self) -> float | None:
        try:
            return (await self.server.metrics()).prefix_hits
        except NotOffered:
            return None


def sum_known(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(known)


class Streaming(Suite):
    name, title = "streaming", "text as it is made"
    expects: ClassVar = {
        "spread": "text comes while it is made: over 30 % of the decoding time; up to 3 tries",
        "same text": "the pieces make the text of the unstreamed answer",
        "end": "finish_reason exactly once, the same as unstreamed; [DONE] last",
        "usage": "include_usage: one last chunk without choices, the unstreamed counts",
        "chat": "the role first, then the text of the unstreamed answer",
    }

    async def run(self) -> None:
        prompt, params = QUESTIONS[1], {"max_tokens": max(self.options.max_tokens, 64), **GREEDY}
        with self.check("spread", vital=True) as c:
            for _ in range(3):  # a busy machine may disturb one of them
                one = await self.ask(prompt, **{**params, "max_tokens": 1})
                stream = await self.ask(prompt, stream=True, **params)
                span = stream.arrivals[-1] - stream.ttft
                share = span / max(stream.seconds - one.seconds, span, 1e-6)
                good = share >= 0.3 and len(set(stream.arrivals)) >= 3
                if good:
                    break
            c.measured(f"{len(stream.arrivals)} pieces at {len(set(stream.arrivals))} moments")
            c.measured(
                f"over {share:.0%} of {stream.seconds:.2f} s less {one.seconds:.2f} s for one token"
            )
            c.require(good, "it came in one go: something holds it back")
        with self.check("same text") as c:
            whole = await self.ask(prompt, **params)
            same, seen = await self.same_text(prompt, whole, stream, **params)
            c.measured(f"{len(stream.text)} and {len(whole.text)} characters, {seen}")
            c.require(same, "another text")
        with self.check("end") as c:
            c.measured(f"{stream.finish}, unstreamed {whole.finish}; [DONE] seen: {stream.done}")
            once = len(stream.finish) == 1 and stream.finish == whole.finish
            c.require(once and stream.done, "not as expected")
        with self.check("usage") as c:
            if stream.usage is None:
                raise NotOffered("include_usage has no effect")
            streamed, unstreamed = ([*map(a.count, COUNTS)] for a in (stream, whole))
            c.measured(f"{streamed}, unstreamed {unstreamed}")
            c.require(stream.usage_alone, "usage came in a chunk with choices")
            c.require(streamed == unstreamed, "other counts")
        with self.check("chat") as c:
            whole = await self.chat(max_tokens=32, temperature=0)
            stream = await self.chat(stream=True, max_tokens=32, temperature=0)
            c.measured(f"role {stream.roles}, {len(stream.text)} characters, {stream.finish}")
            c.require(set(stream.roles) == {"assistant"}, "the role must be assistant")
            c.require(len(stream.finish) == 1, "finish_reason must be there exactly once")
            c.require(stream.text == whole.text, f"unstreamed {one_line(whole.text, 60)!r}")


class Errors(Suite):
    name, title = "errors", "wrong requests"
    expects: ClassVar = {
        "unknown model": "404, and an error body",
        "bad JSON": "400, and an error body",
        "max_tokens −1": "400, and an error body",
        "missing prompt": "400, and an error body",
        "prompt too long": "400, naming the limit and the prompt's length",
        "wrong key": "401 with a wrong key, 401 without any",
        "still healthy": "after all that it answers as before",
    }

    async def run(self) -> None:
        good = {"model": self.facts.model, "prompt": "Hello", "max_tokens": 1}
        llamacpp = self.facts.made_by == "llamacpp"
        with self.check("unknown model") as c:
            if llamacpp:
                raise NotOffered("llama.cpp answers whatever the model's name")
            await self._refused(c, 404, json={**good, "model": "no-such-model"})
        with self.check("bad JSON") as c:
            kind = {"Content-Type": "application/json"}
            await self._refused(c, 400, content=b'{"model": ', headers=kind)
        with self.check("max_tokens −1") as c:
            if llamacpp:
                raise NotOffered("llama.cpp takes −1 for no limit")
            await self._refused(c, 400, json={**good, "max_tokens": -1})
        with self.check("missing prompt") as c:
            await self._refused(c, 400, json={"model": self.facts.model, "max_tokens": 1})
        with self.check("prompt too long") as c:
            limit = self.facts.max_model_len
            if limit is None:
                raise NotOffered("the server doesn't state its context length")
            said = await self._refused(c, 400, json={**good, "prompt": " hello" * (limit + 32)})
            numbers = {int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", said)}
            c.require(limit in numbers, f"the limit, {limit}, isn't named")
            c.require(max(numbers) > limit, "the prompt's length isn't named")
        with self.check("wrong key") as c:
            if not self.server.has_key:
                raise NotOffered("the server wants no key")
            for key in ("Bearer not-the-key", ""):
                await self._refused(c, 401, json=good, headers={"Authorization": key})
        with self.check("still healthy") as c:
            health = await self.server.request("GET", "/health", limit=PROBE_SECONDS)
            answer = await self.ask("Hello", max_tokens=4, temperature=0)
            c.measured(f"/health {health.status_code}; a text after {answer.seconds:.2f} s")
            c.require(health.status_code in (200, 404, 405), "not healthy")

    async def _refused(self, c: Check, status: int, **request: Any) -> str:
        """Send something wrong and expect to be told so: the text of the error."""
        response = await self.server.request("POST", "/v1/completions", **request)
        said = error_text(response.text)
        c.measured(f"HTTP {response.status_code}: {said}")
        c.require(response.status_code == status, f"HTTP {status} was expected")
        if status != 401:  # vLLM's 401 has a body of its own
            error = parse_json(response.text).get("error")
            whole = isinstance(error, dict) and error.get("message") and "type" in error
            c.require(bool(whole), 'the body must be {"error": {"message", "type", …}}')
        return said


class Cancel(Suite):
    name, title = "cancel", "a client that leaves"
    expects: ClassVar = {
        "leaves": "a stream can be closed while its text is being made",
        "seat": "num_requests_running is back within 2 s",
        "blocks": "the KV cache is as full as before, within 2 s",
        "on record": "the record says that it was aborted and gave its blocks back",
    }

    async def run(self) -> None:
        metrics, answer = self.server.metrics, Answer()
        length = (self.facts.max_model_len or 4096) - 64
        with self.check("leaves", vital=True) as c:
            quiet = await metrics()
            seats = quiet.running  # NotOffered where they aren't counted
            stream = asyncio.create_task(
                self.ask(QUESTIONS[3], stream=True, into=answer, max_tokens=length, **GREEDY)
            )
            try:
                while len(answer.arrivals) < 3 and not stream.done():
                    await asyncio.sleep(0.002)
                busy = await metrics()
            finally:
                stream.cancel()
                await asyncio.gather(stream, return_exceptions=True)
            left = time.perf_counter()
            c.measured(f"left after {len(answer.arrivals)} pieces of {length} tokens")
            c.measured(f"running: {seats:.0f} before, {busy.running:.0f} meanwhile")
            c.require(len(answer.arrivals) >= 3, "it had no text to leave")
            c.require(not answer.finish, "it had ended before it could be cancelled")
            c.require(busy.running > seats, "it wasn't counted as running")
        with self.check("seat") as c:
            _, now = await until(metrics, lambda page: page.running <= seats, 2.0)
            c.measured(f"{now.running:.0f} after {time.perf_counter() - left:.2f} s")
            c.require(now.running <= seats, "the seat stays taken")
        with self.check("blocks") as c:
            _, now = await until(metrics, lambda page: page.kv_usage <= quiet.kv_usage, 2.0)
            levels = [f"{page.kv_usage:.4%}" for page in (quiet, busy, now)]
            c.measured("{} before, {} meanwhile, {} after".format(*levels))
            c.require(now.kv_usage <= quiet.kv_usage, "its blocks are still in use")
        with self.check("on record") as c:
            events = await self.server.record([answer.id])
            aborted = next((e for e in events if e["kind"] == "request.aborted"), None)
            pages = Pages.of(events, answer.id)
            c.measured(f"{len(pages.freed)} of {len(pages.table)} blocks freed")
            c.require(aborted is not None, f"no request.aborted; last: {events[-1]['kind']}")
            c.measured(f"request.aborted: {aborted.get('why', '')}")
            c.require(pages.all_back, "not the same blocks")


SUITES = {
    s.name: s for s in (Single, Batch, Paging, Temperature, Prefix, Streaming, Errors, Cancel)
}

# ============================================================================== 6. Interactive

HELP = """\
/temp X      temperature; 0 = always the most probable token
/top_p X     draw from the most probable tokens that make up this share, 0 < X ≤ 1
/seed N      repeat a draw
/system T    system message: what the assistant is told before the chat
/tools       let the model call a clock and a calculator, which run here; again: no more
/stats       times of this chat, load of the server
/blocks      KV blocks of the last answer
/why         what the last answer's time went to; when it began to run, why it stopped
/save FILE   keep this chat as JSON
/clear       forget the chat
/quit        leave (or Ctrl-D)
A setting without a value is shown, with `off` it is taken back.
Ctrl-C stops an answer, not the program."""


class WordWrap:
    """Writes a stream of text so that lines end between words, `width` cells wide at most.

    A word is shown as it comes, piece by piece; if it outgrows its line it moves to the next one.
    """

    def __init__(self, write: Callable[[str], Any], width: int):
        self.write, self.width = write, width
        self.column, self.word = 0, ""  # cells written in this line; the word at its end

    def __call__(self, text: str) -> None:
        for part in re.findall(r"\n|[^\S\n]|\S+", text):
            if part == "\n":
                self.column, self.word = 0, ""
            elif part.isspace():
                part, self.word = " ", ""
                if self.column >= self.width:  # nobody misses it at the end of a line
                    continue
            else:
                begun = cell_len(self.word)
                self.word += part
                if begun < self.column and self.column + cell_len(part) > self.width:
                    self.write("\b" * begun + "\x1b[K\n")
                    self.column, part = 0, self.word
            self.write(part)
            self.column += cell_len(part) if part != "\n" else 0


def _tool(name: str, does: str, **parameters: str) -> dict:
    properties = {key: {"type": "string", "description": told} for key, told in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    function = {"name": name, "description": does, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    _tool("clock", "Say what day it is, and the time."),
    _tool("calculator", "Work out an arithmetic expression.", expression="for example 2 * (3 + 4)"),
]
MOST_ROUNDS = 8  # answers that call tools, to one question
OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


def calculate(expression: str) -> float:
    """Work out numbers with + - * / // % and brackets. Raises `ValueError` for anything else."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise ValueError("only numbers, + - * / // % and brackets")

    try:
        return value(ast.parse(expression[:1000], mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None


def use_tool(name: str, arguments: str) -> str:
    """What a tool says; also what is wrong with the call, so that the model can mend it."""
    try:
        given = json.loads(arguments or "{}")
        if name == "clock":
            return time.strftime("%A, %Y-%m-%d %H:%M:%S")
        if name == "calculator":
            result = calculate(str(given["expression"]))
            return f"{result:.12g}" if isinstance(result, float) else str(result)
        return f"error: there is no tool {name!r}"
    except (ValueError, KeyError, TypeError) as error:
        return f"error: {type(error).__name__}: {error}"


class Chat:
    """A conversation in the terminal, or over a pipe: one line in, one answer out."""

    SETTINGS: ClassVar = {
        "/temp": ("temperature", float, 0, 100),
        "/top_p": ("top_p", float, 1e-9, 1),
        "/seed": ("seed", int, -(2**63), 2**63 - 1),
    }
    TOLD = (  # by /why, in the log's own sentences
        *(
            "grammar.compiled",
            "request.waiting",
            "request.admitted",
            "request.preempted",
            "request.resumed",
        ),
        *("tool.called", "tool.unreadable", "stop.matched", *ENDS),
    )

    def __init__(
        self, server: Server, loop: asyncio.AbstractEventLoop, console: Console, max_tokens: int
    ):
        self.server, self.facts, self.loop, self.console = server, server.facts, loop, console
        self.settings: dict[str, Any] = {"max_tokens": max_tokens}
        self.system = ""
        self.history: list[dict] = []
        self.answers: list[Answer] = []
        self.write: Callable[[str], Any] = console.file.write  # of pieces of an answer
        self.thinks = False  # what was shown last is reasoning
        self.as_text = False  # no chat template: the conversation goes as plain text

    def run(self) -> int:
        """Read lines until /quit or the end of the input. The exit code: 1 if an answer failed."""
        self._print(f"{self.facts.model} at {self.server.url} · /help, /quit")
        typed, failed = sys.stdin.isatty(), False
        if typed:
            with contextlib.suppress(ImportError):  # arrow keys; Windows has its own
                importlib.import_module("readline")
        while True:
            try:
                line = input("\n› ") if typed else next(sys.stdin)
            except (EOFError, StopIteration):
                if typed:
                    self._print("")
                break
            except KeyboardInterrupt:
                self._print("\n(/quit or Ctrl-D leaves)")
                continue
            line = line.strip()
            if line and not typed:
                self._print(f"\n› {line}")
            if line == "/quit":
                break
            if line.startswith("/"):
                self._print(self._command(*line.partition(" ")[::2]))
            elif line:
                failed |= not self._say(line)
        return 1 if failed else 0

    def _print(self, text: str) -> None:
        self.console.print(escape(printable(text)), highlight=False)

    def _say(self, text: str) -> bool:
        """Ask, show the answer while it comes, then its times. False if it failed."""
        if self.console.is_terminal:
            self.write = WordWrap(self.console.file.write, self.console.width - 1)
        before = len(self.history)
        self.history.append({"role": "user", "content": text})
        for _ in range(MOST_ROUNDS):
            answer, said, good = Answer(), "", True
            self.thinks = False
            try:
                interruptible(self.loop, self._answer(answer))
            except KeyboardInterrupt:
                said = "cancelled; "
            except (Failed, Unreachable) as error:
                said, good = f"failed: {error}; ", False
            calls = answer.calls if good and not said else []
            if answer.text or calls:
                self.history.append(self._message(answer, calls))
                self.answers.append(answer)
            elif self.history[-1]["role"] == "user":
                del self.history[before:]  # nothing was said in return: as if not asked
            self._print(f"\n[{said}{self._times(answer)}]")
            for call in calls:
                self._use(call)
            if not calls:
                break
        return good

    @staticmethod
    def _message(answer: Answer, calls: list[dict]) -> dict:
        message = {"role": "assistant", "content": answer.text}
        return {**message, "tool_calls": calls} if calls else message

    def _use(self, call: dict) -> None:
        """Run a tool; its result goes to the model with the next request."""
        function = call["function"]
        result = use_tool(function["name"], function["arguments"])
        self._print(f"[{function['name']} {function['arguments']} → {result}]")
        self.history.append({"role": "tool", "tool_call_id": call["id"], "content": result})

    async def _answer(self, answer: Answer) -> None:
        how = {"stream": True, "whole": False, "into": answer, "on_text": self._show}
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = system + self.history
        if not self.as_text:
            try:
                await self.server.ask(messages, **how, **self.settings)
                return
            except Refused as refused:
                if not refused.without_chat:
                    raise
                self.as_text = True
                self._print("(no chat template here: the chat goes as plain text)")
        lines = [f"{m['role'].title()}: {m['content']}\n" for m in messages]
        text = "".join([*lines, "Assistant:"])
        await self.server.ask(text, stop=["\nUser:"], **how, **self.settings)

    def _show(self, text: str) -> None:
        thinks = isinstance(text, Thought)
        if thinks is not self.thinks:
            self.write("[it thinks] " if thinks else "\n\n")
            self.thinks = thinks
        self.write(printable(text))
        self.console.file.flush()

    @staticmethod
    def _times(answer: Answer) -> str:
        if not answer.arrivals:
            return f"no text after {answer.seconds:.2f} s"
        parts = [f"TTFT {answer.ttft * 1000:.0f} ms", f"{answer.seconds:.2f} s", *answer.finish]
        with contextlib.suppress(Failed):
            parts.insert(0, f"{answer.count('completion_tokens')} tokens")
            parts.insert(1, f"{answer.rate()[0]:.1f} tokens/s")
        return " · ".join(parts)

    def _command(self, name: str, rest: str) -> str:
        """What a command has to say."""
        commands = {"/stats": self._stats, "/blocks": self._blocks, "/why": self._why}
        try:
            if name in self.SETTINGS:
                return self._set(name, rest)
            if name in commands:
                return "\n".join(commands[name]())
            if name == "/save":
                return self._save(rest)
        except NotOffered as reason:
            return f"{NOT_OFFERED}: {reason}"
        except (Failed, Unreachable, OSError) as error:
            return f"that didn't work: {error}"
        except KeyboardInterrupt:
            return "cancelled"
        if name == "/system":
            if rest:
                self.system = "" if rest == "off" else rest
            return f"system message: {self.system or 'none'}"
        if name == "/tools":
            if self.settings.pop("tools", None) is None:
                self.settings["tools"] = TOOLS
            on = "tools" in self.settings
            return "tools: " + (", ".join(t["function"]["name"] for t in TOOLS) if on else "none")
        if name == "/clear":
            self.history, self.answers = [], []
            return "forgotten"
        return HELP if name == "/help" else f"there is no {name}; /help"

    def _set(self, name: str, value: str) -> str:
        key, read, low, high = self.SETTINGS[name]
        if value == "off":
            self.settings.pop(key, None)
        if value in ("", "off"):
            return f"{key}: " + str(self.settings.get(key, "the server's default"))
        try:
            number = read(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            return f"{key} is {value!r}; a number from {low} to {high}, or `off`"
        self.settings[key] = number
        return f"{key}: {number}"

    def _save(self, path: str) -> str:
        if not path:
            return "where to? /save FILE"
        answers = [asdict(a) for a in self.answers]
        chat = {"model": self.facts.model, "system": self.system, "settings": self.settings}
        save_json(path, {**chat, "messages": self.history, "answers": answers})
        return f"{len(self.history)} messages saved in {path}"

    def _stats(self) -> Iterator[str]:
        yield f"answers: {len(self.answers)}"
        if self.answers:
            median = statistics.median(a.ttft for a in self.answers)
            yield f"the last: {self._times(self.answers[-1])}; median TTFT {median * 1000:.0f} ms"
        try:
            page = interruptible(self.loop, self.server.metrics())
            yield f"the server: {page.running:.0f} running, {page.waiting:.0f} waiting"
            yield f"KV cache in use: {page.kv_usage:.1%}"
        except NotOffered as reason:
            yield f"{NOT_OFFERED}: {reason}"

    def _last(self) -> tuple[str, list[dict]]:
        """(id, what the record has of it) of the last answer"""
        if not self.answers:
            raise NotOffered("there is no answer yet")
        last = self.answers[-1].id
        return last, interruptible(self.loop, self.server.record([last]))

    def _blocks(self) -> Iterator[str]:
        last, events = self._last()
        pages, context = Pages.of(events, last), self.facts.max_model_len
        size = block_size(events) or self.facts.block_size or 0
        yield f"{len(pages.table)} blocks of {size or '?'} tokens, {pages.shared} of them shared"
        yield "table: " + " ".join(str(pages.table[i]) for i in sorted(pages.table))
        for step, index, count in pages.grants:
            where = f"for the tokens from {index * size} on" if size else f"at position {index}"
            yield f"step {step}: +{count} {where}"
        yield f"given back: {len(pages.freed)}"
        if size and context:
            yield f"reserving {context} tokens would have taken {blocks_for(context, size)}"

    def _why(self) -> Iterator[str]:
        name = quote(self._last()[0])
        path = f"/trace/why/{name}"
        asked = self.server.request("GET", path, PROBE_SECONDS)
        with contextlib.suppress(NotOffered):  # an older server tells only the story
            yield from parse_json(offered(interruptible(self.loop, asked), path).text)["lines"]
        path = f"/trace/requests/{name}"
        asked = self.server.request("GET", path, PROBE_SECONDS)
        response = offered(interruptible(self.loop, asked), path)
        for line in parse_json(response.text).get("story", []):
            if line.get("kind") in self.TOLD:
                yield f"step {line['steps'][0]} {line['kind']}: {line['text']}"
            elif (at := line.get("text", "").find("the grammar allows")) >= 0:  # a draw's line
                yield f"step {line['steps'][0]}: {line['text'][at:]}"


# =================================================================================== 7. Report


def save_json(path: str, body: dict) -> None:
    text = json.dumps(body, indent=2, ensure_ascii=False)
    Path(path).expanduser().write_text(text + "\n", encoding="utf-8")


class Report:
    """Gathers checks, shows them, and knows the exit code."""

    def __init__(self, url: str, options: dict):
        self.started, self.clock = time.time(), time.perf_counter()
        self.url, self.options = url, options
        self.facts: Facts | None = None
        self.checks: list[Check] = []
        self.unusable: Unusable | None = None  # why no judgement was possible
        self.not_run: list[str] = []  # suites

    def of(self, verdict: str) -> list[Check]:
        return [c for c in self.checks if c.verdict == verdict]

    @property
    def exit_code(self) -> int:
        if self.unusable or not (self.of(PASS) or self.of(FAIL)):
            return 2
        return 1 if self.of(FAIL) else 0

    @property
    def verdict(self) -> str:
        return (PASS, FAIL, "NO JUDGEMENT")[self.exit_code]

    def print(self, console: Console) -> None:
        if self.checks:
            console.print(self._table())
        style = STYLES.get(self.verdict, "bold yellow")
        failed, missing = self.of(FAIL), self.of(NOT_OFFERED)
        lines = [
            f"{len(self.checks)} checks: {len(failed)} failed, {len(missing)} not offered, "
            f"{time.perf_counter() - self.clock:.1f} s"
        ]
        lines += [f"  {c.suite}/{c.name}: {c.evidence}" for c in failed]
        if self.unusable:
            lines += [str(self.unusable), self.unusable.advice]
        if self.not_run:
            lines.append(f"not run: {', '.join(self.not_run)}")
        console.print(f"[{style}]{self.verdict}[/]  {escape(printable(chr(10).join(lines)))}")

    def _table(self) -> Table:
        table = Table(show_lines=True, expand=True)
        for header, ratio in (("check", 3), ("expected", 5), ("measured", 8)):
            table.add_column(header, ratio=ratio, overflow="fold")
        table.add_column("verdict", width=11)
        for c in self.checks:
            verdict = f"[{STYLES[c.verdict]}]{c.verdict}[/]"
            measured = escape(printable(c.evidence))
            table.add_row(f"{c.suite}\n[bold]{c.name}[/]", c.expectation, measured, verdict)
        return table

    def body(self) -> dict:
        """The report for machines."""
        return {
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


async def run_suites(
    server: Server, names: Sequence[str], options: Options, report: Report, console: Console
) -> None:
    """Run them in order. Stops when the server is gone: `report.unusable` then says so."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        overall = progress.add_task("suites", total=len(names))
        answers = progress.add_task("answers", total=None)
        server.on_answer = lambda: progress.advance(answers)

        def on_check(check: Check) -> None:
            report.checks.append(check)
            mark = f"[{STYLES[check.verdict]}]{MARKS[check.verdict]}[/]"
            progress.console.print(f"{mark} {check.suite}/{check.name}", highlight=False)

        for number, name in enumerate(names):
            suite = SUITES[name](server, options, on_check)
            progress.update(overall, description=f"{name}: {suite.title}")
            seen = len(report.checks)
            try:
                with contextlib.suppress(SuiteEnded):
                    await suite.run()
            except (Failed, Unreachable) as error:  # of a request that no check is about
                on_check(Check(name, "requests", "every request is answered", str(error)))
            progress.advance(overall)
            if any(c.verdict == FAIL for c in report.checks[seen:]):
                try:
                    await probe(server, "/v1/models", required=True)
                except Unusable as gone:
                    said = f"during {name} the server went away: {gone}"
                    report.unusable = Unusable(said, "Look at its log.")
                    report.not_run = list(names[number + 1 :])
                    return


# ===================================================================================== 8. Main


def parse_arguments(
    argv: Sequence[str] | None = None, name: str | None = None
) -> argparse.Namespace:
    def at_least(low: float) -> Callable[[str], Any]:
        def number(text: str) -> Any:
            value = type(low)(text)
            if not low <= value < math.inf:
                raise argparse.ArgumentTypeError(f"{text} is too small; at least {low}")
            return value

        return number

    parser = argparse.ArgumentParser(
        prog=name,
        description="Test a running LLM server, or talk to it.",
        epilog="Exit code: 0 nothing failed, 1 a check failed, 2 no judgement was possible.",
    )
    add, environment = parser.add_argument, os.environ.get
    url = environment("KOYEB_URL") or DEFAULT_URL
    add("--url", default=url, help=f"of the server; default: KOYEB_URL, else {DEFAULT_URL}")
    add("--api-key", default=environment("API_KEY"), help="default: API_KEY")
    add("--model", help="default: the first one that the server lists")
    add("--test", default="all", choices=("all", *SUITES), help="one suite; default: all")
    add("--num-requests", type=at_least(2), default=8, metavar="N", help="of batch; default: 8")
    length = "of an answer; default: 64, in a chat 512"
    add("--max-tokens", type=at_least(2), metavar="N", help=length)
    add("--interactive", action="store_true", help="chat in the terminal")
    add("--json", metavar="FILE", help="write every check with its evidence")
    limit = "seconds for one request; default: 120"
    add("--timeout", type=at_least(0.1), default=120.0, metavar="S", help=limit)
    wait = f"for a cold server to be ready; without a number {LONGEST_WAIT} s"
    seconds = {"type": at_least(0.0), "default": 0.0, "metavar": "SECONDS"}
    add("--wait", nargs="?", const=float(LONGEST_WAIT), help=wait, **seconds)
    return parser.parse_args(argv)


def interruptible(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """Run it to its end. Ctrl-C cancels it and raises `KeyboardInterrupt`."""
    task = loop.create_task(work)
    # Where a loop can't take signals (Windows), Ctrl-C interrupts the loop itself.
    with contextlib.suppress(NotImplementedError, RuntimeError):
        loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return loop.run_until_complete(task)
    except (asyncio.CancelledError, KeyboardInterrupt):
        task.cancel()
        with contextlib.suppress(KeyboardInterrupt):
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        raise KeyboardInterrupt from None
    finally:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.remove_signal_handler(signal.SIGINT)


def main(argv: Sequence[str] | None = None, name: str | None = None) -> int:
    args = parse_arguments(argv, name)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale such as C has no ✓
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    options = {k: v for k, v in vars(args).items() if k not in ("api_key", "url", "json")}
    report = Report(base_url(args.url), options)
    loop = asyncio.new_event_loop()
    wait_for = functools.partial(interruptible, loop)
    try:
        server = Server(args.url, args.api_key, args.timeout)
    except (httpx.InvalidURL, ValueError) as error:
        console.print(escape(f"--url or --api-key can't be used: {error}"))
        return 2
    try:
        report.facts = facts = wait_for(reach(server, args.model, args.wait, console))
        if args.interactive:
            return Chat(server, loop, console, args.max_tokens or 512).run()
        make = f"{facts.made_by} {facts.version}".strip() or "unknown make"
        context = f", context {facts.max_model_len}" if facts.max_model_len else ""
        console.print(escape(f"{facts.model}{context} at {server.url} ({make})"))
        wait_for(first_token(server))
        names = list(SUITES) if args.test == "all" else [args.test]
        options = Options(args.num_requests, args.max_tokens or 64)
        wait_for(run_suites(server, names, options, report, console))
    except Unusable as reason:
        report.unusable = reason
    except KeyboardInterrupt:
        console.print("interrupted: nothing is claimed")
        return 130
    finally:
        wait_for(server.http.aclose())
        loop.close()
    report.print(console)
    if args.json:
        try:
            save_json(args.json, report.body())
        except OSError as error:
            console.print(escape(f"--json could not be written: {error}"))
            return report.exit_code or 2
    return report.exit_code


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough: nothing is claimed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 2
    sys.exit(status)
