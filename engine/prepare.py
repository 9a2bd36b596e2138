"""Do the work of a first start ahead, for an image that starts on other machines.

    python -m engine.prepare [MODEL …]

Compiles the CPU's kernels for each kind of CPU of this architecture, and keeps what transformers
says of the models that are named (folders, or short names such as `pocket`).
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.kernels.cpu import build, rank_ops
from engine.kernels.cpu.choice import PROBE
from engine.models.description import read_config
from engine.models.hub import find_model
from engine.text.loading import load_text
from engine.trace.command import run_command


def compile_kernels() -> list[str]:
    """Compile all variants, what chooses one, and what joins ranks; returns the variants' names.

    Raises `BuildError`.
    """
    variants = build.variants_of(platform.machine())
    for variant in variants:
        build.compiled(variant)
        if variant != "portable" and len(variants) > 2:
            build.compiled(variant, PROBE)
    build.compiled(rank_ops.VARIANT, rank_ops.SOURCES)
    return list(variants)


def read_model(model: str) -> None:
    """Have a model's tokenizer, defaults and config.json described, which a start then finds."""
    config = EngineConfig(model=model)
    load_text(config)
    read_config(find_model(config.model, None, config.hf_token))


def main(argv: Sequence[str] | None = None) -> int:
    """Compile the kernels, describe the models, and print what was done."""
    parser = argparse.ArgumentParser(prog="python -m engine.prepare", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_args(argv)
    started = time.monotonic()
    names = ", ".join(compile_kernels())
    print(f"kernels compiled for {names} in {time.monotonic() - started:.0f} s", flush=True)
    for model in options.models:
        read_model(model)
        print(f"{model}: tokenizer and config.json described", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
