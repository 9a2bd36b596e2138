"""Serve a language model with a small engine that shows all it does (Glasshouse).

    from engine import LLM, SamplingParams

The names below are loaded on first use: `import engine` is light, and `python -m engine.trace`
works without torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout is used without pip's own check, too
    found = f"{sys.version.split()[0]} ({sys.executable})"
    sys.exit(f"Glasshouse needs Python 3.11 or later; this is {found}.")

if TYPE_CHECKING:
    from engine.async_llm import AsyncLLM
    from engine.config import EngineConfig
    from engine.llm import LLM
    from engine.sampling_params import SamplingParams

# How long a thread of an operation spins for the others before it sleeps, in turns of a loop;
# libgomp reads it when torch is loaded. At 50,000 (two or three milliseconds) it stays awake
# between the steps of a small model. libgomp's own default, 300,000, is for machines that run
# nothing else: where threads aren't bound to cores (worker/cores.py) and a neighbour is busy, each
# operation would wait for milliseconds, and a step for seconds. See docs/archive/NOTES.md.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")

__version__ = "0.2.0"
__all__ = ["LLM", "AsyncLLM", "EngineConfig", "SamplingParams", "__version__"]

_HOME = {
    "LLM": "engine.llm",
    "AsyncLLM": "engine.async_llm",
    "EngineConfig": "engine.config",
    "SamplingParams": "engine.sampling_params",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
