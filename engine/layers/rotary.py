"""Apply rotary position embedding, with the scalings that transformers knows.

The angles of a step are computed once (`Rotary.forward`) and used by every layer (`rotate`): no
table of all positions is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.kernels import kernels_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EXACT_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
"""Types whose frequencies are the same for every sequence within the model's own length.
`dynamic` changes them only beyond `max_position_embeddings`, which is never exceeded here."""


class Rotary(nn.Module):
    """Compute each dimension pair's angle, position * inv_freq. config: as transformers read it."""

    inv_freq: torch.Tensor  # fp32 [head_dim / 2]

    def __init__(self, config: PretrainedConfig, head_dim: int) -> None:
        super().__init__()
        inv_freq, self.scale = _frequencies(config, head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the angles.

        positions: int64 [tokens] → cos, sin: fp32 [tokens, 1, D], for `rotate`.
        """
        return kernels_for(positions.device).angles(positions, self.inv_freq, self.scale)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x: [tokens, heads, D] by its token's angles; see `torch_ops.rotate`."""
    return kernels_for(x.device).rotate(x, cos, sin)


def _frequencies(config: PretrainedConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """Return (inv_freq fp32 [head_dim / 2], factor on cos and sin), as transformers does."""
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    device = torch.device("cpu")  # the same digits wherever the model runs
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # takes a second to import

    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, device)
    return inv_freq.to(device, torch.float32), float(scale)
