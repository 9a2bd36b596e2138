"""Hold everything that the routes share, and the state that /health shows.

loading ──▶ ready ──▶ draining          (SIGTERM: nothing new, the rest may finish)
   └──────────┴─────▶ failed            (the engine process is gone, or hangs)

A ready server is "stalled" when half of --engine-timeout is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from loguru import logger

from engine.config import EngineConfig
from engine.core.messages import KVShape
from engine.one_line import one_line
from engine.server.answering.limits import Limits
from engine.server.api_servers import ApiServers
from engine.server.http.errors import ApiError, unavailable
from engine.server.http.sse import HEARTBEAT_S
from engine.server.link.control import ProcessCounts
from engine.server.link.engine_client import RETRY_AFTER_S, EngineClient, EngineEnd
from engine.server.link.engine_start import EngineStart, Load
from engine.server.record.trace_hub import TraceHub
from engine.server.responses.response_store import ResponseStore
from engine.server.telemetry import connect
from engine.server.telemetry.metrics import Metrics
from engine.text.chat_template import ChatTemplate
from engine.text.generation_config import GenerationDefaults
from engine.text.grammar_process import GrammarProcess
from engine.text.input import InputProcessor
from engine.text.loading import load_text
from engine.text.messages.found import MessageFormats, find_formats
from engine.text.output import OutputProcessor
from engine.text.template_process import TemplateProcess
from engine.text.tokenizer import Tokenizer
from engine.trace.events import EngineFailed, EngineWarning
from engine.trace.merging import MergingRecorder
from engine.trace.packing_recorder import PackingRecorder
from engine.trace.recorder import Recorder

MAX_NAMES_WARNED = 1000  # a caller may invent any number of names

T = TypeVar("T")


class SharedEngine(NamedTuple):
    """Hold a further server process's ways to the engine that the first one has started."""

    number: int  # of the process: 2, 3, …
    engine: EngineEnd
    record: Callable[[bytes], None]  # sends events to the first process
    makes_spans: bool  # the first process makes OpenTelemetry spans of the record


@dataclass
class Text:
    """Hold the text code, which exists once the tokenizer and the model are loaded."""

    tokenizer: Tokenizer
    input: InputProcessor
    output: OutputProcessor
    chat: ChatTemplate
    formats: MessageFormats


