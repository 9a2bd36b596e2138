"""Make transformers' tokenizer files from the vocabulary in a GGUF file.

Three kinds of vocabulary (`tokenizer.ggml.model`), all of them byte-pair encoding:

- "gpt2": tokens in GPT-2's alphabet of bytes, merges, and a word for how text is cut first;
- "llama" (SentencePiece): tokens with "▁" for a space and a score each, which gives the merges;
- "gemma4": the tokens of SentencePiece with merges.

Others belong to models that aren't served, and are refused by name.
"""

from __future__ import annotations

import math
from typing import Any

from engine.models.errors import ModelError
from engine.models.formats.gguf_cuts import BYTE_LEVEL, CUTS, ONE_LINE, steps

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # kinds of tokens that are found in text unchanged
SPACE_MARK = "▁"
LONGEST_SCORED = 512  # characters of a token with a score: SentencePiece's own limit is far below
MOST_MERGES = 1 << 22  # found by scores: some times those of the largest known vocabularies


def tokenizer_files(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of tokenizer.json and tokenizer_config.json by name, from key-values.

    Raises `ModelError` where the vocabulary is of another kind, or not sound.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelError(
            f"the file's tokenizer is of kind {kind!r}; read are {', '.join(map(repr, _KINDS))}."
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    vocabulary = {token: place for place, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError("the file's vocabulary has a token twice.")
    parts, model, adds_bos = _KINDS[kind](metadata, vocabulary)
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added(metadata, tokens),
            **parts,
            "post_processor": _post_processor(metadata, tokens, adds_bos),
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
                **model,
            },
        },
        "tokenizer_config.json": _config(metadata, tokens),
    }


Parts = tuple[dict[str, Any], dict[str, Any], bool]
"""Normalizer, pre-tokenizer and decoder; what the model has of its own; whether a text begins with
the first token where the file doesn't say."""


def _byte_level(metadata: dict[str, Any], vocabulary: dict[str, int]) -> Parts:
    word = metadata.get("tokenizer.ggml.pre")
    if not isinstance(word, str) or word not in CUTS:
        raise ModelError(
            f"the file cuts text by the rule {word!r} (tokenizer.ggml.pre), which isn't known here;"
            f" known are {', '.join(CUTS)}."
            if word
            else "the file doesn't say how text is cut (tokenizer.ggml.pre is missing): an old"
            " program wrote it. Convert the model anew."
        )
    cut = CUTS[word]
    parts = {
        "normalizer": None,
        "pre_tokenizer": steps(cut.rules, to_bytes=True),
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
    }
    model = {"ignore_merges": cut.whole_words, "merges": _merges(metadata, vocabulary)}
    return parts, model, cut.adds_bos


def _marked_spaces(metadata: dict[str, Any], vocabulary: dict[str, int]) -> Parts:
    parts = {
        "normalizer": _MARK_SPACES,
        "pre_tokenizer": steps((ONE_LINE,), to_bytes=False),
        "decoder": {"type": "Sequence", "decoders": _UNMARK},
    }
    return parts, _falls_back(metadata, vocabulary, _merges(metadata, vocabulary)), True


def _sentencepiece(metadata: dict[str, Any], vocabulary: dict[str, int]) -> Parts:
    normalizer: dict[str, Any] = _MARK_SPACES
    decoder = _UNMARK
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        before: dict[str, Any] = {"type": "Prepend", "prepend": SPACE_MARK}
        normalizer = {"type": "Sequence", "normalizers": [before, _MARK_SPACES]}
        decoder = [*_UNMARK, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    parts = {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoder},
    }
    merges = _merges_of_scores(metadata, vocabulary)
    return parts, _falls_back(metadata, vocabulary, merges), True


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _marked_spaces}

_MARK_SPACES: dict[str, Any] = {
    "type": "Replace",
    "pattern": {"String": " "},
    "content": SPACE_MARK,
}
_UNMARK: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def _falls_back(
    metadata: dict[str, Any], vocabulary: dict[str, int], merges: list[list[str]]
) -> dict[str, Any]:
    """Return a model whose unknown characters become tokens of their bytes."""
    unknown = token_of(metadata, "unknown", list(vocabulary))
    return {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "merges": merges}


def _merges_of_scores(metadata: dict[str, Any], vocabulary: dict[str, int]) -> list[list[str]]:
    """Return the merges of a vocabulary with scores: the best score is merged first.

    Each token is the merge of any two tokens that spell it. As transformers converts SentencePiece.
    """
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary):
        raise ModelError("the file doesn't have a score for each token.")
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise ModelError("the file has scores of tokens that are no finite numbers.")
    found: list[tuple[float, str, str]] = []
    for token, place in vocabulary.items():
        if len(token) > LONGEST_SCORED:  # the work grows with the square of its length
            raise ModelError(
                f"token {place} of the file's vocabulary has {len(token)} characters; the limit of"
                f" one with a score is {LONGEST_SCORED}."
            )
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(left, right) for left, right in pairs if {left, right} <= vocabulary.keys()]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[place], left, right) for left, right in known]
        if len(found) > MOST_MERGES:
            raise ModelError(f"the file's tokens can be merged in more than {MOST_MERGES} ways.")
    found.sort(key=lambda merge: merge[0], reverse=True)  # stable: pairs of a token stay in order
    return [[left, right] for _, left, right in found]


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
            "special": kind != USER_DEFINED,
        }
        for place, (token, kind) in enumerate(zip(tokens, kinds))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _post_processor(
    metadata: dict[str, Any], tokens: list[str], adds_bos: bool
) -> dict[str, Any] | None:
    """Return the rule that puts tokens around a text, if the file wants any.

    adds_bos: before it, unless the file says otherwise.
    """
    wanted = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", adds_bos),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    found = {role: token_of(metadata, role, tokens) for role, wants in wanted.items() if wants}
    around = {role: token for role, token in found.items() if token is not None}
    if not around:
        return None

    def piece(role: str, kind: int) -> list[dict[str, Any]]:
        token = around.get(role)
        return [] if token is None else [{"SpecialToken": {"id": token, "type_id": kind}}]

    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    single = [*piece("bos", 0), first, *piece("eos", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, second, *piece("eos", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
            for token in around.values()
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
