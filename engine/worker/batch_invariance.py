"""Check that what computes here keeps the promise of `--batch-invariant`."""

from __future__ import annotations

import torch

from engine.config import ConfigError
from engine.kernels import Kernels
from engine.kernels.fp8_cache import LARGEST
from engine.models.causal_lm import CausalLM

ON_A_CPU = (
    "--batch-invariant changes nothing on a CPU: every token is a function of its own request there"
)


def check_batch_invariant(
    model: CausalLM, kernels: Kernels, kv_dtype: torch.dtype, device: torch.device
) -> None:
    """Raise `ConfigError` if a token may depend on the other requests of its steps."""
    why = ""
    if model.implementation != "native":
        why = f"{model.architecture} is computed by transformers' layers"
    elif kernels.name == "torch":
        why = "plain torch computes here, without kernels of ours"
    elif kernels.name == "native portable":
        why = "the portable kernels leave a part of the steps to torch"
    elif device.type == "cpu" and kv_dtype in LARGEST:
        why = "torch attends to 8-bit pages on a CPU"
    elif device.type != "cpu":
        dims = {kv.head_dim for kv in model.kv_spec}
        heads = sorted(dim for dim in dims if not kernels.reads_lengths(dim))
        if heads:
            why = f"torch attends to heads of {heads[0]} numbers"
    if why:
        raise ConfigError(
            f"--batch-invariant: {why}, whose sums depend on what else is in a step. Leave the"
            " option out, or serve another model."
        )
