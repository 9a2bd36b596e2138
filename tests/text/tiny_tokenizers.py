"""Small tokenizers of every family, trained here on text of many scripts."""

from __future__ import annotations

import json

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The engine runs. Hello, world! It's a café – naïve, façade; 100 % of 1,000 tokens.",
    "def f(x):\n    return x * 2  # indented\n\n\tdone",
    "Привет, мир! Как дела? Здравствуйте, всё хорошо.",
    "你好，世界！今天天气很好。我们去公园吧。 日本語のテキストもあります。",
    "مرحبا بالعالم كيف حالك اليوم",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "😀 😃 👍🏽 👩‍👩‍👧‍👦 🇩🇪 emoji 🎉🎉 stop STOP </end>",
    "hello hello hello the the the engine engine engine tokens tokens",
] * 3

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>"]


def _wrap(backend: Backend, **options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )


def byte_level_hf() -> PreTrainedTokenizerFast:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("added word", special=False), AddedToken("é!", special=False)])
    return _wrap(backend, chat_template=TEMPLATE)


def metaspace_hf() -> PreTrainedTokenizerFast:
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend)


def byte_fallback_hf() -> PreTrainedTokenizerFast:
    """Built as Llama 2's: "▁" for spaces, bytes for what is not in the vocabulary."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    latin = [text for text in CORPUS if text.isascii()] + ["hello ▁world", "▁"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL + byte_tokens, show_progress=False
    )
    backend.train_from_iterator(latin, trainer)
    # As in Llama 2, byte tokens are ordinary tokens of the vocabulary, not special ones.
    data = json.loads(backend.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in SPECIAL]
    return _wrap(Backend.from_str(json.dumps(data)))


def word_piece_hf() -> PreTrainedTokenizerFast:
    """A family whose tokens are no fixed bytes."""
    backend = Backend(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend)
