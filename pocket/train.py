"""Train the pocket model from nothing: `python -m pocket.train` (on two CPU cores, under an hour).

Corpus → tokenizer → packed batches → Muon for the matrices, AdamW for the rest → bf16 checkpoint
and report.json.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from engine.trace.command import run_command
from pocket import MODEL_DIR
from pocket.corpus import read_corpus
from pocket.documents import Mixture
from pocket.evaluate import evaluate, print_table
from pocket.packing import IGNORED, Packer
from pocket.tokenizer import CONTEXT, train_tokenizer

SEED = 2026
STEPS = 1000
TOKENS_PER_STEP = 4096
WARMUP = 60
PEAK_MUON, PEAK_ADAMW = 4e-3, 3e-3
# row length → share of the steps; long rows train the model on long contexts
LENGTHS = {256: 0.78, 512: 0.14, 2048: 0.08}
TOKENIZER_DOCUMENTS = 6000


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


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    muon = torch.optim.Muon(
        matrices, lr=PEAK_MUON, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=PEAK_ADAMW, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def rate(step: int, steps: int) -> float:
    """Return the learning rate as a share of its peak.

    A short rise, then half a cosine to almost zero.
    """
    if step < WARMUP:
        return (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def length_of_step(step: int) -> int:
    """Return the row length of a step: LENGTHS spread evenly and always in the same order."""
    place = (step * 0.6180339887) % 1.0
    for length, share in LENGTHS.items():
        if place < share:
            return length
        place -= share
    return min(LENGTHS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; a second helps only on idle cores"
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder of the checkpoint")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    started = time.monotonic()

    entries = read_corpus()
    sample = Mixture(entries, SEED + 1)
    documents = [sample.short() for _ in range(TOKENIZER_DOCUMENTS)]
    tokenizer = train_tokenizer(text for document in documents for text, _ in document)
    model = build_model(
        len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(entries)} questions, {len(tokenizer)} tokens, {parameters:,} parameters")

    mixture = Mixture(entries, SEED)
    packers = {
        256: Packer(tokenizer, mixture.short, 256),
        512: Packer(tokenizer, lambda: mixture.conversation(4), 512),
        2048: Packer(tokenizer, lambda: mixture.conversation(24), 2048),
    }
    optimizers = build_optimizers(model)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    compiled = torch.compile(model, dynamic=False)
    curve, recent, learned = [], [], 0
    for step in range(args.steps):
        length = length_of_step(step)
        ids, labels = packers[length].batch(TOKENS_PER_STEP // length)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate(step, args.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compiled(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        learned += int((labels != IGNORED).sum())
        recent.append(loss.item())
        if (step + 1) % 25 == 0:
            seconds = time.monotonic() - started
            mean = sum(recent) / len(recent)
            curve.append({"step": step + 1, "loss": round(mean, 4)})
            recent = []
            print(f"step {step + 1}  loss {mean:.4f}  {seconds:.0f} s", flush=True)

    seconds = time.monotonic() - started
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    results = evaluate(args.out)
    report = {
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "questions": len(entries),
        "seed": SEED,
        "steps": args.steps,
        "tokens_seen": args.steps * TOKENS_PER_STEP,
        "tokens_learned": learned,
        "training_seconds": round(seconds),
        "loss": curve,
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
