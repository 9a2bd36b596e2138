"""Load what translates for a model: its tokenizer, and what its makers recommend."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.models.named import local_folder
from engine.text.generation_config import GenerationDefaults, read_defaults
from engine.text.tokenizer import Tokenizer, load_tokenizer


def load_text(config: EngineConfig) -> tuple[Tokenizer, GenerationDefaults]:
    """Load the tokenizer, of the model or of `config.tokenizer`, and the model's defaults.

    A text ends where either of them says: chat models list the end of a turn beside the
    tokenizer's own end of sequence. Raises `TextError`, and `ModelError` for another format.
    """
    model = local_folder(config.model)
    tokenizer = load_tokenizer(
        config.tokenizer or model,
        None if config.tokenizer else config.revision,  # a revision of the model's repository
        config.hf_token,
        config.download_dir,
    )
    defaults = read_defaults(
        model,
        config.revision,
        config.hf_token,
        config.generation_config,
        config.override_generation_config,
        config.download_dir,
    )
    tokenizer.end_at(defaults.eos_token_ids)
    return tokenizer, defaults
