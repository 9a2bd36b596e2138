"""Run the engine inside your own program, without a server (LLM).

    with LLM("my-model", max_num_seqs=64) as llm:
        for output in llm.generate(["Once", "Twice"], SamplingParams(max_tokens=32)):
            print(output.prompt, output.outputs[0].text)
        print(llm.record()[-1])

It is the same core, worker and text code that the server runs, in one process and one thread: add
all requests, then step until none has work. Outputs have the shape that vLLM's users know.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, cast

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engine.counts import Metric
from engine.local_engine import LocalEngine, one_each
from engine.sampling_params import SamplingParams
from engine.text.chat_template import Message
from engine.text.prompts import GivenPrompt, read_prompts
from engine.text.request_output import RequestOutput, request_output
from engine.text.request_text import RequestText
from engine.text.tokenizing import Tokenizing


class LLM(LocalEngine):
    """Run a model and its engine; see `LocalEngine` for the arguments. Not thread-safe."""

    def _start(self) -> None:
        super()._start()
        self._numbers = count()

    # ------------------------------------------------------------------------------ generating

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt; outputs come in the order of the prompts.

        A prompt is a text, a list or array of token ids, or a dict with "prompt" or
        "prompt_token_ids" (and "cache_salt", to share cached blocks only with prompts of the same
        salt); `prompts` is one, or an iterable of them. `sampling_params` and `priority` are for
        all, or a list with one for each; no parameters mean `get_default_sampling_params()`.
        Priorities (lower runs first) count with `scheduling_policy="priority"`.
        `tokenization_kwargs`: add_special_tokens, or truncation with max_length. `use_tqdm` shows a
        progress bar.

        Raises `TextError`, `ParameterError` or `RequestError` for a request that can't be served;
        then no request has run. An answer whose logits aren't finite ends with the finish_reason
        "error", and the output's `error` says why. Raises `RuntimeError` after `shutdown`.
        """
        self._check_open()
        tokenizing = Tokenizing.of(tokenization_kwargs, add_special_tokens=True)
        given = read_prompts(prompts)
        return self._run(given, sampling_params, priority, tokenizing, use_tqdm, "LLM.generate")

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list.

        See `ChatTemplate.render` and `generate` for the options. `tools`: definitions as OpenAI's
        API has them, or Python functions; the text has calls as the model writes them.
        """
        self._check_open()
        single = not messages or isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Sequence[Message]]", [messages] if single else messages)
        tokenizing = Tokenizing.of(tokenization_kwargs, add_special_tokens=False)
        if tools is not None:
            chat_template_kwargs = {"tools": list(tools), **(chat_template_kwargs or {})}
        given = [
            GivenPrompt(
                self.chat_template.render(
                    conversation,
                    chat_template=chat_template,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    chat_template_kwargs=chat_template_kwargs,
                ),
                None,
            )
            for conversation in conversations
        ]
        return self._run(given, sampling_params, priority, tokenizing, use_tqdm, "LLM.chat")

    # ------------------------------------------------------------------------------ the engine

    def reset_prefix_cache(self) -> bool:
        """Make later prompts ignore the blocks that are cached now. Returns True, as vLLM does."""
        self._check_open()
        self.core.reset_prefix_cache()
        return True

    def get_metrics(self) -> list[Metric]:
        """Return the counts since the start, and the current state."""
        self._check_open()
        return self._counts.metrics(self.core.stats())

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    # ------------------------------------------------------------------------------ details

    def _run(
        self,
        given: list[GivenPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None,
        tokenizing: Tokenizing,
        show_progress: bool,
        route: str,
    ) -> list[RequestOutput]:
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        params = one_each("sampling_params", sampling_params, len(given))
        priorities = one_each("priority", priority or 0, len(given))
        requests = [
            self._request(
                prompt,
                params[place],
                tokenizing,
                request_id=f"llm-{next(self._numbers)}",
                priority=priorities[place],
                route=route,
            )
            for place, prompt in enumerate(given)
        ]
        grammars = [self._compiled(request) for request in requests]
        texts: dict[str, RequestText] = {}
        try:
            for request, prompt, grammar in zip(requests, given, grammars):
                self.core.add_request(request, grammar)
                texts[request.request_id] = self._output.begin(request, prompt.text)
            with progress_bar(len(texts), show_progress) as progress, self._bound:
                self._step_until_done(texts, progress)
        except BaseException as error:  # KeyboardInterrupt too: no request may stay behind
            for request in requests:
                self.core.abort(request.request_id, f"LLM stopped: {type(error).__name__}")
            raise
        return [request_output(text) for text in texts.values()]

    def _step_until_done(self, texts: Mapping[str, RequestText], progress: Bar) -> None:
        while self.core.has_work:
            outputs = self.core.step()
            self._counts.stepped(self.core.stats())
            now_ns = time.monotonic_ns()
            for output in outputs:
                text = texts.get(output.request_id)  # None: of a call that was interrupted
                delta = None if text is None else self._output.process(text, output)
                if text is None or delta is None:
                    continue
                if delta.finish_in_core:
                    self.core.finish(output.request_id, delta.index, str(delta.stop_reason))
                if output.error:
                    warnings.warn(f"{output.request_id}: {output.error}", stacklevel=2)
                if delta.token_ids:
                    text.first_token_ns = text.first_token_ns or now_ns
                    text.last_token_ns = now_ns
                if text.finished:
                    self._counts.ended(text)
                progress.advance(len(delta.token_ids), text.finished)


class Bar:
    """Show finished requests and tokens a second; show nothing without a `Progress`."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress = progress
        self._num_tokens = 0
        if progress is not None:
            self._task = progress.add_task("generating", total=total, rate="")

    def advance(self, num_tokens: int, request_finished: bool) -> None:
        """Count new tokens, and their request if it has finished."""
        if self._progress is None:
            return
        self._num_tokens += num_tokens
        elapsed = self._progress.tasks[0].elapsed or 0.0
        rate = f"{self._num_tokens / elapsed:,.0f} tokens/s" if elapsed else ""
        self._progress.update(self._task, advance=int(request_finished), rate=rate)


@contextlib.contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Bar]:
    """Make a bar for `total` requests; one that shows nothing unless `shown`."""
    if not shown:
        yield Bar(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        yield Bar(progress, total)
