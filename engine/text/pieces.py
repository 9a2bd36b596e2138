"""Find the bytes that each token stands for, if a tokenizer's tokens are fixed bytes.

In the two main families a token is a fixed run of bytes, whatever stands before it, so text is
simply the tokens' bytes joined and read as UTF-8:

    byte-level BPE    one character is one byte         "ĠcafÃ©"   →  b" caf\\xc3\\xa9"
    SentencePiece     "▁" is a space, "<0xE2>" a byte   "▁cat"     →  b" cat"

That makes streaming exact and cheap (`detokenizer.py`) and gives log-probabilities their bytes.
`token_bytes_of` reads the family from the tokenizer's decoder, checks its result against that
decoder, and returns None for any other kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PRINTABLE = (range(33, 127), range(161, 173), range(174, 256))
_NUM_CHECKED = 64


class TokenBytes:
    """Hold the bytes of each token: `bytes_of(id)`, b"" for an id that the tokenizer doesn't know.

    `strips_first_space`: the tokenizer's own decoder drops one space at the very beginning of a
    text (SentencePiece wrote it there itself).
    """

    def __init__(
        self,
        id_to_token: Callable[[int], str | None],
        to_bytes: Callable[[str], bytes],
        strips_first_space: bool,
    ):
        self._id_to_token = id_to_token
        self._to_bytes = to_bytes
        self._known: dict[int, bytes] = {}
        self.plain_texts: dict[frozenset[int], dict[int, str]] = {}
        """By the ids that are skipped: the texts of known tokens that are ASCII, so whole
        characters."""
        self.strips_first_space = strips_first_space

    def bytes_of(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            token = self._id_to_token(token_id)
            known = self._known[token_id] = b"" if token is None else self._to_bytes(token)
        return known


def token_bytes_of(backend: Any) -> TokenBytes | None:
    """Return the byte table of a `tokenizers.Tokenizer`, or None if its tokens aren't fixed
    bytes."""
    if backend.decoder is None:
        return None
    steps = _flatten(json.loads(backend.decoder.__getstate__()))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        table = TokenBytes(backend.id_to_token, _byte_level, strips_first_space=False)
    elif kinds & {"Replace", "Metaspace"} and all(map(_is_sentencepiece, steps)):
        to_bytes = _sentencepiece_with_bytes if "ByteFallback" in kinds else _sentencepiece
        strips = "Strip" in kinds or any(s.get("prepend_scheme", "never") != "never" for s in steps)
        table = TokenBytes(backend.id_to_token, to_bytes, strips)
    else:
        return None
    return table if _agrees(table, backend) else None


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flatten(part)]


def _is_sentencepiece(step: dict[str, Any]) -> bool:
    """Return whether this file knows the meaning of a decoder's step."""
    if step["type"] == "Replace":
        return step["pattern"] == {"String": SPACE_MARK} and step["content"] == " "
    if step["type"] == "Metaspace":
        return step["replacement"] == SPACE_MARK
    if step["type"] == "Strip":
        return (step["content"], step["start"], step["stop"]) == (" ", 1, 0)
    return step["type"] in ("ByteFallback", "Fuse")


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's alphabet: a printable byte is its own character, the others follow from 256
    on."""
    printable = [byte for part in _PRINTABLE for byte in part]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_of_character()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # an added token, written as plain text
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    return token.replace(SPACE_MARK, " ").encode()


def _sentencepiece_with_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else _sentencepiece(token)


def _is_word(data: bytes) -> bool:
    return len(data) > 1 and data.isalnum()


def _agrees(table: TokenBytes, backend: Any) -> bool:
    """Return whether table and decoder agree, over the whole vocabulary.

    Each token is decoded after an anchor, because the first token of a text may lose its space. The
    anchor is a word: a single byte would join the bytes that follow it.
    """
    size = backend.get_vocab_size()
    sample = range(0, size, max(1, size // _NUM_CHECKED))
    anchor = next((i for i in range(size) if _is_word(table.bytes_of(i))), None)
    if anchor is None:
        return False
    for token_id in sample:
        joined = table.bytes_of(anchor) + table.bytes_of(token_id)
        decoded = backend.decode([anchor, token_id], skip_special_tokens=False)
        if joined.decode(errors="replace") != decoded:
            return False
    return True