class Service:
    """Run the parts of one server. `start` begins to load; `on_failure` is called once.

    It is called if the engine fails.
    """

    def __init__(
        self,
        config: EngineConfig,
        load: Load | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        shared: SharedEngine | None = None,
        engine: EngineStart | None = None,
    ):
        """Make a server with an engine of its own, or one with the engine of another process.

        load: what makes the executor; None: the real one. engine: its process, if it runs already.
        """
        self.config = config
        self.heartbeat_s = heartbeat_s
        self.number = 1 if shared is None else shared.number  # of this server process
        with_text = config.trace_text == "on"
        merged = MergingRecorder("off" if shared else config.trace, text=with_text)
        self.recorder: Recorder = merged
        if shared is not None:
            source = f"server {shared.number}"
            self.recorder = PackingRecorder(shared.record, config.trace, source, with_text)
        self.hub = TraceHub(config, merged)
        self.others: ApiServers | None = None  # further processes of this server
        self.telemetry = None if shared else connect.connect(config)
        if self.telemetry is not None:
            self.hub.subscribe(self.telemetry.spans)
        self.makes_spans = shared.makes_spans if shared else self.telemetry is not None
        self.metrics = Metrics(config)
        self.client = EngineClient(
            config,
            self._model_ready,
            self._failed,
            self.metrics.observe_step if shared is None else lambda stats: None,
            load,
            None if shared is None else shared.engine,
            engine,
        )
        self.text: Text | None = None
        self.limits = Limits()  # until the model is known
        self.responses = ResponseStore(config.response_store_bytes, config.response_store_ttl)
        self.draining = False
        self.open: set[object] = set()  # each generation that is being answered
        self.on_failure: Callable[[str], None] = lambda message: None
        self.on_ready: Callable[[], None] = lambda: None
        self.short_render_s = math.inf  # what the last short conversation took
        self._tokenizer: Tokenizer | None = None
        self.defaults = GenerationDefaults()
        self._templates = TemplateProcess()
        self._grammars = GrammarProcess()
        self._warned: set[str] = set()

    # ------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Start the engine process and load the tokenizer.

        Call it on the event loop, in the main thread.
        """
        if self.client.engine is not None:
            self.hub.listen(self.client.engine.record_end)
        await self.client.start()
        self._loading = asyncio.create_task(self._load_text())

    async def stop(self) -> None:
        if self.others is not None:
            await self.others.stop()
        await self.client.stop()
        self._templates.close()
        self._grammars.close()
        if self.number > 1:
            self.recorder.close()
        self.hub.close()
        if self.telemetry is not None:
            self.telemetry.close()

    async def _load_text(self) -> None:
        config = self.config
        try:
            tokenizer, self.defaults = await _in_daemon_thread(lambda: load_text(config))
            # An unusable template must be refused at the start, not at the first chat.
            self._chat = ChatTemplate(
                tokenizer,
                config.chat_template,
                self._render_foreign,
                config.default_chat_template_kwargs,
            )
            self._formats = find_formats(
                self._chat, config.tool_call_parser, config.reasoning_parser
            )
            self._tokenizer = tokenizer
            if not tokenizer.facts.fast:
                logger.info("The tokenizer is written in Python: transformers is imported for it.")
        except Exception as error:
            self.client.fail(one_line(error, 1000))
        self._join_text()
        # What only transformers knows of a model is asked once: from now on a file has it.
        engine, others = self.client.engine, self.others
        if others is not None and engine is not None and self.client.state in ("loading", "ready"):
            try:
                await others.start(engine, self.hub, self.makes_spans)
            except Exception as error:
                self.client.fail(f"an API server process can't be started: {one_line(error, 900)}")

    def _model_ready(self, kv: KVShape) -> None:
        self.metrics.set_cache(kv)
        self._join_text()

    def _join_text(self) -> None:
        """Make the server ready once both the model and the tokenizer are loaded."""
        kv, tokenizer = self.client.kv, self._tokenizer
        if kv is None or tokenizer is None or self.client.state != "ready":
            return
        self.text = Text(
            tokenizer,
            InputProcessor(
                tokenizer,
                kv.max_model_len,
                kv.vocab_size,
                self.recorder,
                self.config.max_logprobs,
                self._grammars.check,
            ),
            OutputProcessor(tokenizer, self.recorder),
            self._chat,
            self._formats,
        )
        self.client.grammar_tokenizer = self.text.input.forms.source
        self.limits = Limits(
            kv.max_model_len,
            kv.vocab_size,
            tokenizer.longest_token,
            self.config.max_num_queued_reqs,
            self.config.max_logprobs,
        )
        self.recorder.read_tokens(tokenizer.texts)
        gc.freeze()  # collections needn't visit everything imported and loaded
        self.on_ready()
        if self.number > 1:
            return
        logger.info(
            "{} is ready: {:,} KV blocks of {} tokens, context {:,} tokens.",
            self.config.model_name,
            kv.num_blocks,
            kv.block_size,
            kv.max_model_len,
        )
        if self._formats.why:
            logger.info("Answers are taken apart: {}.", self._formats.why)
            self.recorder.record(self._formats.event())
        if self.defaults.sampling:
            logger.info("{}", self.defaults.in_words())

    def _render_foreign(self, template: str, variables: dict[str, Any]) -> str:
        return self._templates.render(template, variables, self.limits.prompt_characters)

    def _failed(self, message: str) -> None:
        if self.number == 1:  # once, though every server process hears of it
            self.recorder.record(EngineFailed(message=message))
        self.on_failure(message)

    # ------------------------------------------------------------------------------ what routes ask

    @property
    def num_open(self) -> int:
        """Count the HTTP requests that are being answered."""
        return len(self.open)

    @property
    def state(self) -> str:
        if self.client.state == "failed":
            return "failed"
        if self.draining:
            return "draining"
        if self.client.looks_hung:
            return "stalled"
        are_up = self.others is None or self.others.are_up
        return "ready" if self.text is not None and are_up else "loading"

    @property
    def detail(self) -> str:
        """Describe the state in words."""
        if self.state == "loading" and self.client.state == "ready":
            return "loading the tokenizer" if self.text is None else "starting the API servers"
        if self.state == "stalled":
            silent_s = self.client.silent_s
            return f"the engine has sent nothing for {silent_s:.0f} s, and computes nothing"
        return "finishing the running requests" if self.state == "draining" else self.client.stage

    def ready_text(self) -> Text:
        """Return the text code. Raises `ApiError` 503 unless the server is ready for new work."""
        if self.state != "ready" or self.text is None:
            raise unavailable(f"The server is {self.state}: {self.detail}.", RETRY_AFTER_S)
        return self.text

    async def counts_of_others(self) -> list[ProcessCounts]:
        """Return what the further processes of this server have counted."""
        return [] if self.others is None else await self.others.counts()

    def check_model(self, name: str | None) -> None:
        """Raise `ApiError` 404 unless `name` is a name of the loaded model, or ""."""
        served = self.config.served_model_name
        if name and name not in served:
            raise ApiError(
                404,
                f"The model {name!r} does not exist; this server has"
                f" {', '.join(map(repr, served))}.",
                "model",
            )

    def warn_of_unknown(self, fields: list[str]) -> None:
        """Name each unknown field of a body in the record, the first time that it is seen."""
        for name in fields:
            if name not in self._warned and len(self._warned) < MAX_NAMES_WARNED:
                self._warned.add(name)
                message = f"The request field {name!r} is unknown and has no effect."
                self.recorder.record(EngineWarning(message=message))


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Run `work()` in a daemon thread: a download that hangs must not keep the process from
    exiting."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not result.done():
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        try:
            value, error = work(), None
        except Exception as problem:
            value, error = None, problem
        with contextlib.suppress(RuntimeError):  # the server and its loop have ended meanwhile
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="tokenizer", daemon=True).start()
    return await result
