"""Load the draft model, and refuse one that couldn't propose for the model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from engine.config import ConfigError, EngineConfig
from engine.layers.linear import Sized
from engine.models.causal_lm import CausalLM
from engine.models.errors import ModelError
from engine.models.hub import Progress, find_draft, find_model
from engine.models.loader import load_model
from engine.models.vocabulary import SAME_FAMILY, TOKENIZER, check_vocabulary, only_padded


def load_draft(
    config: EngineConfig,
    model: CausalLM,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> CausalLM | None:
    """Return the draft model, in the model's dtype; None if none is asked for.

    Raises `ModelError` or `ConfigError`, one line: no such model, another vocabulary, more
    parameters than the model, too few positions.
    """
    found = find_draft(config, progress)
    if found is None:
        return None
    asked = config.speculation
    assert asked is not None
    name = asked.model
    folder = find_model(config.model, config.revision, config.hf_token, None, config.download_dir)
    check_vocabulary(config.model, folder, name, found)
    own = replace(
        config,
        model=name,
        revision=None,
        quantization=None,
        quantized_activations=False,
        speculative_config={},
    )
    try:
        draft = load_model(own, device, dtype, None, progress)
    except ModelError as error:
        raise ModelError(f"the draft model {name}: {error}") from None
    sizes = draft.vocab_size, model.vocab_size
    if sizes[0] != sizes[1] and not only_padded(folder, found, min(sizes)):
        raise ModelError(
            f"the draft model {name} has a vocabulary of {sizes[0]:,} tokens, {config.model} has"
            f" {sizes[1]:,}, and by their {TOKENIZER} files the difference isn't padding:"
            f" {SAME_FAMILY}."
        )
    if num_parameters(draft) > num_parameters(model):
        raise ModelError(
            f"the draft model {name} has {num_parameters(draft):,} parameters, more than the"
            f" {num_parameters(model):,} of {config.model}: proposing would take longer than"
            f" computing; {SAME_FAMILY}."
        )
    longest = config.max_model_len or model.max_model_len
    if draft.max_model_len < longest:
        raise ConfigError(
            f"the draft model {name} has {draft.max_model_len:,} positions, sequences may have"
            f" {longest:,} tokens: set --max-model-len to {draft.max_model_len} or less."
        )
    return draft


def num_parameters(model: CausalLM) -> int:
    """Count a model's parameters, also those in quantized form."""
    if not isinstance(model, nn.Module):
        return 0
    quantized = (module.sizes[0] for module in model.modules() if isinstance(module, Sized))
    return sum(p.numel() for p in model.parameters()) + sum(quantized)
