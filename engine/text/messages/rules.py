"""Say how the answers to one request are taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.sampling_params import SamplingParams
from engine.text.detokenizer import answer_detokenizer
from engine.text.messages.formats import CallFormat, ReasoningFormat
from engine.text.messages.marks import MarkFinder
from engine.text.messages.parser import MessageParser
from engine.text.tokenizer import Tokenizer


class MessageRules(msgspec.Struct, kw_only=True, frozen=True):
    """Hold what is to be found in an answer, and how it is written."""

    calls: CallFormat | None = None  # None: calls of tools are plain text
    reasoning: ReasoningFormat | None = None  # None: reasoning is plain text
    begins_reasoning: bool = False  # the prompt ends with the mark that begins it
    schemas: Mapping[str, Any] = {}  # the parameters of each tool, by its name
    num_earlier_calls: int = 0  # in the conversation
    must_call: bool = False
    one_call: bool = False  # what comes behind the first call is dropped
    skip_special_tokens: bool = True
    hides_reasoning: bool = False

    def parser(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> MessageParser:
        """Make the parser of one answer. `params` must show special tokens."""
        finder = MarkFinder(
            answer_detokenizer(tokenizer, prompt_token_ids, params),
            tokenizer.added_texts,
            tokenizer.special_ids if self.skip_special_tokens else (),
        )
        texts = frozenset(tokenizer.added_texts.values())
        return MessageParser(
            finder,
            self.calls,
            self.reasoning,
            texts,
            schemas=self.schemas,
            begins_reasoning=self.begins_reasoning,
            num_earlier_calls=self.num_earlier_calls,
            one_call=self.one_call,
            hides_reasoning=self.hides_reasoning,
        )
