"""Find how a checkpoint's weights are quantized, and refuse by name what can't be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.models.formats import gguf_folder
from engine.models.formats.awq import AWQ
from engine.models.formats.bitsandbytes import BitsAndBytes
from engine.models.formats.compressed_tensors import CompressedTensors
from engine.models.formats.fp8 import FP8
from engine.models.formats.gptq import GPTQ
from engine.models.formats.method import method_of, quantization_said
from engine.models.formats.mxfp4 import MXFP4
from engine.models.formats.scheme import Scheme
from engine.models.formats.squeezellm import SqueezeLLM

SCHEMES: dict[str, Callable[[dict[str, Any]], Scheme]] = {
    "gptq": GPTQ,
    "awq": AWQ,
    "squeezellm": SqueezeLLM,
    "compressed-tensors": CompressedTensors,
    "fp8": FP8,
    "fbgemm_fp8": FP8,
    "bitsandbytes": BitsAndBytes,
    "mxfp4": MXFP4,
}
"""By `quant_method`."""


def find_scheme(folder: Path, config: Any) -> Scheme | None:
    """Return the reader of the folder's matrices; None where they are plain numbers.

    config: config.json's quantization_config, or None. Raises `ModelError`.
    """
    said = quantization_said(folder, config)
    return None if said is None else SCHEMES[method_of(folder, said)](said)


def quantized_by(folder: Path, config: Any) -> str | None:
    """Name the method by which the folder's matrices are quantized; None: they are plain numbers.

    config: see above; a GGUF file's folder says nothing in it. Raises `ModelError`.
    """
    if gguf_folder.files_in(folder) is not None:
        return "gguf"
    said = quantization_said(folder, config)
    return None if said is None else str(said.get("quant_method", "unknown"))
