"""Tokens that are only text take a shorter way to the connection, and nobody can tell."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from random import Random
from types import SimpleNamespace

import msgspec
import pytest

from engine.config import EngineConfig
from engine.core.messages import CoreOutput, CoreRequest
from engine.sampling_params import SamplingParams
from engine.server.answering.generation import Generation, SentPrompt
from engine.server.answering.text_stream import TextStream
from engine.server.http.answers import TextChunk
from engine.server.http.connection import DirectBody
from engine.server.link.mailbox import Mailbox
from engine.server.link.open_requests import OpenRequest
from engine.server.telemetry.metrics import Metrics, RequestClock
from engine.text.loading import load_text
from engine.text.output import OutputProcessor
from engine.trace.recorder import Recorder
from tests.server.scripted_engine import ScriptedExecutor
from tests.server.tiny_tokenizer import END, TH, USER

TEXT = 'plain, "quoted" \\ and\n é 語 \x85 \u2028 the end 😀!'
SAID = [*TEXT[:20].encode(), TH, *TEXT[20:].encode()]
CHAT = "/v1/chat/completions"
STEP_S = 0.002
COMPLETIONS = "/v1/completions"


class Slow(ScriptedExecutor):
    """Gives the server time to pass on each token before the next."""

    def execute(self, plan):
        time.sleep(STEP_S)
        return super().execute(plan)


def load_slow(config, recorder, progress):
    return Slow()


@pytest.fixture(scope="module")
def scripted(run_server):
    with run_server(load=load_slow, served_model_name=["grün"]) as server:
        yield server


@pytest.fixture
def short_texts(monkeypatch):
    """The number of pieces that were written the short way."""
    written = []
    write = DirectBody.write

    def counted(self, data, now):
        caller = sys._getframe(1).f_code
        if caller is TextStream._write.__code__:
            written.append(data)
        return write(self, data, now)

    monkeypatch.setattr(DirectBody, "write", counted)
    return written


def streamed(server, route, **fields) -> bytes:
    """All bytes of an answer, but for its id and its time."""
    asked = {"stream": True, "max_tokens": len(SAID) + 1, **fields}
    if route == CHAT:
        asked["messages"] = [{"role": "user", "content": "SAY:" + TEXT}]
    else:
        asked["prompt"] = [USER, *b"SAY:", *SAID, END]
    with server.http.stream("POST", route, json=asked) as answer:
        assert answer.status_code == 200, answer.read()
        data = b"".join(answer.iter_bytes())
    return re.sub(rb'"(id|created)":("[^"]*"|\d+)', rb'"\1":0', data)


@pytest.mark.parametrize("fields", [{}, {"stream_options": {"include_usage": True}}, {"stop": "!"}])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_the_bytes_are_those_of_the_general_way(scripted, short_texts, route, fields):
    general = streamed(scripted, route, **fields, trace="full")  # it tells each text to the record
    assert not short_texts
    for _ in range(20):  # on a busy machine many outputs may come together, which is general
        short = streamed(scripted, route, **fields)
        assert short == general and short.endswith(b"data: [DONE]\n\n")
        if "stop" in fields or len(short_texts) > len(SAID) / 2:
            break
    assert bool(short_texts) != ("stop" in fields), "a text may be held back"
    if "stop" not in fields:
        assert "grün".encode() in short and "語".encode() in short
        assert b"\\u2028" in short and b"\\u0085" in short


@pytest.mark.parametrize(
    "fields", [{"n": 2}, {"logprobs": 1}, {"return_token_ids": True}, {"prompt": [[USER], [USER]]}]
)
def test_answers_that_show_more_take_the_general_way(scripted, short_texts, fields):
    asked = {"prompt": [USER], "max_tokens": 9, "stream": True, **fields}
    with scripted.http.stream("POST", COMPLETIONS, json=asked) as answer:
        assert b"[DONE]" in b"".join(answer.iter_bytes())
    assert not short_texts


def test_each_token_is_counted_once(scripted):
    def counts():
        text = scripted.http.get("/metrics").text
        names = "vllm:generation_tokens_total", "vllm:inter_token_latency_seconds_count"
        return [float(re.search(rf"{name}{{.*}} (.*)", text)[1]) for name in names]

    before = counts()
    streamed(scripted, COMPLETIONS)
    short = [now - then for now, then in zip(counts(), before)]
    before = counts()
    streamed(scripted, COMPLETIONS, trace="full")
    assert short == [now - then for now, then in zip(counts(), before)]
    assert short[0] == short[1] + 1 == len(SAID) + 1


@pytest.fixture(scope="module")
def pocket():
    tokenizer, _ = load_text(EngineConfig(model="pocket"))
    return tokenizer, tokenizer.encode(TEXT)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_each_token_is_written_once_and_in_order(pocket, seed, interval):
    """Whatever comes together, and however often the connection is full."""
    tokenizer, token_ids = pocket
    random = Random(seed)
    process = OutputProcessor(tokenizer, Recorder("off"))
    core = CoreRequest(request_id="x", prompt_token_ids=[1], params=SamplingParams(max_tokens=999))
    request = process.begin(core)
    clock = RequestClock(Metrics(EngineConfig(model="pocket")), core, request)
    written, mailbox = [], Mailbox()

    def write(data, now=0.0):
        written.append(json.loads(data))
        return random.random() < 0.8

    def take_all(outputs):
        for output in outputs:
            delta = process.process(request, output)
            clock.tokens(0, len(delta.token_ids), 1.0)
            delta = generation._gathered(part, delta)
            if delta is not None:
                write(json.dumps(delta.text))
        return not request.finished and random.random() < 0.8

    async def answer():
        while not request.finished:
            take_all(await mailbox.take())
            if not request.finished:
                await generation.flow_of_one(
                    lambda mailbox: TextStream(
                        *(mailbox, request, clock, chunk, direct, take_all),
                        *(interval, part.gathered),
                    )
                )

    async def tell():
        answering = asyncio.create_task(answer())
        for place, token_id in enumerate(token_ids):
            end = "length" if place == len(token_ids) - 1 else None
            reader = entry.reader
            reader.put(CoreOutput(request_id="x", token_ids=[token_id], finish_reason=end))
            if end or random.random() < 0.7:
                reader.hand_over(2.0)
            if random.random() < 0.7:
                await asyncio.sleep(0)
        await asyncio.wait_for(answering, 10)

    chunk = TextChunk(msgspec.json.encode)
    direct = SimpleNamespace(connection=SimpleNamespace(write=write))
    entry = OpenRequest("x", 1, mailbox)
    part = SentPrompt(0, entry, request, clock)
    generation = object.__new__(Generation)
    generation.interval = interval
    generation._mailbox, generation._entries, generation.finished = mailbox, [entry], False
    asyncio.run(tell())
    assert "".join(written) == TEXT == request.sequences[0].text
    assert len(written) <= len(token_ids) / interval + 3  # the first, the last, and what is left
    assert request.sequences[0].token_ids == token_ids
    assert clock.metrics.generation_tokens.by_labels[()] == len(token_ids)
