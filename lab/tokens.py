"""Turn text into tokens (a chapter)."""

from __future__ import annotations

import statistics
import time

from lab.chapter import Chapter, Expectation, Outcome
from lab.drawings import Bar, Bars, Pieces, colour
from lab.workbench import Workbench

TEXTS = {
    "prose": "The engine keeps the keys and values of every token in blocks of equal size.",
    "code": "for block in request.block_table:\n    pool.free(block)  # last first",
    "numbers": "3.14159, 2048 tokens, 16 blocks, 0.000123, 1,000,000",
    "Russian": "Память делится на страницы, как в операционной системе.",
    "Chinese": "每个请求都有自己的块表。",
}
SAMPLE = 4000  # entries of the vocabulary that are looked at


def _mean_entry_bytes(bench: Workbench) -> float:
    size = bench.tokenizer.vocab_size
    looked_at = range(0, size, max(1, size // SAMPLE))
    ids = [i for i in looked_at if i not in bench.tokenizer.special_ids]
    return statistics.mean(len(bench.tokenizer.token(i).bytes) for i in ids)


def predict(bench: Workbench) -> list[Expectation]:
    mean = _mean_entry_bytes(bench)
    return [
        Expectation(
            name,
            f"tokens of the {name}",
            round(len(text.encode()) / mean),
            "",
            f"{len(text.encode())} bytes, {mean:.1f} bytes in an average entry of the vocabulary",
        )
        for name, text in TEXTS.items()
    ]


def run(bench: Workbench) -> Outcome:
    tokenizer = bench.tokenizer
    ids, seconds = {}, {}
    for name, text in TEXTS.items():
        started = time.perf_counter()
        ids[name] = tokenizer.encode(text, add_special_tokens=False)
        seconds[name] = time.perf_counter() - started
    changed = [name for name, text in TEXTS.items() if tokenizer.decode(ids[name]) != text]
    rates = {name: len(text) / len(ids[name]) for name, text in TEXTS.items()}
    best, worst = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
    pieces = [(name, [tokenizer.token(i).text for i in ids[name]]) for name in TEXTS]
    back = "all of them" if not changed else f"all but {', '.join(changed)}"
    return Outcome(
        {name: len(found) for name, found in ids.items()},
        [
            f"the vocabulary has {tokenizer.vocab_size:,} entries; text → ids → text gives back"
            f" {back} unchanged",
            f"a token of {best} covers {rates[best]:.1f} characters, one of {worst}"
            f" {rates[worst]:.2f}: the same length of text costs {rates[best] / rates[worst]:.1f}×"
            " the steps and the memory",
            f"tokenizing took {1e6 * statistics.median(seconds.values()):,.0f} µs a text (median)",
        ],
        [
            Pieces("Each colour change is a token's border", pieces),
            Bars(
                "Characters in a token",
                "",
                [Bar(name, [(rate, colour(0))]) for name, rate in rates.items()],
            ),
        ],
    )


CHAPTER = Chapter(
    "tokens",
    "Tokens, the unit of everything",
    "A model reads and writes entries of a fixed vocabulary, so text is cut into the longest pieces"
    " that the tokenizer learned to merge. What it saw often while it was trained becomes few"
    " tokens, what it saw rarely falls apart, down to single bytes. Time, memory and price are"
    " counted in tokens, never in words.",
    predict,
    run,
    "engine/text/detokenizer.py",
    "the way back, while half a character may still be missing",
)
