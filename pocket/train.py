"""Train the pocket model from nothing: `python -m pocket.train` (on two CPU cores, under an hour).

Corpus → tokenizer → packed batches → Muon for the matrices, AdamW for the rest → bf16 checkpoint
and report.json. There are two phases, each with a learning rate of its own that rises and falls:
questions and answers, then tools among them. `--continue` begins with the second from the
checkpoint that is there, with its vocabulary, so that a corpus that grew is learned in less time.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from engine.trace.command import run_command
from pocket import MODEL_DIR
from pocket.corpus import Entry, read_corpus
from pocket.documents import Mixture
from pocket.evaluate import evaluate, print_table
from pocket.packing import IGNORED, Packer
from pocket.tokenizer import CHAT_TEMPLATE, CONTEXT, figures_apart, train_tokenizer

SEED = 2026
WARMUP = 60  # steps, in which the learning rate rises
PEAK_MUON, PEAK_ADAMW = 4e-3, 3e-3
SAVED_EVERY = 100  # steps
TOKENIZER_DOCUMENTS = 6000


class Phase(NamedTuple):
    """Say how a part of the training goes."""

    steps: int
    tokens: int  # of a step
    lengths: dict[int, float]
    """Row length → share of the steps; long rows train the model on long contexts."""
    peak: float  # of the learning rates, as a share of PEAK_MUON and PEAK_ADAMW
    tools: bool


PHASES = (
    Phase(1000, 4096, {256: 0.78, 512: 0.14, 2048: 0.08}, 1.0, False),
    Phase(1232, 2048, {256: 0.50, 1024: 0.44, 2048: 0.06}, 0.4, True),
)


def build_model(vocab_size: int, bos: int, end: int, pad: int) -> LlamaForCausalLM:
    """Build a model of about five million parameters.

    3 layers of width 384, 6 query heads of 64 on 2 KV heads.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=384,
        intermediate_size=896,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def begin(
    entries: list[Entry], before: Path | None
) -> tuple[PreTrainedTokenizerBase, LlamaForCausalLM]:
    """Make a tokenizer and a model, or load those of the checkpoint `before`."""
    if before is None:
        sample = Mixture(entries, SEED + 1)
        documents = [sample.any_length() for _ in range(TOKENIZER_DOCUMENTS)]
        tokenizer = train_tokenizer(text for document in documents for text, _ in document)
        ids = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        return tokenizer, build_model(len(tokenizer), *ids)
    tokenizer = AutoTokenizer.from_pretrained(before, trust_remote_code=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    for about_loading in ("is_local", "local_files_only"):  # else they are saved with it
        tokenizer.init_kwargs.pop(about_loading, None)
    tokenizer.backend_tokenizer.pre_tokenizer = figures_apart()
    model = LlamaForCausalLM.from_pretrained(before, dtype=torch.float32, trust_remote_code=False)
    return tokenizer, model


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    muon = torch.optim.Muon(
        matrices, lr=PEAK_MUON, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=PEAK_ADAMW, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def rate(step: int, done: float) -> float:
    """Return the learning rate as a share of its peak, where `done` of the training is done.

    A short rise, then half a cosine to almost zero.
    """
    return min(1.0, (step + 1) / WARMUP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def length_of_step(step: int, lengths: dict[int, float]) -> int:
    """Return the row length of a step: `lengths` spread evenly, always in the same order."""
    place = (step * 0.6180339887) % 1.0
    for length, share in lengths.items():
        if place < share:
            return length
        place -= share
    return min(lengths)


def packers_for(
    tokenizer: PreTrainedTokenizerBase, mixture: Mixture, tools: bool
) -> dict[int, Packer]:
    """Make what fills rows, by their length."""
    return {
        256: Packer(tokenizer, mixture.short_or_copies if tools else mixture.short, 256),
        512: Packer(tokenizer, lambda: mixture.conversation(4), 512),
        1024: Packer(tokenizer, mixture.middle, 1024),
        2048: Packer(tokenizer, lambda: mixture.conversation(24), 2048),
    }


def learn(
    model: LlamaForCausalLM,
    phase: Phase,
    packers: dict[int, Packer],
    minutes: float | None,
    save: Callable[[], None],
) -> dict[str, Any]:
    """Train the model for one phase, and return what the report says of it."""
    started, limit = time.monotonic(), math.inf if minutes is None else 60 * minutes
    optimizers = build_optimizers(model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] * phase.peak for group in groups]
    compiled = torch.compile(model, dynamic=False)
    curve, recent, learned, step = [], [], 0, 0
    while (done := max(step / phase.steps, (time.monotonic() - started) / limit)) < 1:
        length = length_of_step(step, phase.lengths)
        ids, labels, counts = packers[length].batch(phase.tokens // length)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate(step, done)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compiled(input_ids=ids, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        loss = (losses * counts.flatten()).sum() / counts.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        learned += int((labels != IGNORED).sum())
        recent.append(loss.item())
        if step % 25 == 0:
            mean = sum(recent) / len(recent)
            curve.append({"step": step, "loss": round(mean, 4)})
            recent = []
            print(f"step {step}  loss {mean:.4f}  {time.monotonic() - started:.0f} s", flush=True)
        if step % SAVED_EVERY == 0:
            save()
    return {
        "steps": step,
        "tokens_seen": step * phase.tokens,
        "tokens_learned": learned,
        "training_seconds": round(time.monotonic() - started),
        "loss": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="go on from the checkpoint"
    )
    parser.add_argument("--steps", type=int, help="of each phase, at most")
    parser.add_argument("--minutes", type=float, help="of each phase, at most")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; a second helps only on idle cores"
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder of the checkpoint")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)

    entries = read_corpus()
    tokenizer, model = begin(entries, MODEL_DIR if args.go_on else None)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(entries)} questions, {len(tokenizer)} tokens, {parameters:,} parameters")

    def save() -> None:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)

    phases = []
    if args.go_on:
        phases = json.loads((MODEL_DIR / "report.json").read_text("utf-8"))["phases"]
    for phase in PHASES[-1:] if args.go_on else PHASES:
        packers = packers_for(tokenizer, Mixture(entries, SEED + 2 * len(phases)), phase.tools)
        if args.steps is not None:
            phase = phase._replace(steps=args.steps)
        phases.append(learn(model, phase, packers, args.minutes, save))

    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    save()
    results = evaluate(args.out)
    report = {
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "questions": len(entries),
        "seed": SEED,
        "phases": phases,
        "evaluation": results,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_table(results)


if __name__ == "__main__":
    run_command(main)
