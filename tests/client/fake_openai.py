"""A small OpenAI-compatible server for testing the client: it makes real tokens, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import re
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)

from engine.server.record.record_filter import lines_about

BLOCK, NUM_BLOCKS, CONTEXT, BUDGET = 16, 256, 1024, 256
VOCABULARY = [a + b + c for a in "bklmnrstvz" for b in "aiou" for c in "nrlt"]
PIECE = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


def tokenize(text: str) -> list[int]:
    return [zlib.crc32(piece.encode()) for piece in PIECE.findall(text)]


@dataclass
class Job:
    """One running request."""

    id: str
    prompt: list[int]
    params: dict
    computed: int = 0
    cached: int = 0
    pieces: list[str] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    news: asyncio.Queue = field(default_factory=asyncio.Queue)
    ended: str = ""

    @property
    def tokens(self) -> list[int]:
        return self.prompt + [zlib.crc32(p.encode()) for p in self.pieces]


class FakeEngine:
    """Continuous batching over a block pool. `step` is one step; `events` is the record."""

    def __init__(self, faults: frozenset[str], step_seconds: float):
        self.faults, self.step_seconds = faults, step_seconds
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.free = list(range(NUM_BLOCKS))
        self.hashes: dict[int, int] = {}  # hash of a full block and all before it → block
        self.references = [0] * NUM_BLOCKS
        self.events: list[dict] = []
        self.steps = self.hits = self.count = 0
        self.record("engine.kv_sized", "", block_size=BLOCK, num_blocks=NUM_BLOCKS)

    def record(self, kind: str, request_id: str, **fields: object) -> None:
        event = {"kind": kind, "seq": len(self.events) + 1, "step": self.steps}
        self.events.append({**event, "request_id": request_id, **fields})

    def add(self, prefix: str, prompt: list[int], params: dict) -> Job:
        self.count += 1
        job = Job(f"{prefix}-{self.count}", prompt, params)
        self.record("request.queued", job.id, num_prompt_tokens=len(prompt))
        self.waiting.append(job)
        return job

    def block_hashes(self, tokens: list[int]) -> list[int]:
        full = len(tokens) // BLOCK
        return [hash(tuple(tokens[: (i + 1) * BLOCK])) for i in range(full)]

    def admit(self, job: Job) -> None:
        self.record("request.admitted", job.id, why="a seat and blocks are free")
        if "no_prefix_cache" not in self.faults:
            for key in self.block_hashes(job.prompt[:-1]):
                if key not in self.hashes:
                    break
                block = self.hashes[key]
                if self.references[block] == 0:
                    self.free.remove(block)
                self.references[block] += 1
                job.table.append(block)
            if job.table:
                self.record("block.shared", job.id, blocks=list(job.table), index=0)
            job.computed = job.cached = len(job.table) * BLOCK
            self.hits += job.cached
        self.running.append(job)

    def grow(self, job: Job, tokens: int) -> None:
        if "reserve" in self.faults:
            tokens = CONTEXT
        need = math.ceil(tokens / BLOCK) - len(job.table)
        if "two_blocks" in self.faults and need > 0:
            need += 1
        if need > 0:
            fresh = [self.free.pop(0) for _ in range(need)]
            for block in fresh:
                self.references[block] = 1
            self.hashes = {k: b for k, b in self.hashes.items() if b not in fresh}
            self.record("block.allocated", job.id, blocks=fresh, index=len(job.table))
            job.table += fresh

    def end(self, job: Job, kind: str, **fields: object) -> None:
        self.running = [j for j in self.running if j is not job]
        self.waiting = [j for j in self.waiting if j is not job]
        self.record(kind, job.id, **fields)
        if "leak" in self.faults:
            return
        for block in job.table:
            self.references[block] -= 1
            if not self.references[block]:
                self.free.append(block)
        self.record("block.freed", job.id, blocks=list(job.table))

    def draw(self, job: Job) -> str:
        last = job.tokens[-2:]
        table = random.Random(str(last))
        words = sorted(table.sample(VOCABULARY, 24), key=VOCABULARY.index)  # the first are common
        temperature = job.params.get("temperature", 1.0)
        if temperature == 0 and "greedy_noise" not in self.faults:
            return " " + words[0]
        if self.faults & {"temperature_ignored", "greedy_noise"}:
            temperature = 1.0
        seed = None if "seed_ignored" in self.faults else job.params.get("seed")
        if seed is None:
            seed = time.perf_counter_ns()
        rng = random.Random(f"{seed}/{len(job.pieces)}")
        weights = [math.exp(-1.2 * i / max(temperature, 0.05)) for i in range(len(words))]
        return " " + rng.choices(words, weights)[0]

    async def step(self) -> None:
        seats = 1 if self.faults & {"serial", "llamacpp"} else 64
        while self.waiting and len(self.running) < seats:
            self.admit(self.waiting.pop(0))
        if not self.running:
            await asyncio.sleep(0.001)
            return
        self.steps += 1
        budget, rows = BUDGET, []
        for job in list(self.running):
            tokens = job.tokens
            share = min(budget, len(tokens) - job.computed)
            if share > 0:
                budget -= share
                self.grow(job, job.computed + share)
                rows.append((job, job.computed, share))
        self.record(
            "step.planned", "", rows=[[j.id, s, n, int(s + n == len(j.tokens))] for j, s, n in rows]
        )
        await asyncio.sleep(self.step_seconds + 3e-5 * sum(n for _, _, n in rows))
        for job, start, share in rows:
            if job.ended:
                continue
            job.computed = start + share
            for i, key in enumerate(self.block_hashes(job.tokens[: job.computed])):
                self.hashes.setdefault(key, job.table[i])
            if job.computed == len(job.tokens):
                self.emit(job)

    def emit(self, job: Job) -> None:
        piece = self.draw(job)
        job.pieces.append(piece)
        if len(job.pieces) >= job.params["max_tokens"]:
            job.ended = "length"
        elif (
            zlib.crc32(piece.encode()) % 41 == 0
            and not job.params.get("ignore_eos")
            and "never_ends" not in self.faults
        ):
            job.ended = "stop"
        job.news.put_nowait((piece, job.ended))
        if job.ended:
            self.end(
                job,
                "request.finished",
                reason=job.ended,
                why=f"{len(job.pieces)} tokens were drawn",
            )


def refusal(status: int, message: str, param: str = "") -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": status}
    return JSONResponse({"error": error}, status)


def build(engine: FakeEngine, api_key: str = "", ready_after: int = 0) -> FastAPI:
    """The HTTP side. `ready_after`: so many requests get a 503 at first."""
    faults, early = engine.faults, iter(range(ready_after))

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async def loop() -> None:
            while True:
                await engine.step()

        task = asyncio.create_task(loop())
        yield
        task.cancel()

    app = FastAPI(lifespan=life)

    @app.middleware("http")
    async def guard(request: Request, call_next):
        if "far" in faults:
            await asyncio.sleep(0.1)
        if "html" in faults:
            return HTMLResponse("<html><body>Welcome to nginx</body></html>")
        if "hang" in faults:
            await asyncio.sleep(3600)
        if "loading" in faults or next(early, None) is not None:
            return JSONResponse({"status": "loading", "state": "reading weights, 40 %"}, 503)
        keyed = request.url.path.startswith("/v1") and api_key and "key_ignored" not in faults
        if keyed and request.headers.get("authorization") != f"Bearer {api_key}":
            return refusal(401, "wrong key")
        return await call_next(request)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/v1/models")
    async def models() -> dict:
        if "no_models" in faults:
            return {"hello": "world"}
        card = {"id": "fake", "object": "model", "owned_by": "fake", "max_model_len": CONTEXT}
        if "llamacpp" in faults:
            card = {"id": "fake", "owned_by": "llamacpp", "meta": {"n_ctx_train": 4096}}
        return {"object": "list", "data": [card]}

    @app.get("/metrics")
    async def metrics() -> Response:
        if "llamacpp" in faults:
            return refusal(501, "This server does not support metrics endpoint.")
        if "bare" in faults:
            return Response(status_code=404)
        used = sum(r > 0 for r in engine.references)
        info = f'block_size="{BLOCK}",num_gpu_blocks="{NUM_BLOCKS}",enable_prefix_caching="True"'
        running = engine.count if "seat_leak" in faults else len(engine.running)
        return PlainTextResponse(
            f'# HELP x\nvllm:num_requests_running{{model_name="fake"}} {running}\n'
            f"vllm:num_requests_waiting {len(engine.waiting)}\n"
            f"vllm:kv_cache_usage_perc {used / NUM_BLOCKS}\n"
            f"vllm:prefix_cache_hits_total {float(engine.hits)}\n"
            f"vllm:cache_config_info{{{info}}} 1.0\n"
        )

    @app.get("/trace")
    async def trace(request: Request) -> Response:
        if faults & {"bare", "no_trace", "llamacpp"}:
            return Response(status_code=404)
        lines = [json.dumps(e, separators=(",", ":")).encode() for e in engine.events]
        about = lines_about(lines, request.query_params.getlist("request_id"))
        return PlainTextResponse(b"".join(line + b"\n" for line in about))

    @app.get("/trace/requests/{name}")
    async def life(name: str) -> Response:
        if faults & {"bare", "no_trace", "llamacpp"}:
            return Response(status_code=404)
        mine = [e for e in engine.events if e.get("request_id") == name]
        return JSONResponse(
            {
                "story": [
                    {
                        "steps": [e.get("step", 0)] * 2,
                        "kind": e["kind"],
                        "text": e.get("why", e["kind"]),
                    }
                    for e in mine
                ]
            }
        )

    @app.get("/props")
    async def props() -> Response:
        if "llamacpp" not in faults:
            return Response(status_code=404)
        settings = {"n_ctx": CONTEXT}
        return JSONResponse({"total_slots": 1, "default_generation_settings": settings})

    @app.post("/tokenize")
    async def tokens(request: Request) -> Response:
        if "bare" in faults:
            return Response(status_code=404)
        body = await request.json()
        ids = tokenize(body.get("content", "") if "llamacpp" in faults else body["prompt"])
        return JSONResponse({"count": len(ids), "tokens": ids})

    def usage(job: Job) -> dict:
        said = len(job.pieces) * (3 if "usage_lie" in faults else 1)
        said = said // 2 if "usage_low" in faults else said
        cached = len(job.prompt) - 1 if "cache_lie" in faults else job.cached
        body = {
            "prompt_tokens": len(job.prompt) + ("prompt_lie" in faults),
            "completion_tokens": said,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        body["total_tokens"] = body["prompt_tokens"] + said + ("total_lie" in faults)
        if "bare" in faults:
            del body["prompt_tokens_details"]
        return body

    def choice(chat: bool, stream: bool, text: str, finish: str | None, role: bool = False) -> dict:
        if not chat:
            return {"index": 0, "text": text, "finish_reason": finish}
        message = {"content": text} | ({"role": "assistant"} if role or not stream else {})
        return {"index": 0, "delta" if stream else "message": message, "finish_reason": finish}

    async def run(request: Request, chat: bool) -> Response:
        if "broken" in faults or ("breaks" in faults and engine.count == 2):
            return PlainTextResponse("Internal Server Error", 500)
        try:
            body = json.loads(await request.body())
        except ValueError:
            return refusal(500 if "json_500" in faults else 400, "the body isn't JSON")
        if body.get("model") != "fake" and "any_model" not in faults:
            return refusal(404, f"the model {body.get('model')!r} does not exist", "model")
        if ("messages" if chat else "prompt") not in body:
            return refusal(400, "the prompt is missing", "prompt")
        limit = body.get("max_tokens", 16)
        if limit < 1:
            if "clamps" not in faults:
                return refusal(400, f"max_tokens is {limit}; at least 1", "max_tokens")
            limit = 1
        text = (
            "".join(f"<{m['role']}>{m['content']}" for m in body["messages"])
            if chat
            else body["prompt"]
        )
        prompt = tokenize(text)
        if len(prompt) >= CONTEXT:
            numbers = "" if "vague" in faults else f" is {CONTEXT}; the prompt has {len(prompt)}"
            return refusal(400, f"too long: the maximum context length{numbers} tokens")
        if chat and "no_template" in faults:
            return refusal(400, "this model has no chat template", "messages")
        params = {**body, "max_tokens": min(limit, CONTEXT - len(prompt))}
        engine_faults = engine.faults
        job = engine.add("chatcmpl" if chat else "cmpl", prompt, params)
        base = {"id": job.id, "model": "fake"}
        if not body.get("stream"):
            while not job.ended:
                await job.news.get()
            await asyncio.sleep(0)
            text = "".join(job.pieces)
            if "bad_json" in faults and job.params["max_tokens"] > 1:
                return PlainTextResponse('{"id": "cmpl-1", "choices": [', 200)
            if "no_choices" in faults and job.params["max_tokens"] > 1:
                return JSONResponse({"id": "cmpl-1", "result": text})
            if "empty" in engine_faults and job.params["max_tokens"] > 1:
                text = ""
            return JSONResponse(
                {**base, "choices": [choice(chat, False, text, job.ended)], "usage": usage(job)}
            )

        def chunk(choices: list[dict], **more: object) -> str:
            return f"data: {json.dumps({**base, 'choices': choices, **more})}\n\n"

        async def chunks() -> AsyncIterator[str]:
            try:
                yield ": heartbeat\n\n"
                if chat:
                    yield chunk([choice(True, True, "", None, role="no_role" not in faults)])
                held, ended, sent = "", "", 0
                while not ended:
                    piece, ended = await job.news.get()
                    sent += 1
                    if sent == 4 and "truncated" in faults:
                        return
                    if sent == 4 and "error_chunk" in faults:
                        error = {"message": "the engine died", "code": 500}
                        yield f"data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n"
                        return
                    if sent == 4 and "garbage" in faults:
                        yield "data: {not json\n\n"
                    if sent == 3 and "other_text" in faults:
                        piece = " changed"
                    held += piece
                    if "buffered" in faults and not ended:
                        continue
                    finish = ended or None
                    yield chunk([choice(chat, True, held, finish)])
                    held = ""
                if "finish_twice" in faults:
                    yield chunk([choice(chat, True, "", job.ended)])
                if (
                    body.get("stream_options", {}).get("include_usage")
                    and "no_usage_chunk" not in faults
                ):
                    yield chunk([], usage=usage(job))
                if "no_done" not in faults:
                    yield "data: [DONE]\n\n"
            finally:
                if not job.ended and "deaf" not in faults:
                    job.ended = "abort"
                    engine.end(job, "request.aborted", why="the client left")

        return StreamingResponse(chunks(), media_type="text/event-stream")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await run(request, False)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await run(request, True)

    return app


@contextlib.contextmanager
def serve(
    *faults: str, api_key: str = "", ready_after: int = 0, step: float = 0.002
) -> Iterator[str]:
    """Run it in a thread of this process; its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        app = build(FakeEngine(frozenset(faults), step), api_key, ready_after)
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(5)


if __name__ == "__main__":  # by hand: python tests/client/fake_openai.py FAULT …
    import sys

    with serve(*sys.argv[1:]) as url:
        print(url, flush=True)
        threading.Event().wait()
