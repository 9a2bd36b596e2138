"""LLM: the engine inside your own program, no server.

    with LLM("my-model", max_num_seqs=64) as llm:
        for output in llm.generate(["Once", "Twice"], SamplingParams(max_tokens=32)):
            print(output.prompt, output.outputs[0].text)
        print(llm.record()[-1])

It is the very core, worker and text code that the server runs, in one process and one thread:
add all requests, then step until none has work. Outputs have the shape that vLLM's users know.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore, Executor, MakeScheduler
from engine.core.messages import CoreRequest
from engine.core.scheduler import Scheduler
from engine.sampling_params import SamplingParams
from engine.text.chat import ChatTemplate, Message
from engine.text.input import InputProcessor, Prompt
from engine.text.loading import load_text
from engine.text.output import OutputProcessor, RequestText
from engine.text.request_output import RequestOutput, request_output
from engine.text.tokenizer import Tokenizer
from engine.trace.events import Event
from engine.trace.files import JsonlWriter
from engine.trace.recorder import Recorder

if TYPE_CHECKING:  # it imports torch
    from engine.worker.model_runner import MakeSampleStep


class LLM:
    """A model and an engine for it. `options` are the fields of `EngineConfig`; `scheduler` and
    `sample_step` are for ones of your own (docs/EXERCISES.md).

    Raises `ConfigError` for impossible options, `TextError` if there is no tokenizer, and what the
    loader raises if there is no model. Not thread-safe.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        scheduler: MakeScheduler = Scheduler,
        sample_step: MakeSampleStep | None = None,
        **options: Any,
    ):
        if model is not None:
            options["model"] = model
        self.config = EngineConfig(**options)
        self._make_scheduler = scheduler
        self._make_sample_step = sample_step
        self._bound: AbstractContextManager[None] = contextlib.nullcontext()
        self.recorder = Recorder(
            self.config.trace,
            text=self.config.trace_text == "on",
            capacity=self.config.trace_buffer,
        )
        self._events: deque[Event] = deque(maxlen=self.config.trace_buffer)
        self.recorder.subscribe(self._events.extend)
        self._on_shutdown = contextlib.ExitStack()
        if self.config.trace_file:
            writer = JsonlWriter(self.config.trace_file)
            self.recorder.subscribe(writer)
            self._on_shutdown.callback(writer.close)
        # Callbacks run in the reverse order: the recorder hands over the last events first.
        self._on_shutdown.callback(self.recorder.close)
        try:
            self._start()
        except BaseException:
            self._on_shutdown.close()
            raise

    def _start(self) -> None:
        config = self.config
        self.tokenizer, self._defaults = load_text(config)
        self.recorder.read_tokens(self.tokenizer.texts)
        self.chat_template = ChatTemplate(self.tokenizer, config.chat_template)
        executor = self._load_executor()
        self.core = EngineCore(config, executor, self.recorder, self._make_scheduler)
        self._on_shutdown.callback(self.core.close)
        self._input = InputProcessor(
            self.tokenizer, executor.kv.max_model_len, executor.kv.vocab_size, self.recorder
        )
        self._output = OutputProcessor(self.tokenizer, self.recorder)
        self._numbers = count()

    def _load_executor(self) -> Executor:
        from engine.worker.model_runner import ModelRunner  # imports torch
        from engine.worker.sampling.sample_step import SampleStep

        runner = ModelRunner(self.config, self.recorder, self._make_sample_step or SampleStep)
        runner.load()
        if not self.config.async_scheduling:
            self._bound = runner.cores
        return runner

    # ------------------------------------------------------------------------------ generating

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete each prompt (a text, or token ids); outputs come in the order of the prompts.

        `sampling_params` are for all prompts, or a list with one for each; None means
        `get_default_sampling_params()`.
        `use_tqdm` shows a progress bar. Raises `TextError`, `ParameterError` or `RequestError` for
        a request that can't be served; then none of them has run. An answer whose logits aren't
        finite ends with the finish_reason "error", and the output's `error` says why.
        """
        return self._run(_as_list(prompts), sampling_params, use_tqdm, "LLM.generate", True)

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
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list; see `ChatTemplate.render` for the options."""
        single = not messages or isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Sequence[Message]]", [messages] if single else messages)
        prompts: list[Prompt] = [
            self.chat_template.render(
                conversation,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template_kwargs=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        return self._run(prompts, sampling_params, use_tqdm, "LLM.chat", False)

    def get_default_sampling_params(self) -> SamplingParams:
        """What holds where no parameters are given: those that the model's makers recommend, see
        `--generation-config`. A copy, to change and pass on."""
        return self._defaults.params()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer; its `hf` is transformers' own object."""
        return self.tokenizer

    # ------------------------------------------------------------------------------ the record

    def record(self) -> list[Event]:
        """The events so far, oldest first; the last `trace_buffer` of them."""
        self.recorder.flush()
        return list(self._events)

    def shutdown(self) -> None:
        """Stop the engine's threads and finish the record. The LLM can't be used afterwards."""
        self._on_shutdown.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    # ------------------------------------------------------------------------------ details

    def _run(
        self,
        prompts: list[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        show_progress: bool,
        route: str,
        add_special_tokens: bool,
    ) -> list[RequestOutput]:
        requests = [
            self._input.process(
                prompt,
                params,
                request_id=f"llm-{next(self._numbers)}",
                add_special_tokens=add_special_tokens,
                route=route,
            )
            for prompt, params in zip(prompts, self._one_each(sampling_params, len(prompts)))
        ]
        try:
            texts = [self._add(*pair) for pair in zip(requests, prompts)]
            with _progress(len(texts), show_progress) as progress, self._bound:
                self._step_until_done(progress)
        except BaseException as error:  # KeyboardInterrupt too: leave nothing behind
            for request in requests:
                self.core.abort(request.request_id, f"LLM stopped: {type(error).__name__}")
                self._output.remove(request.request_id)
            raise
        return [request_output(text) for text in texts]

    def _one_each(
        self, params: SamplingParams | Sequence[SamplingParams] | None, number: int
    ) -> Sequence[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * number
        if len(params) != number:
            raise ValueError(
                f"sampling_params has {len(params)} entries for {number} prompts; give one for"
                " each, or one for all."
            )
        return params

    def _add(self, request: CoreRequest, prompt: Prompt) -> RequestText:
        self.core.add_request(request)
        return self._output.add(request, prompt if isinstance(prompt, str) else None)

    def _step_until_done(self, progress: _Bar) -> None:
        while self.core.has_work:
            for output in self.core.step():
                delta = self._output.process(output)
                if delta is None:
                    continue
                if delta.finish_in_core:
                    self.core.finish(output.request_id, delta.index, str(delta.stop_reason))
                if output.error:
                    warnings.warn(f"{output.request_id}: {output.error}", stacklevel=2)
                progress.advance(len(delta.token_ids), delta.request.finished)


def _as_list(prompts: Any) -> list[Prompt]:
    """One prompt or many; a list of integers is one prompt."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]
    return [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]


class _Bar:
    """Requests done and tokens a second; nothing at all without a `Progress`."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress = progress
        self._num_tokens = 0
        if progress is not None:
            self._task = progress.add_task("generating", total=total, rate="")

    def advance(self, num_tokens: int, request_finished: bool) -> None:
        if self._progress is None:
            return
        self._num_tokens += num_tokens
        elapsed = self._progress.tasks[0].elapsed or 0.0
        rate = f"{self._num_tokens / elapsed:,.0f} tokens/s" if elapsed else ""
        self._progress.update(self._task, advance=int(request_finished), rate=rate)


@contextlib.contextmanager
def _progress(total: int, shown: bool) -> Iterator[_Bar]:
    if not shown:
        yield _Bar(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        yield _Bar(progress, total)
