"""Make transformers' tokenizer files from the vocabulary in a GGUF file.

Byte-level BPE (`tokenizer.ggml.model` "gpt2"): tokens in GPT-2's alphabet of bytes, and merges. The
file names only by a word, `tokenizer.ggml.pre`, how text is cut before it is merged. An unknown
word is refused, because a wrong cut gives other tokens without any sign of it.
"""

from __future__ import annotations

from typing import Any

from engine.models.errors import ModelError

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens that are found in text unchanged

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**BYTE_LEVEL, "use_regex": True}],
    # each digit alone, then GPT-2's words
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {**BYTE_LEVEL, "use_regex": True},
    ],
}
"""The steps of the pre-tokenizer, as tokenizer.json has them, by `tokenizer.ggml.pre`."""


def tokenizer_files(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of tokenizer.json and tokenizer_config.json by name, from key-values.

    Raises `ModelError` where the vocabulary is of another kind, or not sound.
    """
    kind, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"the file's tokenizer is of kind {kind!r} with the pre-tokenizer {pre!r}; read is"
            f" 'gpt2' with {' or '.join(map(repr, PRE_TOKENIZERS))}."
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    vocabulary = {token: place for place, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError("the file's vocabulary has a token twice.")
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added(metadata, tokens),
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
            "post_processor": _post_processor(metadata, tokens),
            "decoder": {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": _merges(metadata, vocabulary),
            },
        },
        "tokenizer_config.json": _config(metadata, tokens),
    }


def token_of(metadata: dict[str, Any], role: str, tokens: list[str]) -> str | None:
    """Return the token that the file gives a role ("bos", "eos", "unknown", "padding"), or None."""
    place = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if place is None:
        return None
    if not isinstance(place, int) or not 0 <= place < len(tokens):
        raise ModelError(f"the file's {role} token is {place!r}; it has {len(tokens)} tokens.")
    return tokens[place]


def _strings(metadata: dict[str, Any], key: str) -> list[str]:
    found = metadata.get(key)
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise ModelError(f"the file has no {key}.")
    return found


def _merges(metadata: dict[str, Any], vocabulary: dict[str, int]) -> list[list[str]]:
    merges = []
    for merge in _strings(metadata, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise ModelError(f"the file merges {merge!r}, which its vocabulary doesn't have.")
        merges.append([left, right])
    return merges


def _added(metadata: dict[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    """Return the tokens that are found in text before it is cut."""
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ModelError("the file doesn't say of each token which kind it is.")
    return [
        {
            "id": place,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for place, (token, kind) in enumerate(zip(tokens, kinds))
        if kind in (CONTROL, USER_DEFINED)
    ]


def _post_processor(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """Return the rule that puts the first token before a text, if the file wants it."""
    first = token_of(metadata, "bos", tokens)
    if not metadata.get("tokenizer.ggml.add_bos_token") or first is None:
        return None
    special = {"SpecialToken": {"id": first, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            first: {"id": first, "ids": [tokens.index(first)], "tokens": [first]},
        },
    }


def _config(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for name, role in roles.items():
        token = token_of(metadata, role, tokens)
        if token is not None:
            config[f"{name}_token"] = token
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config
