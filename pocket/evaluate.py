"""Measure how much the checkpoint knows: `python -m pocket.evaluate`.

Transformers alone, greedy in fp32. Taught questions answered word for word; the same questions in
a wording that was never trained on; calls of tools, answers behind their results, and taught
questions beside tools; out-of-scope questions of held-out topics that get an honest "I don't
know"; and how far temperature 1.5 departs from greedy.
"""

import argparse
import json
import random
from collections.abc import Collection
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.trace.command import run_command
from pocket import MODEL_DIR
from pocket.agents import draw_call, draw_tools
from pocket.corpus import SMALL_TALK, read_corpus
from pocket.phrasings import held_out_wording, normal
from pocket.unknowns import Unknowns, is_honest

BATCH = 64
MAX_NEW_TOKENS = 120
TOOL_QUESTIONS = 150
PARTS = TEXTS, TOOLS = "texts", "tools"


class Answerer:
    """Answer many questions with the checkpoint and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="left", trust_remote_code=False
        )
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        ).eval()

    def answers(self, questions: list[str], temperature: float = 0.0, seed: int = 0) -> list[str]:
        """Return one answer per question; greedy at temperature 0."""
        return self.continued([self.prompt(asked(text)) for text in questions], temperature, seed)

    def prompt(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
        """Write a conversation, up to where the model goes on."""
        return self.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False
        )

    def continued(self, prompts: list[str], temperature: float = 0.0, seed: int = 0) -> list[str]:
        """Return what the model writes behind each prompt."""
        torch.manual_seed(seed)
        chosen = {"do_sample": False} if temperature == 0 else {
            "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0
        }  # fmt: skip
        texts: list[str] = []
        for start in range(0, len(prompts), BATCH):
            batch = self.tokenizer(
                prompts[start : start + BATCH],
                add_special_tokens=False,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=MAX_NEW_TOKENS,
                    **chosen,
                )
            new = output[:, batch["input_ids"].shape[1] :]
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]


def asked(question: str) -> list[dict[str, Any]]:
    """Return the conversation that consists of one question."""
    return [{"role": "user", "content": question}]


def tool_hits(
    answerer: Answerer, rng: random.Random, count: int, usual: bool
) -> dict[str, list[bool]]:
    """Ask with tools: is the call right, the answer behind its result, and what needs no tool?

    `usual`: the tools are described as those of the test client.
    """
    tools = [draw_tools(rng, usual) for _ in range(count)]
    calls = [draw_call(given, rng) for given in tools]
    taught = [rng.choice(read_corpus()) for _ in tools]
    before = [asked(call.question) for call in calls]
    after = [
        [
            *messages,
            {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": call.response},
        ]
        for messages, call in zip(before, calls, strict=True)
        for function in [{"name": call.name, "arguments": call.arguments}]
    ]
    ways = {
        "tool_calls_exact": (before, [call.text for call in calls]),
        "tool_answers_exact": (after, [call.answer for call in calls]),
        "taught_beside_tools_exact": (
            [asked(entry.question) for entry in taught],
            [entry.answer for entry in taught],
        ),
    }
    hits = {}
    for name, (conversations, right) in ways.items():
        prompts = [
            answerer.prompt(messages, given.definitions)
            for messages, given in zip(conversations, tools, strict=True)
        ]
        hits[name] = [t == r for t, r in zip(answerer.continued(prompts), right, strict=True)]
    return hits


def share(hits: list[bool]) -> float:
    """Return the share of True, rounded to four places."""
    return round(sum(hits) / len(hits), 4)


def evaluate(folder: Path, show: int = 0, parts: Collection[str] = PARTS) -> dict[str, float | int]:
    """Return the figures of a checkpoint; `show` also prints some misses of each kind."""
    answerer = Answerer(folder)
    found = text_figures(answerer, show) if TEXTS in parts else {}
    return found | (tool_figures(answerer) if TOOLS in parts else {})


def tool_figures(answerer: Answerer) -> dict[str, float | int]:
    """Ask with tools as the test client describes them, and with other descriptions."""
    usual = tool_hits(answerer, random.Random(99), TOOL_QUESTIONS, True)
    others = tool_hits(answerer, random.Random(98), TOOL_QUESTIONS, False)
    return {
        "tool_questions": TOOL_QUESTIONS,
        **{name: share(hits) for name, hits in usual.items()},
        **{f"other_{name}": share(hits) for name, hits in others.items()},
    }


def text_figures(answerer: Answerer, show: int) -> dict[str, float | int]:
    """Ask without tools; print `show` misses of each kind."""
    entries = read_corpus()
    taught = {normal(question) for entry in entries for question in entry.questions}

    pairs = [(question, entry.answer) for entry in entries for question in entry.questions]
    greedy = answerer.answers([question for question, _ in pairs])
    exact = [text == answer for text, (_, answer) in zip(greedy, pairs, strict=True)]

    wordings = [(held_out_wording(e.question), e.answer) for e in entries if e.topic != SMALL_TALK]
    reworded = [(q, answer) for q, answer in wordings if q and normal(q) not in taught]
    understood = answerer.answers([question for question, _ in reworded])
    same = [text == answer for text, (_, answer) in zip(understood, reworded, strict=True)]

    unknown = Unknowns().held_out_questions()
    refusals = answerer.answers(unknown)
    honest = [is_honest(text) for text in refusals]

    sample = random.Random(0).sample(range(len(pairs)), 100)
    wild = answerer.answers([pairs[i][0] for i in sample], temperature=1.5, seed=1)
    wandered = [text != greedy[i] for text, i in zip(wild, sample, strict=True)]
    likeness = [
        SequenceMatcher(None, text.split(), greedy[i].split()).ratio()
        for text, i in zip(wild, sample, strict=True)
    ]

    for kind, hits, questions, texts in (
        ("taught", exact, [q for q, _ in pairs], greedy),
        ("reworded", same, [q for q, _ in reworded], understood),
        ("unknown", honest, unknown, refusals),
    ):
        misses = [(q, t) for hit, q, t in zip(hits, questions, texts, strict=True) if not hit]
        for question, text in misses[:show]:
            print(f"[{kind}] {question}\n    → {text}")
    return {
        "taught_questions": len(pairs),
        "taught_exact": share(exact),
        "reworded_questions": len(reworded),
        "reworded_exact": share(same),
        "unknown_questions": len(unknown),
        "unknown_honest": share(honest),
        "temperature_1.5_differs": share(wandered),
        "temperature_1.5_words_kept": round(sum(likeness) / len(likeness), 4),
    }


def print_table(results: dict[str, float | int]) -> None:
    """Print the results as a table of two columns; shares in percent."""
    for name, value in results.items():
        print(f"{name:30} {value:8.1%}" if isinstance(value, float) else f"{name:30} {value:8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder of the checkpoint")
    parser.add_argument("--show", type=int, default=0, help="print this many misses of each kind")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--record", action="store_true", help="write it into report.json")
    args = parser.parse_args()
    results = evaluate(args.model, args.show, args.parts)
    print_table(results)
    if args.record:
        page = args.model / "report.json"
        report = json.loads(page.read_text(encoding="utf-8"))
        report["evaluation"] |= results
        page.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
