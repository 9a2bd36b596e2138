"""Name the class that serves an architecture: ours where there is one, else the adapter's.

Classes are named by text and imported on demand, so that a model costs nothing to the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from engine.layers.kinds import Layers
    from engine.models.native import NativeModel

NATIVE: dict[str, str] = {
    "LlamaForCausalLM": "engine.models.llama:LlamaModel",
    "MistralForCausalLM": "engine.models.llama:LlamaModel",
    "Qwen2ForCausalLM": "engine.models.llama:LlamaModel",
    "Qwen3ForCausalLM": "engine.models.llama:LlamaModel",
    "OPTForCausalLM": "engine.models.opt:OPTModel",
}
"""`module:class` by the name that config.json gives under `architectures`."""
DIVIDED = tuple(name for name, place in NATIVE.items() if place.endswith(":LlamaModel"))
"""Those whose class can be divided among ranks (`divides`), known without importing it."""


class MakeNative(Protocol):
    """Make a native model: the class of one."""

    def __call__(self, config: PretrainedConfig, layers: Layers) -> NativeModel: ...


def native_class(config: PretrainedConfig) -> MakeNative | None:
    """Return our own class for this model, or None where the adapter has to serve it."""
    names = config.architectures or []
    place = NATIVE.get(names[0]) if names else None
    if place is None:
        return None
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name)
    return found if found.supports(config) else None
