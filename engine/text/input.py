"""Convert a prompt and its parameters to a `CoreRequest`, or refuse it with a clear error.

Every possible fault of a prompt is found here, before the core gets it. The core clamps max_tokens
to what the context leaves.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import msgspec

from engine.core.messages import CoreRequest
from engine.sampling_params import (
    MAX_LOGPROBS,
    WHAT_FITS,
    ParameterError,
    SamplingParams,
    number_of_logprobs,
)
from engine.structured_outputs import StructuredOutputsError, StructuredOutputsParams
from engine.text.errors import TextError
from engine.text.form_cache import Check, FormCache
from engine.text.form_to_grammar import checked_grammar
from engine.text.lanes import GRAMMARS, LONG, LONG_TEXT, in_lane
from engine.text.messages.call_grammar import call_grammar
from engine.text.messages.formats import CallFormat
from engine.text.messages.held_grammar import held_grammar
from engine.text.messages.rules import MessageRules
from engine.text.tokenizer import Tokenizer
from engine.trace.events import EngineWarning, RequestReceived, RequestRefused, RequestTokenized
from engine.trace.recorder import Recorder

Prompt = str | list[int]
MANY_WORDS = 16
"""Bad words that take about a millisecond."""
_QUOTED = ("structured_outputs", "tools", "bad_words")
"""The fields whose errors quote what a client sent."""


class InputProcessor:
    """Convert prompts for one model.

    `max_model_len`: tokens, prompt and output. `vocab_size`: the model's own. `max_logprobs`:
    candidates beside a token, −1 for no limit.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_model_len: int,
        vocab_size: int,
        recorder: Recorder,
        max_logprobs: int = MAX_LOGPROBS,
        check: Check = checked_grammar,
    ):
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.recorder = recorder
        self.max_logprobs = max_logprobs
        self.forms = FormCache(tokenizer, check)
        # A checkpoint's files may disagree: rules may only name tokens that the model can draw.
        self._eos_token_ids = [i for i in tokenizer.eos_token_ids if 0 <= i < vocab_size]

    def process(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        add_special_tokens: bool = True,
        priority: int = 0,
        cache_salt: str = "",
        trace_full: bool = False,
        route: str = "",
        client: str = "",
        trace_context: dict[str, str] | None = None,
        ignored: Sequence[str] = (),
        settled: SamplingParams | None = None,
        rules: MessageRules | None = None,
    ) -> CoreRequest:
        """Make the request for the core. Safe to call from several threads.

        Chat prompts come with `add_special_tokens=False`: their template wrote them. `route`,
        `client`, `trace_context` and `ignored` (unknown fields of the body) go into the record.
        `settled`: what an earlier call made of the same `params`; several prompts share it.
        `rules`: how the answer is taken apart, which a grammar must agree with.

        Raises `TextError` for the prompt, `ParameterError` for the parameters.
        """
        arrival_ns = time.monotonic_ns()
        text = prompt if isinstance(prompt, str) else ""
        self.recorder.record(
            RequestReceived(
                request_id=request_id,
                route=route,
                params=params.changed(),
                client=client,
                trace_context=trace_context or {},
                ignored=list(ignored),
                text=text,
            )
        )
        try:
            token_ids = self._tokenize(prompt, params, add_special_tokens, request_id)
            if settled is None:
                settled = self._settled(params, rules)
        except (TextError, ParameterError) as error:
            self.recorder.record(RequestRefused(request_id=request_id, why=self._told(error)))
            raise
        return CoreRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=settled,
            eos_token_ids=self._eos_token_ids,
            arrival_ns=arrival_ns,
            priority=priority,
            cache_salt=cache_salt,
            trace_full=trace_full,
        )

    async def process_async(
        self, prompt: Prompt, params: SamplingParams, **options: object
    ) -> CoreRequest:
        """Run `process` for a server: work of more than a millisecond runs on a thread."""
        call = functools.partial(self.process, prompt, params, **options)  # type: ignore[arg-type]
        if options.get("settled") is not None:
            return await in_lane(LONG, call) if len(prompt) > LONG_TEXT else call()
        rules = options.get("rules")
        if isinstance(rules, MessageRules) and self._calls_are_held(rules, params):
            known = await in_lane(LONG, functools.partial(self._knows, params, rules))
            return await in_lane(LONG if known else GRAMMARS, call)
        if not self._knows(params, None):
            return await in_lane(GRAMMARS, call)
        joined = rules is not None and params.structured_outputs is not None
        if joined or len(prompt) > LONG_TEXT or len(params.bad_words or ()) > MANY_WORDS:
            return await in_lane(LONG, call)
        return call()

    def _knows(self, params: SamplingParams, rules: MessageRules | None) -> bool:
        """Return whether no grammar that the request needs has yet to be checked, which takes up to
        seconds. `rules`: they hold calls."""
        form = None if rules is not None and rules.must_call else params.structured_outputs
        if form is not None and not self.forms.known(form):
            return False
        if rules is None or rules.calls is None:
            return True
        try:
            return self.forms.known(self._form_of_calls(rules, rules.calls))
        except StructuredOutputsError:
            return True  # what can't be written takes no time; `process` tells it

    @staticmethod
    def _calls_are_held(rules: MessageRules, params: SamplingParams) -> bool:
        return rules.calls is not None and (
            rules.must_call or params.structured_outputs is not None
        )

    def _settled(self, params: SamplingParams, rules: MessageRules | None) -> SamplingParams:
        """Check the parameters against the model, and add the tokens that their words stand for.

        Raises `ParameterError`.
        """
        params.check_vocabulary(self.vocab_size)
        params = params.with_limits(self.vocab_size, self.max_logprobs)
        if params.bad_words:
            sequences = self.tokenizer.bad_words(params.bad_words)
            params = msgspec.structs.replace(params, bad_words_token_ids=sequences)
        form = params.structured_outputs
        grammars = []
        if rules is not None and rules.calls is not None and self._calls_are_held(rules, params):
            grammars.append(self._of_calls(rules, rules.calls))
        if form is not None and not (rules is not None and rules.must_call):
            grammars.append(self._of_form(form))
        if not grammars:
            return params
        reasoning, inside = None, False
        if rules is not None:
            reasoning, inside = rules.reasoning, rules.begins_reasoning
        grammar = held_grammar(grammars, reasoning, inside, self.forms.added)
        return msgspec.structs.replace(params, grammar=grammar)

    def _told(self, error: TextError | ParameterError) -> str:
        """Return an error as the record tells it: one about words or forms quotes the request."""
        field = error.param.partition(".")[0]
        hidden = field in _QUOTED and not self.recorder.text
        return f"its {field} can't be served (why is withheld)" if hidden else str(error)

    def _of_form(self, form: StructuredOutputsParams) -> str:
        """Return the grammar of a form; what it ignores of the form goes into the record."""
        try:
            found = self.forms.find(form)
        except StructuredOutputsError as error:
            where = ".".join(filter(None, ("structured_outputs", error.field)))
            raise ParameterError(where, f"structured_outputs: {error}") from None
        for warning in found.warnings:
            told = warning if self.recorder.text else "a part of a form isn't held to"
            self.recorder.record(EngineWarning(message=f"structured_outputs: {told}"))
        return found.grammar

    def _of_calls(self, rules: MessageRules, calls: CallFormat) -> str:
        """Return the grammar of calls."""
        try:
            return self.forms.find(self._form_of_calls(rules, calls)).grammar
        except StructuredOutputsError as error:
            reason = str(error).partition("\n")[0]  # behind it comes the whole grammar
            raise ParameterError(
                "tools", f"A call of these tools can't be forced: {reason}"
            ) from None

    def _form_of_calls(self, rules: MessageRules, calls: CallFormat) -> StructuredOutputsParams:
        text = call_grammar(calls, rules.schemas, rules.one_call, self.forms.added)
        return StructuredOutputsParams(grammar=text)

    def _tokenize(
        self, prompt: Prompt, params: SamplingParams, add_special_tokens: bool, request_id: str
    ) -> list[int]:
        start_ns = time.perf_counter_ns()
        if isinstance(prompt, str):
            token_ids = self.tokenizer.encode(prompt, add_special_tokens)
        else:
            token_ids = self._checked_ids(prompt)
        kept = self._truncated(token_ids, params)
        self.recorder.record(
            RequestTokenized(
                request_id=request_id,
                num_tokens=len(kept),
                duration_us=(time.perf_counter_ns() - start_ns) / 1000,
                truncated=len(token_ids) - len(kept),
                token_ids=kept if self.recorder.wants_full(request_id) else [],
            )
        )
        self._check_prompt(kept, params)
        return kept

    def _truncated(self, token_ids: list[int], params: SamplingParams) -> list[int]:
        limit = params.truncate_prompt_tokens
        if limit is None:
            return token_ids
        if limit == WHAT_FITS:
            limit = max(1, self.max_model_len - _room_wanted(params))
        return token_ids[-limit:] if params.truncation_side == "left" else token_ids[:limit]

    def _checked_ids(self, prompt: list[int]) -> list[int]:
        for place, token_id in enumerate(prompt):
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise TextError(
                    "prompt",
                    f"prompt has {token_id!r} at place {place}, where a token id is expected.",
                )
        return prompt

    def _check_prompt(self, token_ids: list[int], params: SamplingParams) -> None:
        if not token_ids:
            raise TextError("prompt", "The prompt is empty: it has no token to start from.")
        # Also for text: a tokenizer may have more tokens than the model has embeddings.
        lowest, highest = min(token_ids), max(token_ids)
        if lowest < 0 or highest >= self.vocab_size:
            raise TextError(
                "prompt",
                f"The prompt has token {lowest if lowest < 0 else highest}; the model's vocabulary "
                f"has ids 0 to {self.vocab_size - 1}.",
            )
        if len(token_ids) + _room_wanted(params) > self.max_model_len:
            raise TextError(
                "prompt",
                f"This model's maximum context length is {self.max_model_len} tokens, but the "
                f"prompt has {len(token_ids)} tokens, which leaves no room for an answer. Shorten "
                "the prompt, or set truncate_prompt_tokens.",
            )

    def check_logprobs(self, name: str, number: int) -> None:
        """Raise `ParameterError`, for the field `name`, if the engine doesn't give that many."""
        number_of_logprobs(name, number, self.vocab_size, self.max_logprobs)

    def check_known(self, token_ids: list[int]) -> None:
        """Raise `TextError` if an id is a token of neither the model nor the tokenizer."""
        known = max(self.vocab_size, self.tokenizer.vocab_size)
        bad = next((i for i in token_ids if not 0 <= i < known), None)
        if bad is not None:
            raise TextError("tokens", f"tokens has {bad}; the vocabulary has ids 0 to {known - 1}.")


def _room_wanted(params: SamplingParams) -> int:
    """Return how many tokens an answer needs at least."""
    return 0 if params.max_tokens == 0 else 1
