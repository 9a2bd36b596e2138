"""Compute how long a sequence a model can take, from its config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.config import ConfigError
from engine.models.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def max_model_len(config: PretrainedConfig) -> int:
    """Return the positions that the model distinguishes, prompt and output together.

    Two rotary scalings change with the length of the sequence, so that one sequence would change
    another's keys. These models are limited to the length up to which they don't change (`dynamic`:
    max_position_embeddings, `longrope`: original_max_position_embeddings). YaRN extends the length
    where config.json did not yet. Raises `ModelError` where config.json names no length.
    """
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 1:
        raise ModelError(
            f"config.json of this {config.model_type} model has no max_position_embeddings: the"
            " longest sequence that it can take is unknown."
        )
    for rope in _rope_parameters(config):
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "longrope" and original:
            length = min(length, original)
        if rope.get("rope_type") == "yarn" and original and rope.get("factor"):
            length = max(length, int(original * rope["factor"]))
    return length


def check_length(wanted: int | None, positions: int) -> None:
    """Raise `ConfigError` if --max-model-len is longer than the model's positions."""
    if wanted is not None and wanted > positions:
        raise ConfigError(
            f"--max-model-len is {wanted}, but the model has only {positions} positions."
        )


def _rope_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Yield the rotary parameters: of the model, or of each of its kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [entry for entry in parameters.values() if isinstance(entry, dict)]
    return nested or [parameters]
