"""Run the core, worker and text code in this process, and keep their record (LocalEngine).

`LLM` steps it directly, `AsyncLLM` on a thread; the methods that both offer are here.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore, Executor, MakeScheduler
from engine.core.grammar_gate import compiled_event
from engine.core.messages import CoreRequest
from engine.core.named_scheduler import named_scheduler
from engine.counts import Counts
from engine.models.fitting_options import check_local
from engine.sampling_params import ParameterError, SamplingParams
from engine.text.chat_template import ChatTemplate
from engine.text.input import InputProcessor
from engine.text.loading import load_text
from engine.text.output import OutputProcessor
from engine.text.prompts import GivenPrompt
from engine.text.tokenizing import Tokenizing
from engine.trace.events import Event
from engine.trace.files import JsonlWriter
from engine.trace.recorder import Recorder

if TYPE_CHECKING:  # it imports torch
    from engine.worker.model_runner import MakeSampleStep


class LocalEngine:
    """Run a model and its engine. `options` are the fields of `EngineConfig`.

    `scheduler` and `sample_step` are for your own classes (docs/EXERCISES.md).

    Raises `ConfigError` for impossible options, `TextError` if there is no tokenizer, and what the
    loader raises if there is no model.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        scheduler: MakeScheduler | None = None,
        sample_step: MakeSampleStep | None = None,
        **options: Any,
    ):
        if model is not None:
            options["model"] = model
        self.config = EngineConfig.from_options(options)
        self._make_scheduler = scheduler or named_scheduler(self.config.scheduler_cls)
        self._make_sample_step = sample_step
        self._bound: AbstractContextManager[None] = contextlib.nullcontext()
        self._is_shut_down = False
        self._counts = Counts(self.config.model_name)
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
        # Callbacks run in the reverse order, so the recorder hands over the last events first.
        self._on_shutdown.callback(self.recorder.close)
        try:
            self._start()
        except BaseException:
            self._on_shutdown.close()
            raise

    def _start(self) -> None:
        config = self.config
        check_local(config)
        self.tokenizer, self._defaults = load_text(config)
        self.recorder.read_tokens(self.tokenizer.texts)
        self.chat_template = ChatTemplate(
            self.tokenizer, config.chat_template, None, config.default_chat_template_kwargs
        )
        executor = self._load_executor()
        self.core = EngineCore(config, executor, self.recorder, self._make_scheduler)
        self._on_shutdown.callback(self.core.close)
        self._input = InputProcessor(
            self.tokenizer,
            executor.kv.max_model_len,
            executor.kv.vocab_size,
            self.recorder,
            self.config.max_logprobs,
        )
        self._output = OutputProcessor(self.tokenizer, self.recorder)

    def _load_executor(self) -> Executor:
        from engine.worker.model_runner import ModelRunner  # imports torch
        from engine.worker.sampling.sample_step import SampleStep

        runner = ModelRunner(self.config, self.recorder, self._make_sample_step or SampleStep)
        runner.load()
        self._on_shutdown.callback(runner.close)
        if not self.config.async_scheduling:
            self._bound = runner.cores
        return runner

    # ------------------------------------------------------------------------------ what it tells

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the parameters used where none are given: those that the model's makers recommend.

        See `--generation-config`. It is a copy, to change and pass on.
        """
        return self._defaults.params()

    def get_tokenizer(self) -> Any:
        """Return transformers' tokenizer of the model.

        It is a copy, so that what is set on it changes nothing here.
        """
        return self._tokenizer_copy

    @cached_property
    def _tokenizer_copy(self) -> Any:
        return copy.deepcopy(self.tokenizer.hf)

    def record(self) -> list[Event]:
        """Return the events so far, oldest first; the last `trace_buffer` of them."""
        self.recorder.flush()
        return list(self._events)

    def shutdown(self) -> None:
        """Stop the engine's threads and finish the record.

        The record can still be read; everything else is refused afterwards.
        """
        self._is_shut_down = True
        self._on_shutdown.close()

    # ------------------------------------------------------------------------------ details

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError(f"this {type(self).__name__} was shut down; make a new one.")

    def _compiled(self, request: CoreRequest) -> Any:
        """Compile the request's grammar, if it has one. Raises `ParameterError`."""
        text = request.params.grammar
        if text is None:
            return None
        from engine.worker.sampling.grammar_compiler import GrammarError

        grammars = self.core.executor.grammars  # type: ignore[attr-defined]
        grammars.set_tokenizer(self._input.forms.source())
        found = grammars.known(text)
        duration_us = 0.0
        if found is None:
            try:
                found = grammars.compile(text)
            except GrammarError as error:
                why = f"The form can't be held: {error}."
                raise ParameterError("structured_outputs", why) from None
            duration_us = found.duration_us
        self.recorder.record(compiled_event(request, duration_us))
        return found

    def _request(
        self,
        given: GivenPrompt,
        params: SamplingParams,
        tokenizing: Tokenizing,
        *,
        request_id: str,
        priority: int,
        route: str,
    ) -> CoreRequest:
        """Make one prompt into a request for the core. Raises `TextError`, `ParameterError`."""
        if type(priority) is not int:
            raise ParameterError(
                "priority", f"priority is {priority!r:.80}; it must be an integer."
            )
        return self._input.process(
            tokenizing.prompt(self.tokenizer, given),
            params,
            request_id=request_id,
            add_special_tokens=tokenizing.add_special_tokens,
            priority=priority,
            cache_salt=given.cache_salt,
            route=route,
        )


def one_each(name: str, values: Any, number: int) -> Sequence[Any]:
    """Return `values` for each of `number` prompts: one for all, or a list with one for each.

    Raises `ValueError` for a list of another length.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | Mapping):
        return [values] * number
    if len(values) != number:
        raise ValueError(
            f"{name} has {len(values)} entries for {number} prompts; give one for each, or one for"
            " all."
        )
    return values
