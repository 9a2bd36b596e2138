"""Load a quantized checkpoint in the engine, compare its numbers and answers, and score it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks.quality import REFERENCE, Ours, Score, Way, texts
from benchmarks.run_engine import Engine
from benchmarks.workloads import Job, Workload, workloads
from engine.config import EngineConfig
from engine.models.description import read_config
from engine.models.filling import HEAD_WEIGHT, TABLE_WEIGHT, expanded
from engine.models.hub import find_model
from engine.models.loader import weight_source
from engine.text.loading import load_tokenizer

PROMPTS, PROMPT, ANSWER = 4, 24, 24
"""Greedy answers that are compared: prompts, tokens of each, tokens of an answer."""
QUALITY_TOKENS = 256
POOL = 64 << 20
"""Bytes of the engine's KV cache."""
WEIGHTS = ("*.safetensors", "*.gguf")


class Exact(NamedTuple):
    """Count what was compared with the format's own library."""

    numbers: int
    different: int  # bits differ, after rounding to the library's dtype


def numbers_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, numbers) of every weight: fp32 for a quantized matrix, else as it is stored."""
    found = find_model(str(folder), None, None)
    description = read_config(found)
    source = weight_source(EngineConfig(model=str(folder)), found, description, native=True)
    assert source is not None, "weights are never random here"
    shapes = _shapes(found)
    for name, stored in source.tensors():
        if isinstance(stored, torch.Tensor):
            yield name, stored
        else:
            yield name, expanded(stored.filling(shapes[name]))


def num_bytes(folder: Path) -> int:
    """Return the bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for kind in WEIGHTS for path in folder.glob(kind))


def bytes_read(folder: Path) -> int:
    """Return the bytes of a checkpoint that one token reads.

    All, but for embeddings beside a head of its own: of these it reads a row.
    """
    found = find_model(str(folder), None, None)
    source = weight_source(EngineConfig(model=str(folder)), found, read_config(found), native=True)
    assert source is not None, "weights are never random here"
    sizes = {
        name: stored.nbytes if isinstance(stored, torch.Tensor) else stored.num_bytes
        for name, stored in source.tensors()
    }
    tables = sum(size for name, size in sizes.items() if name.endswith(TABLE_WEIGHT))
    return num_bytes(folder) - (tables if any(name.endswith(HEAD_WEIGHT) for name in sizes) else 0)


def _config(folder: Path) -> PretrainedConfig:
    """Return config.json without what it says of quantization."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    return config


def _shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the shape of each of the model's matrices, as transformers makes them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(folder), trust_remote_code=False)
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
    config = _config(find_model(str(folder), None, None))
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
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, trust_remote_code=False
    )
    model.eval()
    return sum(tokens == due for tokens, due in zip(found, _greedy(model, prompts), strict=True))


@torch.inference_mode()
def _greedy(model: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    """Return the tokens that transformers draws after prompts of one length, whatever they mean."""
    drawn: list[torch.Tensor] = []
    ids, past = torch.tensor(prompts), None
    for _ in range(ANSWER):
        out = model(ids, past_key_values=past, use_cache=True)
        ids, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        drawn.append(ids)
    return torch.cat(drawn, 1).tolist()


def quality(folder: Path, source: Path, **options: bool) -> dict[str, float | None]:
    """Score the answers on real text beside the source's own weights, both in fp32.

    options: of the engine with the folder's weights.
    """
    tokenizer = load_tokenizer(str(source))
    score = Score()
    plain = Ours(str(source), REFERENCE, QUALITY_TOKENS)
    quantized = Ours(str(folder), Way("quantized", "float32"), QUALITY_TOKENS, **options)
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False)[: QUALITY_TOKENS + 1]
        found, expected = (of.logits(ids[:-1]) for of in (quantized, plain))
        score.add(found, expected, torch.tensor(ids[1:]))
    return score.means()
