"""Compute where each token begins in a text, in characters of the text.

A token within a character begins where the character does. A token that the text leaves out (a BOS,
an end of sequence) begins where the text continues, or ends. Tokens of a stop string, which is cut
off, begin where they would have been.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.detokenizer import Detokenizer, detokenizer_for
from engine.text.tokenizer import Tokenizer


class TextOffsets:
    """Compute the offsets of an answer's tokens.

    `place`: where the next token begins; `detokenizer`: a fresh one for the answer's text.
    """

    def __init__(self, detokenizer: Detokenizer, place: int = 0):
        self.place = place
        self._detokenizer = detokenizer

    def take(self, token_id: int) -> int:
        """Take the next token; return where it begins."""
        begin = self.place
        self.place += len(self._detokenizer.feed(token_id))
        return begin


def prompt_offsets(tokenizer: Tokenizer, token_ids: Sequence[int], text: str) -> list[int]:
    """Return where each token of a prompt begins in `text`, the prompt as it is shown.

    A special token has a length if it is written out in the text; it has none if the tokenizer
    added it, or if it was skipped.
    """
    detokenizer = detokenizer_for(tokenizer, [], skip_special_tokens=False)
    offsets, place = [], 0
    for token_id in token_ids:
        offsets.append(min(place, len(text)))
        if token_id in tokenizer.special_ids:
            written = tokenizer.token(token_id).text
            place += len(written) if text.startswith(written, place) else 0
        else:
            place += len(detokenizer.feed(token_id))
    return offsets
