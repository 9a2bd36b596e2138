"""Run `python -m engine.quantize MODEL --format FORMAT --out DIR`: see the package.

Torch is imported only when the options and the model's name were checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.models.errors import ModelError
from engine.models.hub import find_model
from engine.quantize.format_names import GGUF, SAFETENSORS
from engine.trace.command import run_command


def main(argv: Sequence[str] | None = None, name: str = "python -m engine.quantize") -> int:
    """Quantize a model; exit code 0, or 2 if it can't be."""
    arguments = _arguments(argv, name)
    try:
        out = _checked(arguments)
        from engine.quantize.write import write_checkpoint

        print(write_checkpoint(arguments, out))
    except ModelError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


def _checked(arguments: argparse.Namespace) -> Path:
    """Return the folder to write to. Raises `ModelError` for what can't be done with any model."""
    bits = SAFETENSORS.get(arguments.format)
    if bits and arguments.bits and arguments.bits not in bits:
        raise ModelError(f"{arguments.format} has codes of {bits} bits, not {arguments.bits}.")
    out = Path(arguments.out)
    if out.is_file():
        raise ModelError(f"{out} is a file; name a folder.")
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty; name another folder.")
    find_model(arguments.model, None, None)
    return out


def _arguments(argv: Sequence[str] | None, name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=name, description="Make a quantized model.")
    parser.add_argument("model", help="pocket, smollm2, a folder or a hub id")
    parser.add_argument(
        "--format",
        required=True,
        choices=[*SAFETENSORS, *GGUF],
        help="how the codes are stored: gptq, awq-like (AWQ's layout), w4a16 and int8"
        " (compressed-tensors) as safetensors, q4_0 and q8_0 as a GGUF file",
    )
    parser.add_argument("--out", required=True, help="an empty folder, or one to be made")
    parser.add_argument("--bits", type=int, help="of a code: for gptq 4 or 8 [4]")
    parser.add_argument(
        "--group-size",
        type=int,
        help="inputs that share a scale, for gptq, awq-like and w4a16 [128, or 64 or 32 where"
        " rows are no whole groups of more]",
    )
    parser.add_argument(
        "--head",
        action="store_true",
        help="round the head, too, which stays as it is otherwise; one that is tied to the"
        " embeddings becomes a matrix of its own, and they stay as they are",
    )
    parser.add_argument(
        "--feedback",
        action="store_true",
        help="round as GPTQ does: later inputs make up for the error of earlier ones",
    )
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="compare weights alone; else the model first writes text, on which outputs and its"
        " loss are compared, which takes a large model many minutes",
    )
    given = parser.parse_args(argv)
    if given.weights_only and given.feedback:
        parser.error("--feedback rounds on text that the model writes: leave --weights-only out.")
    return given


if __name__ == "__main__":
    run_command(main)
