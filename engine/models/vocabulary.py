"""Compare the vocabulary of a draft model with the model's, by their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.models.errors import ModelError

TOKENIZER = "tokenizer.json"
SAME_FAMILY = "take a smaller model of the same family, which has the same vocabulary"


def check_vocabulary(model: str, folder: Path, draft: str, draft_folder: Path) -> None:
    """Raise `ModelError` if a token of the two models has another text, as far as files tell."""
    ours, its = folder / TOKENIZER, draft_folder / TOKENIZER
    if not (ours.is_file() and its.is_file()) or ours.read_bytes() == its.read_bytes():
        return
    here, there = _texts(ours), _texts(its)
    for token in sorted(here.keys() | there.keys()):
        if here.get(token) != there.get(token):
            raise ModelError(
                f"token {token} is {here.get(token, 'none')!r} for {model} and"
                f" {there.get(token, 'none')!r} for the draft model {draft}: {SAME_FAMILY}."
            )


def only_padded(folder: Path, draft_folder: Path, smaller: int) -> bool:
    """Return whether tables of different sizes differ only in rows of no token.

    Their tokens have the same texts (`check_vocabulary`). smaller: the rows of the smaller table.
    """
    ours, its = folder / TOKENIZER, draft_folder / TOKENIZER
    return ours.is_file() and its.is_file() and max(_texts(ours), default=0) < smaller


def _texts(path: Path) -> dict[int, str]:
    """Read the text of each token, as the tokenizers library writes it."""
    try:
        told: Any = json.loads(path.read_bytes())  # UTF-8, whatever the locale is
        vocab = told["model"]["vocab"]
        if isinstance(vocab, dict):
            texts = {token: text for text, token in vocab.items()}
        else:  # of kind Unigram: pairs of text and score
            texts = {token: pair[0] for token, pair in enumerate(vocab)}
        return texts | {added["id"]: added["content"] for added in told.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} can't be read as a tokenizer: {error}.") from None
