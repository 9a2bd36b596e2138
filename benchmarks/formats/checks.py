"""Load a quantized checkpoint in the engine, and compare, score and time it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks.quality import REFERENCE, Ours, Score, Way, texts
from benchmarks.run_engine import Engine
from benchmarks.workloads import Job, Workload, workloads
from engine.kernels.quantized import QuantizedWeight
from engine.models.checkpoint import Checkpoint
from engine.models.formats.find import find_scheme
from engine.models.formats.scheme import QuantizedCheckpoint
from engine.text.loading import load_tokenizer

PROMPTS, PROMPT, ANSWER = 4, 24, 24
"""Greedy answers that are compared: prompts, tokens of each, tokens of an answer."""
QUALITY_TOKENS = 256
PACES = 3
POOL = 64 << 20
"""Bytes of the KV cache of each model that is timed."""
KINDS = ("*.json", "*.txt", "*.model", "*.jinja")


class Exact(NamedTuple):
    """Count what was compared with the format's own library."""

    numbers: int
    different: int  # bits differ, after rounding to the library's dtype


def numbers_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, numbers) of every weight: fp32 for a matrix of codes, else as it is stored."""
    config, said = _config(folder)
    scheme = find_scheme(folder, said)
    checkpoint = Checkpoint.open(folder)
    if scheme is None:
        yield from checkpoint.tensors()
        return
    shapes = _shapes(config)
    for name, found in QuantizedCheckpoint(checkpoint, scheme).tensors():
        if isinstance(found, torch.Tensor):
            yield name, found
            continue
        matrix = found.filling(shapes[name]).matrix
        yield name, matrix.dequantize() if isinstance(matrix, QuantizedWeight) else matrix


def _config(folder: Path) -> tuple[PretrainedConfig, Any]:
    """Return config.json without what it says of quantization, and that."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return config, vars(config).pop("quantization_config", None)


def _shapes(config: PretrainedConfig) -> dict[str, tuple[int, int]]:
    """Return the shape of each of the model's matrices, as transformers makes them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {
        name: (weight.shape[0], weight.shape[1])
        for name, weight in model.named_parameters()
        if weight.dim() == 2
    }


def compare_numbers(ours: dict[str, torch.Tensor], library: Path) -> Exact:
    """Compare the matrices that the format's own library de-quantized, bit by bit.

    Zeros of either sign are equal.
    """
    compared = different = 0
    with safe_open(library, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - a file of safetensors is no dict
            theirs = file.get_tensor(name)
            found = ours[name].to(theirs.dtype)
            compared += theirs.numel()
            different += int((found != theirs).sum())
    return Exact(compared, different)


def expand(folder: Path, ours: dict[str, torch.Tensor], plain: Path) -> None:
    """Write a plain checkpoint in fp32 of what the codes stand for, for transformers to read."""
    plain.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        for path in folder.glob(kind):
            shutil.copy(path, plain)
    config, _ = _config(folder)
    config.dtype = torch.float32
    config.save_pretrained(plain)
    weights = {name: tensor.float().contiguous() for name, tensor in ours.items()}
    save_file(weights, plain / "model.safetensors", {"format": "pt"})


def greedy_equal(folder: Path, plain: Path, vocab_size: int) -> int:
    """Count prompts whose greedy tokens, from codes and in fp32, are transformers'.

    transformers computes with the expanded weights.
    """
    prompts = [job.prompt[:PROMPT] for job in workloads(vocab_size)["W3"].jobs[:PROMPTS]]
    work = Workload("greedy", "some prompts at once", [Job(prompt, ANSWER) for prompt in prompts])
    engine = Engine(str(folder), "float32", kv_cache_memory_bytes=POOL)
    found = engine.answers(work)
    engine.close()
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    return sum(tokens == _greedy(model, prompt) for tokens, prompt in zip(found, prompts))


def _greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Return the tokens that transformers draws, whatever ends its texts."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(ANSWER):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def quality(folder: Path, source: Path) -> dict[str, float | None]:
    """Score the answers on real text beside the source's own weights, both in fp32."""
    tokenizer = load_tokenizer(str(source))
    score = Score()
    plain = Ours(str(source), REFERENCE, QUALITY_TOKENS)
    quantized = Ours(str(folder), Way("quantized", "float32"), QUALITY_TOKENS)
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False)[: QUALITY_TOKENS + 1]
        found, expected = (of.logits(ids[:-1]) for of in (quantized, plain))
        score.add(found, expected, torch.tensor(ids[1:]))
    return score.means()


def paces(folders: dict[str, Path], work: Workload) -> dict[str, list[float]]:
    """Return tokens a second of one request in bf16, for each folder in turns."""
    pool = {"kv_cache_memory_bytes": POOL, "max_model_len": 512}
    engines = {name: Engine(str(folder), "bfloat16", **pool) for name, folder in folders.items()}
    found: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(PACES + 1):
        for name, engine in engines.items():
            run = engine.run(work)
            if turn:  # the first is for caches
                seconds = run.total_s - run.first_token_s
                found[name].append((work.num_output - 1) / seconds)
    for engine in engines.values():
        engine.close()
    return found
