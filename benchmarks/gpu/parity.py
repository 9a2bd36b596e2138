"""Compare the engine on the device with transformers.

Greedy tokens must be equal in fp32, logits near in bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, Qwen3Config

from benchmarks.gpu.kernel_checks import on_device
from benchmarks.gpu.paged_step import finite, make_step
from benchmarks.run_transformers import Transformers
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest
from engine.models.causal_lm import CausalLM
from engine.models.loader import load_model
from engine.sampling_params import SamplingParams
from engine.trace.recorder import Recorder
from engine.worker.model_runner import ModelRunner

_SMALL = {
    "vocab_size": 997,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
MODELS = {
    "llama": LlamaConfig(**_SMALL, intermediate_size=256, num_key_value_heads=2, head_dim=64),
    "qwen3": Qwen3Config(**_SMALL, intermediate_size=256, num_key_value_heads=1, head_dim=64),
    "opt": OPTConfig(**_SMALL, ffn_dim=256, word_embed_proj_dim=128),
}


def parity(
    device: torch.device,
    folder: Path,
    prompts: int,
    tokens: int,
    names: Sequence[str] = tuple(MODELS),
    **options: Any,
) -> list[dict]:
    """Count, for each model, the prompts that got exactly transformers' tokens.

    options: of the engine.
    """
    results = []
    for name in names:
        shape = MODELS[name]
        torch.manual_seed(0)
        where = str(folder / name)
        AutoModelForCausalLM.from_config(shape, trust_remote_code=False).float().save_pretrained(
            where
        )
        peer = Transformers(where, torch.float32, device).model
        asked = [torch.randint(3, 997, (3 + 29 * i % 200,)).tolist() for i in range(prompts)]
        expected = []
        for prompt in asked:
            ids = torch.tensor([prompt], device=device)
            with torch.inference_mode():
                made = peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=0,
                    eos_token_id=None,
                )
            expected.append(made[0, len(prompt) :].tolist())
        found = _engine(where, device, asked, tokens, **options)
        equal = sum(a == b for a, b in zip(found, expected))
        results.append({"model": name, "prompts": prompts, "equal": equal})
    return results


def bf16_logits(device: torch.device, folder: Path, prompts: int) -> list[dict]:
    """Compare logits with transformers' in bf16, for each model that `parity` saved.

    The result is the greatest difference at any position of any prompt, relative to the greatest of
    these logits.
    """
    results = []
    for name in MODELS:
        where = str(folder / name)
        peer = Transformers(where, torch.bfloat16, device).model
        ours = load_model(EngineConfig(model=where, dtype="bfloat16", device=device.type), device)
        error = 0.0
        for i in range(prompts):
            ids = torch.randint(3, 997, (3 + 29 * i % 200,), device=device)
            with torch.inference_mode():
                expected = peer(ids[None]).logits[0].float()
                found = _logits(ours, ids).float()
            error = max(error, float((found - expected).abs().max() / expected.abs().max()))
        results.append({"model": name, "prompts": prompts, "error": error, "allowed": 2e-2})
    return results


def _logits(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return logits of every position of one prompt, computed in one step on empty pages."""
    caches = []
    for kv in model.kv_spec:
        cache, batch = make_step([(0, len(ids))], kv.num_kv_heads, kv.head_dim, 16, torch.bfloat16)
        cache, batch = on_device(finite(cache), batch, ids.device)
        caches.append(cache)
    return model.compute_logits(model(ids, batch.positions, caches, batch))


def _engine(
    model: str, device: torch.device, prompts: list[list[int]], tokens: int, **options: Any
) -> list[list[int]]:
    config = EngineConfig(
        model=model,
        dtype="float32",
        device=device.type,
        max_num_seqs=4,
        swap_space=0.01,
        num_gpu_blocks_override=256,
        max_num_batched_tokens=64,
        **options,
    )
    recorder = Recorder("steps")
    runner = ModelRunner(config, recorder)
    runner.load()
    core = EngineCore(config, runner, recorder)
    answers: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        core.add_request(CoreRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
        answers[str(i)] = []
    while core.has_work:
        for output in core.step():
            answers[output.request_id] += output.token_ids
    core.close()
    runner.close()
    recorder.close()
    return list(answers.values())
