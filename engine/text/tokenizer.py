"""Convert text to token ids and back, safely from many threads at once.

A thin layer over the Rust tokenizer inside those of transformers. It keeps no state of a call
(transformers' own `__call__` first sets truncation and padding on the shared object, so two threads
conflict) and releases the GIL. Tokenizers without a Rust part work too, one call at a time.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import tokenizers

from engine.text.errors import TextError
from engine.text.facts import TokenizerFacts, facts_of
from engine.text.lanes import LONG_TEXT
from engine.text.pieces import token_bytes_of

MAX_TOKEN_ID = 2**32 - 1


class TokenText(msgspec.Struct, frozen=True):
    """Hold one token by itself, as log-probabilities show it.

    `text` is unique to its bytes: half a character can't be shown as text and reads
    `bytes:\\xe2\\x82`, as in OpenAI's completions.
    """

    text: str
    bytes: bytes


class Tokenizer:
    """Convert text to ids and back, as transformers' tokenizer does. `eos_token_ids` end a text.

    backend: the Rust tokenizer; None: `load_hf` loads one of transformers, written in Python.
    """

    def __init__(
        self,
        facts: TokenizerFacts,
        backend: tokenizers.Tokenizer | None,
        load_hf: Callable[[], Any],
    ):
        self.facts = facts
        self.truncation_side = facts.truncation_side
        self.eos_token_ids = [] if facts.eos_token_id is None else [facts.eos_token_id]
        self._load_hf = load_hf
        self._lock = threading.Lock()  # guards tokenizers written in Python
        self._texts: dict[int, TokenText] = {}
        self._backend = backend
        if backend is not None:
            backend.no_truncation()  # a saved tokenizer.json may carry either of them
            backend.no_padding()
            added = backend.get_added_tokens_decoder()
            self.special_ids = frozenset(i for i, token in added.items() if token.special)
            self.added_texts = {i: token.content for i, token in added.items()}
            self.token_bytes = token_bytes_of(backend)
            self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        else:
            self.special_ids = frozenset(self.hf.all_special_ids)
            self.added_texts = {i: str(token) for i, token in self.hf.added_tokens_decoder.items()}
            self.token_bytes = None
            self.vocab_size = len(self.hf)

    @classmethod
    def of(cls, hf: Any, eos_token_ids: Sequence[int] = ()) -> Tokenizer:
        """Wrap a tokenizer of transformers. eos_token_ids: additional ones."""
        facts = facts_of(hf)
        made = cls(facts, hf.backend_tokenizer if facts.fast else None, lambda: hf)
        made.end_at(eos_token_ids)
        return made

    @classmethod
    def of_file(
        cls, tokenizer_json: bytes, facts: TokenizerFacts, load_hf: Callable[[], Any]
    ) -> Tokenizer:
        """Make a tokenizer from the contents of tokenizer.json.

        load_hf: loads transformers' own, if `hf` is read.
        """
        backend = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        backend.encode_special_tokens = facts.splits_special_tokens
        return cls(facts, backend, load_hf)

    @functools.cached_property
    def hf(self) -> Any:
        """Return transformers' tokenizer, which is imported and loaded at the first access."""
        return self._load_hf()

    @functools.cached_property
    def longest_token(self) -> int:
        """Return the longest token's characters: n characters of text have at least n / that
        tokens."""
        owner = self.hf if self._backend is None else self._backend
        return max(map(len, owner.get_vocab()), default=1)

    def as_json(self) -> str | None:
        """Return the tokenizer as a tokenizer.json; None for one without a Rust part."""
        return None if self._backend is None else self._backend.to_str()

    def end_at(self, token_ids: Sequence[int]) -> None:
        """Add tokens that end a text."""
        self.eos_token_ids += [i for i in token_ids if i not in self.eos_token_ids]

    # ------------------------------------------------------------------------------ text ↔ ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`. Special tokens written out in it become the special
        tokens."""
        if self._backend is not None and len(text) > LONG_TEXT:
            # Only the method for batches releases the GIL.
            batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return batch[0].ids
        if self._backend is not None:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        with self._lock:
            return self.hf.encode(text, add_special_tokens=add_special_tokens)

    def encode_at_most(
        self, text: str, max_length: int, add_special_tokens: bool = True
    ) -> list[int]:
        """Return the token ids of `text`, cut to `max_length` as transformers does.

        Special tokens stay; the text's last tokens (or first, as the tokenizer says) are cut.
        """
        if self._backend is None:
            with self._lock:
                return self.hf.encode(
                    text,
                    add_special_tokens=add_special_tokens,
                    truncation=True,
                    max_length=max_length,
                )
        num_special = self._backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        encoding = self._backend.encode(text, add_special_tokens=False)
        encoding.truncate(max(0, max_length - num_special), direction=self.truncation_side)
        return self._backend.post_process(encoding, None, add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`, with the tokens' own spaces. An id without a token gives
        none."""
        if len(token_ids) and not 0 <= min(token_ids) <= max(token_ids) <= MAX_TOKEN_ID:
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id <= MAX_TOKEN_ID)
            raise TextError(
                "tokens", f"{wrong} is not a token id; ids are 0 to {self.vocab_size - 1}."
            )
        if self._backend is not None and len(token_ids) > LONG_TEXT:
            return self._backend.decode_batch(  # releases the GIL
                [list(token_ids)], skip_special_tokens=skip_special_tokens
            )[0]
        if self._backend is not None:
            return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        known = [i for i in token_ids if i < self.vocab_size]
        with self._lock:
            return self.hf.decode(
                known,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )

    def token(self, token_id: int) -> TokenText:
        """Return one token as log-probabilities show it; a special token shows its name."""
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self._token_text(token_id)
        return known

    def texts(self, token_ids: Sequence[int]) -> dict[int, str]:
        """Return the text of each token by itself."""
        return {token_id: self.token(token_id).text for token_id in token_ids}

    def bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Return the token sequences that spell each word.

        A word may stand at a text's beginning, after a space, or within a line. Raises `TextError`
        for a word that has no token.
        """
        sequences: dict[tuple[int, ...], None] = {}  # in order, each once
        newline = self.encode("\n", add_special_tokens=False)
        for word in words:
            ways = [self.encode(word, False), self.encode(" " + word.lstrip(), False)]
            # After a newline SentencePiece doesn't mark a word's beginning.
            behind = self.encode("\n" + word.lstrip(), False)
            if newline and behind[: len(newline)] == newline:
                ways.append(behind[len(newline) :])
            spelt = [way for way in ways if way and word.strip() in self.decode(way, False)]
            if not word.strip() or not spelt:
                raise TextError("bad_words", f"bad_words has {word!r}, which no token can spell.")
            sequences.update((tuple(way), None) for way in spelt)
        return [list(sequence) for sequence in sequences]

    def _token_text(self, token_id: int) -> TokenText:
        if self.token_bytes is not None:
            data = self.token_bytes.bytes_of(token_id)
            try:
                return TokenText(data.decode(), data)
            except UnicodeDecodeError:
                return TokenText("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)
        # A tokenizer may drop a space at the beginning, so decode the token twice: the second one
        # reads as it does within a text.
        once = self.decode([token_id], skip_special_tokens=False)
        text = self.decode([token_id, token_id], skip_special_tokens=False)[len(once) :]
        return TokenText(text, text.encode(errors="replace"))
