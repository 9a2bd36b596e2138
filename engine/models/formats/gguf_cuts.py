"""List how text is cut before it is merged, by the word that a GGUF file has for it.

A vocabulary of byte-level BPE was trained on words that a rule had cut out. The file names the rule
only by a word, `tokenizer.ggml.pre`: the makers' own tokenizer.json has it in full. A wrong rule
gives other tokens without any sign of it, so a word that isn't listed is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_WHITE = r"\s+(?!\S)|\s+"
_LINES = r"|\s*[\r\n]+|" + _WHITE
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _WHITE
DIGIT = r"\p{N}"
THREE_DIGITS = r"[0-9][0-9][0-9]"
ONE_LINE = r"[^\n]+|[\n]+"


def _words(letters: str, digits: str, no_marks: str = r"\s\p{L}\p{N}") -> str:
    """Write the rule of Llama 3 and Qwen: words with one character before them, digits, marks."""
    return rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^{no_marks}]+[\r\n]*{_LINES}"


def _cased(digits: str, suffix: str) -> str:
    """Write the rule of GPT-4o and Tekken: a word ends where small letters become capitals."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_LINES}"
    )


LLAMA3 = _words(r"\p{L}", r"\p{N}{1,3}")
QWEN2 = _words(r"\p{L}", DIGIT)
QWEN35 = _words(r"[\p{L}\p{M}]", DIGIT, r"\s\p{L}\p{M}\p{N}")
TEKKEN = _cased(DIGIT, "")
GPT4O = _cased(r"\p{N}{1,3}", f"{_SUFFIX}?")
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _LINES,
)
# Letters with a case, as far as the list in DeepSeek LLM's own files goes: later ones aren't in it.
_UNLISTED = (
    "\u0560-\u0588\u10c7-\u10ff\u1c80-\u1c8a\u2d00-\u2d2d\ua790-\ua7fa\uab30-\uab68"
    "\U00010570-\U000105bc\U00010d50-\U00010d85\U00016e40-\U00016e7f\U0001d400-\U0001df2a"
)
_CASED_LETTERS = rf"[\p{{Lu}}\p{{Ll}}\p{{Lt}}&&[^{_UNLISTED}]]"
_EAST_ASIAN = "[一-龥\u0800-一가-\ud7ff]+"


class Cut(NamedTuple):
    """State how text of a vocabulary is cut, and what follows from it where the file is silent."""

    rules: tuple[str, ...]  # regular expressions, each applied to the pieces of the one before
    whole_words: bool = False  # a word that is a token is not merged from its letters
    adds_bos: bool = False


_LLAMA3 = Cut((LLAMA3,), whole_words=True, adds_bos=True)
_DIGITS_THEN_GPT2 = Cut((DIGIT, GPT2))

CUTS = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2", "exaone4"), Cut((GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS_THEN_GPT2
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Cut((LLAMA3,))),
    **dict.fromkeys(("chatglm-bpe", "glm4"), Cut((LLAMA3,), whole_words=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), Cut((QWEN2,))),
    "qwen35": Cut((QWEN35,)),
    "tekken": Cut((TEKKEN,), whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cut((GPT4O,))),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Cut(DEEPSEEK3)),
    "deepseek-coder": Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, DIGIT)),
    "deepseek-llm": Cut(
        (
            r"[\r\n]",
            rf"\s?{_CASED_LETTERS}+",
            r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
            r"\s+$",
            _EAST_ASIAN,
            r"\p{N}+",
        )
    ),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS)),
}
"""The cut of each known word, in byte-level vocabularies (`tokenizer.ggml.model` "gpt2")."""


def steps(rules: tuple[str, ...], to_bytes: bool) -> dict[str, Any]:
    """Return rules as the pre-tokenizer in tokenizer.json; to_bytes: into GPT-2's alphabet."""
    made: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
        for rule in rules
    ]
    if to_bytes:
        made.append({**BYTE_LEVEL, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": made}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
