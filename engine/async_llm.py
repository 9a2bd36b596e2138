"""Run the engine inside a program with an event loop, without a server (AsyncLLM).

    async with AsyncLLM("my-model") as llm:
        async for output in llm.generate("Once", SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)

The core and worker run on a thread of their own, the text code on the event loop. Any number of
requests may run at once. Cancelling a request, or closing its iterator, aborts it in the engine.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

from engine.core.admission import RequestError
from engine.core.engine_core import EngineCore
from engine.counts import Metric
from engine.engine_thread import EngineThread, News, NewsQueue
from engine.local_engine import LocalEngine
from engine.sampling_params import SamplingParams
from engine.text.chat_template import Message
from engine.text.lanes import GRAMMARS, LONG, LONG_TEXT, in_lane
from engine.text.prompts import GivenPrompt, read_prompt
from engine.text.request_output import RequestOutput, request_output
from engine.text.request_text import RequestText
from engine.text.tokenizing import Tokenizing


class AsyncLLM(LocalEngine):
    """Run a model and its engine on a thread; see `LocalEngine` for the arguments.

    Making one takes as long as loading the model: on an event loop, `await asyncio.to_thread(
    AsyncLLM, model)`. Call all methods but `shutdown` on the thread of an event loop.
    """

    def _start(self) -> None:
        start = super()._start

        def load() -> tuple[EngineCore, AbstractContextManager[None]]:
            start()
            return self.core, self._bound

        self._open: dict[str, NewsQueue] = {}  # by request id
        self._numbers = count()
        self._engine = EngineThread(load, self._counts)
        self._on_shutdown.callback(self._engine.stop, "this AsyncLLM was shut down.")

    # ------------------------------------------------------------------------------ generating

    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete one prompt (see `LLM.generate`); each output has everything generated so far.

        `request_id` must not be in use; None: the engine makes one. The last output is `finished`.
        Leaving the loop over it, closing it or cancelling its task aborts the request.

        Raises `TextError`, `ParameterError` or `RequestError` for a request that can't be served,
        `ValueError` for an id in use, `RuntimeError` after `shutdown` or when the engine fails.
        """
        given = read_prompt(prompt)

        async def find() -> GivenPrompt:
            return given

        tokenizing = Tokenizing.of(tokenization_kwargs, add_special_tokens=True)
        return self._answer(
            find, sampling_params, request_id, priority, tokenizing, "AsyncLLM.generate"
        )

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer one conversation, see `ChatTemplate.render` and `generate` for the options."""
        render = functools.partial(
            self.chat_template.render,
            messages,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )

        async def find() -> GivenPrompt:
            return GivenPrompt(await in_lane(LONG, render), None)

        tokenizing = Tokenizing.of(tokenization_kwargs, add_special_tokens=False)
        return self._answer(
            find, sampling_params, request_id, priority, tokenizing, "AsyncLLM.chat"
        )

    async def abort(self, request_id: str) -> None:
        """End a request with the finish_reason "abort", after what it has generated.

        Nothing happens if no such request is open.
        """
        news_queue = self._open.get(request_id)
        if news_queue is not None:
            news_queue.put([], _Aborted())

    # ------------------------------------------------------------------------------ the engine

    async def reset_prefix_cache(self) -> bool:
        """Make later prompts ignore the blocks that are cached now. Returns True, as vLLM does."""
        self._check_open()
        await self._engine.ask(lambda core: core.reset_prefix_cache())
        return True

    async def get_metrics(self) -> list[Metric]:
        """Return the counts since the start, and the current state."""
        self._check_open()
        return self._counts.metrics(await self._engine.ask(lambda core: core.stats()))

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.shutdown()

    # ------------------------------------------------------------------------------ details

    async def _answer(
        self,
        find: Callable[[], Awaitable[GivenPrompt]],
        params: SamplingParams | None,
        request_id: str | None,
        priority: int,
        tokenizing: Tokenizing,
        route: str,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer a prompt.

        find: makes the prompt. Everything held is released in one place, at the end.
        """
        self._check_open()
        request_id = f"async-{next(self._numbers)}" if request_id is None else request_id
        if request_id in self._open:
            raise ValueError(f"request_id {request_id!r} is in use; choose another.")
        news_queue = self._open[request_id] = NewsQueue(asyncio.get_running_loop())
        text: RequestText | None = None
        try:
            given = await find()
            params = params or self.get_default_sampling_params()
            request = functools.partial(
                self._request,
                given,
                params,
                tokenizing,
                request_id=request_id,
                priority=priority,
                route=route,
            )
            if params.structured_outputs is not None:
                core_request = await in_lane(GRAMMARS, request)
                self._engine.set_grammar_tokenizer(self._input.forms.source())
            elif len(given.content) > LONG_TEXT:
                core_request = await in_lane(LONG, request)
            else:
                core_request = request()
            text = self._output.begin(core_request, given.text)
            self._engine.add(core_request, news_queue)
            while not text.finished:
                if self._take(text, await news_queue.take()):
                    yield request_output(text)
        except RequestError:  # the core never had it
            text = None
            raise
        except _Aborted:
            if text is not None:
                self._engine.release(request_id, news_queue, "aborted by the program")
                text.end("abort")
                yield request_output(text)
        finally:
            del self._open[request_id]
            if text is not None:
                self._engine.release(request_id, news_queue, "the program left it")
                self._counts.ended(text)

    def _take(self, text: RequestText, news: list[News]) -> bool:
        """Convert news to text; return whether there is something new to show."""
        is_new = False
        for output, at_ns in news:
            delta = self._output.process(text, output)
            if delta is None:
                continue
            is_new = True
            if delta.finish_in_core:
                self._engine.finish(text.request_id, delta.index, str(delta.stop_reason))
            if delta.token_ids:
                text.first_token_ns = text.first_token_ns or at_ns
                text.last_token_ns = at_ns
        return is_new


class _Aborted(Exception):
    """Report that the program has asked for the end of a request."""
