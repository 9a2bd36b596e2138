"""Find the grammar of each request's form, checked once for all requests with the same form."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from engine.core.messages import GrammarTokenizer
from engine.structured_outputs import StructuredOutputsError, StructuredOutputsParams
from engine.text.form_to_grammar import Checked, checked_grammar
from engine.text.tokenizer import Tokenizer

MOST_KEPT = 256
Check = Callable[[StructuredOutputsParams, Mapping[str, int]], Checked]
_encode = msgspec.json.Encoder(order="deterministic").encode


class FormCache:
    """Keep checked forms for one tokenizer. `check`: checks one; the server's does so in a process
    that it can kill."""

    def __init__(self, tokenizer: Tokenizer, check: Check = checked_grammar):
        self._tokenizer = tokenizer
        self._check = check
        # the ids of the added tokens, by their text
        self.added = {text: i for i, text in tokenizer.added_texts.items()}
        self._known: OrderedDict[bytes, Checked] = OrderedDict()
        self._source: GrammarTokenizer | None = None
        self._lock = threading.Lock()
        self._checking = threading.Lock()  # the server's check is one process

    def known(self, form: StructuredOutputsParams) -> bool:
        """Return whether finding this form's grammar takes no time."""
        return _encode(form) in self._known

    def find(self, form: StructuredOutputsParams) -> Checked:
        """Return the form's grammar. Raises `StructuredOutputsError`."""
        key = _encode(form)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        with self._checking:
            self.source()
            found = self._check(form, self.added)
        with self._lock:
            self._known[key] = found
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        return found

    def source(self) -> GrammarTokenizer:
        """Return what the worker must know of the tokenizer. Takes long the first time.

        Raises `StructuredOutputsError` if the tokenizer has no Rust part.
        """
        if self._source is None:
            text = self._tokenizer.as_json()
            if text is None:
                raise StructuredOutputsError(
                    "",
                    "this model's tokenizer is written in Python, and grammars need one of the"
                    " tokenizers library.",
                )
            ends = list(self._tokenizer.eos_token_ids)
            self._source = GrammarTokenizer(tokenizer_json=text, eos_token_ids=ends)
        return self._source
