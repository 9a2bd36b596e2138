"""Make a stand-in tokenizer for shapes with random weights.

Servers want a tokenizer, though token ids are sent. This is a byte-level BPE like GPT-2's: every
byte has a token, and each of the remaining ids is a short word, so that every id reads as text and
an answer has about as many bytes as a real one.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"


def save_stand_in(folder: Path, vocab_size: int, end_id: int | None) -> None:
    """Write tokenizer.json with exactly `vocab_size` tokens beside a model that has none.

    A tokenizer that is there already stays: it may be a real model's own, in the cache that all
    commands share. `end_id`: the model's end of sequence, a special token.
    """
    if (folder / "tokenizer_config.json").exists():  # written last
        return
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = iter([*letters, *(f"Ġw{number}" for number in range(vocab_size))])
    if vocab_size <= len(letters):
        raise ValueError(f"vocab_size is {vocab_size}; bytes alone need {len(letters)} tokens")
    texts = [END if number == end_id else next(names) for number in range(vocab_size)]
    vocabulary = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(vocabulary)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end_id is not None:
        tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if end_id is not None:
        about["eos_token"] = END
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n")


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """List `Ġw1` + `2` → `Ġw12` and so on, for each word whose beginning is a token too."""
    return [
        (text[:-1], text[-1])
        for text in vocabulary
        if len(text) > 2 and text[:-1] in vocabulary and text[-1] in vocabulary
    ]
