"""Name the class that serves an architecture: ours where there is one, else the adapter's.

Classes are named by text and imported on demand, so that a model costs nothing to the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from engine.models.llama import LlamaModel
    from engine.models.opt import OPTModel

NATIVE: dict[str, str] = {
    "LlamaForCausalLM": "engine.models.llama:LlamaModel",
    "MistralForCausalLM": "engine.models.llama:LlamaModel",
    "Qwen2ForCausalLM": "engine.models.llama:LlamaModel",
    "Qwen3ForCausalLM": "engine.models.llama:LlamaModel",
    "OPTForCausalLM": "engine.models.opt:OPTModel",
}
"""`module:class` by the name that config.json gives under `architectures`."""


def native_class(config: PretrainedConfig) -> type[LlamaModel] | type[OPTModel] | None:
    """Return our own class for this model, or None where the adapter has to serve it."""
    names = config.architectures or []
    place = NATIVE.get(names[0]) if names else None
    if place is None:
        return None
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name)
    return found if found.supports(config) else None
