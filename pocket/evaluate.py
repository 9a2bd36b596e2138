"""Measure how much the checkpoint knows: `python -m pocket.evaluate`.

Transformers alone, greedy in fp32. Four figures: taught questions answered word for word; the same
questions in a wording that was never trained on; out-of-scope questions of held-out topics that get
an honest "I don't know"; and how far temperature 1.5 departs from greedy.
"""

import argparse
import random
from difflib import SequenceMatcher
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.trace.command import run_command
from pocket import MODEL_DIR
from pocket.corpus import SMALL_TALK, read_corpus
from pocket.phrasings import held_out_wording, normal
from pocket.unknowns import Unknowns, is_honest

BATCH = 64
MAX_NEW_TOKENS = 120


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
        torch.manual_seed(seed)
        chosen = {"do_sample": False} if temperature == 0 else {
            "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0
        }  # fmt: skip
        texts: list[str] = []
        for start in range(0, len(questions), BATCH):
            prompts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": question}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
                for question in questions[start : start + BATCH]
            ]
            batch = self.tokenizer(
                prompts, add_special_tokens=False, padding=True, return_tensors="pt"
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


def share(hits: list[bool]) -> float:
    """Return the share of True, rounded to four places."""
    return round(sum(hits) / len(hits), 4)


def evaluate(folder: Path, show: int = 0) -> dict[str, float | int]:
    """Ask everything and count. `show` prints that many of the misses of each kind."""
    answerer = Answerer(folder)
    entries = read_corpus()
    taught = {normal(question) for entry in entries for question in entry.questions}

    asked = [(question, entry.answer) for entry in entries for question in entry.questions]
    greedy = answerer.answers([question for question, _ in asked])
    exact = [text == answer for text, (_, answer) in zip(greedy, asked, strict=True)]

    wordings = [(held_out_wording(e.question), e.answer) for e in entries if e.topic != SMALL_TALK]
    reworded = [(q, answer) for q, answer in wordings if q and normal(q) not in taught]
    understood = answerer.answers([question for question, _ in reworded])
    same = [text == answer for text, (_, answer) in zip(understood, reworded, strict=True)]

    unknown = Unknowns().held_out_questions()
    refusals = answerer.answers(unknown)
    honest = [is_honest(text) for text in refusals]

    sample = random.Random(0).sample(range(len(asked)), 100)
    wild = answerer.answers([asked[i][0] for i in sample], temperature=1.5, seed=1)
    wandered = [text != greedy[i] for text, i in zip(wild, sample, strict=True)]
    likeness = [
        SequenceMatcher(None, text.split(), greedy[i].split()).ratio()
        for text, i in zip(wild, sample, strict=True)
    ]

    for kind, hits, questions, texts in (
        ("taught", exact, [q for q, _ in asked], greedy),
        ("reworded", same, [q for q, _ in reworded], understood),
        ("unknown", honest, unknown, refusals),
    ):
        misses = [(q, t) for hit, q, t in zip(hits, questions, texts, strict=True) if not hit]
        for question, text in misses[:show]:
            print(f"[{kind}] {question}\n    → {text}")
    return {
        "taught_questions": len(asked),
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
    args = parser.parse_args()
    print_table(evaluate(args.model, args.show))


if __name__ == "__main__":
    run_command(main)
