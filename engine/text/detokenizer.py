"""Detokenize incrementally: take one token, return the text that is now certain.

    tokens     " caf"   0xC3        0xA9   "!"
    text out   " caf"   ""  (held)  "é"    "!"

A character of several bytes may span several tokens: none of it is sent before it is complete. The
work for a token doesn't depend on how many came before it. `detokenizer_for` chooses between

- `ByteDetokenizer`: the tokens are fixed bytes (nearly every causal model), so an incremental UTF-8
  decoder is enough;
- `WindowDetokenizer`: any other tokenizer. It decodes a few tokens twice, without and with the new
  one, and takes the difference; `JoinedSpecials` wraps it where added tokens must have no spaces
  between them.

Both return text as it reads *after the prompt*: the first word keeps the space that the tokenizer's
own decoder would drop at the beginning of a text.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.sampling_params import SamplingParams
from engine.text.pieces import TokenBytes
from engine.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # stands for bytes that are no character (yet)
_CONTEXT_TOKENS = 6  # of the prompt: enough to tell how the next token joins it
# No character spans more tokens: whatever is held longer isn't one.
_MAX_HELD_TOKENS = 8
NO_TEXTS: Mapping[int, str] = {}
_UTF8_DECODER = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    def feed(self, token_id: int) -> str:
        """Take the next token; return the text that it completes, often "" in the middle of a
        character."""

    def flush(self) -> str:
        """Return what was held back, because the text has ended. Half a character becomes
        U+FFFD."""

    @property
    def plain_texts(self) -> Mapping[int, str]:
        """Return the texts of tokens that `feed` would return now, and that change nothing here.

        So they needn't be fed, until another token is. Some of those tokens may be missing.
        """

    @property
    def holds_back(self) -> bool:
        """Return whether the beginning of a character is held back."""


def detokenizer_for(
    tokenizer: Tokenizer,
    prompt_token_ids: Sequence[int],
    skip_special_tokens: bool = True,
    spaces_between_special_tokens: bool = True,
) -> Detokenizer:
    """Make a detokenizer for the text that follows the prompt."""
    skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
    # A bounded number of tokens is enough, however long the prompt is.
    tail = [i for i in prompt_token_ids[-4 * _CONTEXT_TOKENS :] if i not in skipped]
    tail = tail[-_CONTEXT_TOKENS:]
    if tokenizer.token_bytes is not None:
        return ByteDetokenizer(tokenizer.token_bytes, tail, skipped)
    window = WindowDetokenizer(tokenizer, tail, skipped)
    if spaces_between_special_tokens or skip_special_tokens:
        return window
    return JoinedSpecials(window, tokenizer.added_texts, tail)


def answer_detokenizer(
    tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams
) -> Detokenizer:
    """Make a detokenizer for one answer to a request."""
    return detokenizer_for(
        tokenizer,
        prompt_token_ids,
        params.skip_special_tokens,
        params.spaces_between_special_tokens,
    )


class ByteDetokenizer:
    """Decode tokens that are fixed bytes. `context`: the prompt's last visible tokens."""

    __slots__ = (
        "_at_start", "_decoder", "_plain", "_prompt_rest", "_skipped", "_table", "_within"
    )  # fmt: skip

    def __init__(self, table: TokenBytes, context: Sequence[int], skipped: frozenset[int]):
        self._table = table
        self._skipped = skipped
        self._plain = table.plain_texts.setdefault(skipped, {})  # one for all of them
        self._decoder = _UTF8_DECODER(errors="replace")
        self._at_start = table.strips_first_space and not context
        # A prompt given as token ids may end within a character, which the first token may
        # complete.
        self._decoder.decode(b"".join(map(table.bytes_of, context)))
        self._prompt_rest = self._within = self.holds_back

    def feed(self, token_id: int) -> str:
        known = self.plain_texts.get(token_id)
        if known is not None:
            return known
        if token_id in self._skipped:
            return ""
        data = self._table.bytes_of(token_id)
        if data.isascii():
            self._plain[token_id] = data.decode("ascii")
        if self._at_start and data:
            data = data.removeprefix(b" ")
            self._at_start = False
        if self._prompt_rest and data:
            # Without a continuation byte, the broken character belongs to the prompt.
            if data[0] & 0xC0 != 0x80:
                self._decoder.reset()
            self._prompt_rest = False
        text = self._decoder.decode(data)
        self._within = self.holds_back
        return text

    def flush(self) -> str:
        if self._prompt_rest:
            return ""
        self._within = False
        return self._decoder.decode(b"", final=True)

    @property
    def plain_texts(self) -> Mapping[int, str]:
        return NO_TEXTS if self._within or self._at_start else self._plain

    @property
    def holds_back(self) -> bool:
        return bool(self._decoder.getstate()[0])


class WindowDetokenizer:
    """Decode tokens of any other tokenizer.

    `window` is context that was already sent, then the held tokens. The new text is what
    `decode(window)` adds to the text sent. If it ends in U+FFFD, or hasn't grown, the token is
    held. Once text is sent, its tokens are the next context.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], skipped: frozenset[int]):
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._window = list(context)
        self._num_context = len(self._window)
        self._shown = self._decode().rstrip(REPLACEMENT)

    def feed(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        text = self._decode()
        unsure = text.endswith(REPLACEMENT) or len(text) <= len(self._shown)
        if unsure and self._num_held < _MAX_HELD_TOKENS:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._decode()) if self.holds_back else ""

    @property
    def plain_texts(self) -> Mapping[int, str]:
        return NO_TEXTS  # each token is context of the next one

    @property
    def holds_back(self) -> bool:
        return self._num_held > 0

    @property
    def _num_held(self) -> int:
        return len(self._window) - self._num_context

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._shown = self._decode()
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=False)


class JoinedSpecials:
    """Remove the spaces that a tokenizer writes between two added tokens.

    Tokens that are fixed bytes have no such spaces: only the output of `inner`, a
    `WindowDetokenizer`, is changed. `texts`: of the added tokens, by id.
    """

    def __init__(self, inner: Detokenizer, texts: Mapping[int, str], context: Sequence[int]):
        self._inner = inner
        self._texts = texts
        self._behind_added = bool(context) and context[-1] in texts

    def feed(self, token_id: int) -> str:
        text = self._inner.feed(token_id)
        own = self._texts.get(token_id)
        joined = own is not None and self._behind_added and text.endswith(own)
        self._behind_added = own is not None
        return own if joined and own is not None else text

    def flush(self) -> str:
        return self._inner.flush()

    @property
    def plain_texts(self) -> Mapping[int, str]:
        return NO_TEXTS

    @property
    def holds_back(self) -> bool:
        return self._inner.holds_back
