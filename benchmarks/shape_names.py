"""Name the models that are measured, for options: without torch."""

from __future__ import annotations

SHAPES = ("pocket", "opt-125m", "smollm2-135m")
LARGE_SHAPES = ("qwen3-0.6b",)  # minutes more: measured only when asked for
