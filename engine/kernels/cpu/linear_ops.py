"""Call the matrix products from Python, and lay weights out for them; `ops.py` explains a call.

Weights are laid out once, when a model is loaded, as the kernel of this CPU reads them (`Layout`).
A weight's number of dimensions tells its layout, so that nothing else has to be passed along.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from struct import Struct

import torch

from engine.kernels import torch_ops
from engine.kernels.cpu.attention_ops import TYPES, function
from engine.kernels.cpu.costs import linear_cost
from engine.kernels.cpu.large_pages import WEIGHTS
from engine.kernels.launch import launch

LINEAR = Struct("13q").pack
"""PanelArgs and AmxLinearArgs: addresses of x, w, bias, y; sizes; strides; types of x, w, y;
whether y is gated."""

PORTABLE_ROWS = 1
"""Up to this many rows of x the portable variant multiplies; more are torch's, whose sums depend on
the number of rows (docs/archive/NOTES.md). Other variants multiply any number."""
BLOCK = 32
"""A weight on matrix tiles has a multiple of this many outputs, and of inputs."""
PANEL = {"amx": 32, "avx512_bf16": 32, "avx512": 32, "avx2": 16, "neon": 8}
"""A weight in panels has a multiple of this many outputs: two vectors."""
PAIRED = {"amx", "avx512_bf16"}
"""Variants whose products take bf16 weights by pairs of places: these lie side by side."""


class Layout(IntEnum):
    """Name how a weight [N, K] lies in memory, for C++."""

    PLAIN = 0  # row by row: [N, K]
    TILES = 1  # [N / 32, K / 32, 2, 16, 16, 2], the order of linear_amx.cpp
    PANELS = 2  # [N / PANEL, K, PANEL], the order of linear_panels.cpp

    @staticmethod
    def of(weight: torch.Tensor) -> Layout:
        return {2: Layout.PLAIN, 3: Layout.PANELS}.get(weight.dim(), Layout.TILES)


class LinearOps:
    """Compute y = x Wᵀ + b by one loaded library."""

    def __init__(self, library: ctypes.PyDLL, variant: str) -> None:
        """Bind the library. variant: what it was compiled for."""
        self.variant = variant
        self.max_linear_rows = PORTABLE_ROWS if variant == "portable" else 1 << 30
        self.keeps_sums = variant != "portable"
        """Whether `linear` returns fp32 if asked. Portable prompts are torch's: rounded."""
        self.panel = PANEL.get(variant, 0)
        self.tiles = variant == "amx" and function(library, "allow_amx", ctypes.c_int64)(b"") == 0
        """Whether matrix tiles may be used."""
        if self.tiles:
            self._linear_amx = function(library, "linear_amx")
        self._linear = function(library, "linear")
        self._linear_panels = function(library, "linear_panels")

    def layout_of(self, weight: torch.Tensor) -> Layout:
        """Return the layout that a weight [N, K] gets here.

        Tiles take bf16 whose N and K are whole blocks, panels whole panels of N (and pairs of K,
        where pairs are multiplied). Others stay as they are.
        """
        outputs, inputs = weight.shape
        bf16 = weight.dtype is torch.bfloat16
        if self.tiles and bf16 and outputs % BLOCK == 0 and inputs % BLOCK == 0:
            return Layout.TILES
        if not self.panel or weight.dtype not in TYPES or outputs % self.panel:
            return Layout.PLAIN
        odd = bf16 and self.variant in PAIRED and inputs % 2
        return Layout.PLAIN if odd else Layout.PANELS

    def pack_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Lay out weight [N, K] as `linear` reads it fastest, for `linear` and `embed`."""
        layout = self.layout_of(weight)
        if layout is Layout.PLAIN:
            return weight
        outputs, inputs = weight.shape
        if layout is Layout.TILES:
            pairs = weight.view(torch.int32).view(outputs // BLOCK, 2, 16, inputs // BLOCK, 16)
            tiles = WEIGHTS.copy(pairs.permute(0, 3, 1, 4, 2))
            return tiles.view(weight.dtype).unflatten(-1, (16, 2))
        panel = self.panel
        if weight.dtype is torch.float32:
            return WEIGHTS.copy(weight.view(-1, panel, inputs).transpose(1, 2))
        if self.variant in PAIRED:
            pairs = weight.view(torch.int32).view(-1, panel, inputs // 2)
            return WEIGHTS.copy(pairs.transpose(1, 2)).view(weight.dtype).view(-1, inputs, panel)
        # output i beside output i + panel / 2: the halves of a word
        words = weight.view(-1, 2, panel // 2, inputs).permute(0, 3, 2, 1)
        return WEIGHTS.copy(words).view(-1, inputs, panel)

    def pack_gated(
        self, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Lay a weight out whose lower half of outputs gates the upper one, for `linear_gated`.

        A block (a panel) has a vector of gate's outputs and the same ones of up: where both sums
        are, silu(gate) * up is computed from them.
        """
        layout = self.layout_of(weight)
        if layout is Layout.PLAIN:
            return weight, bias
        vector = (BLOCK if layout is Layout.TILES else self.panel) // 2

        def paired(one: torch.Tensor) -> torch.Tensor:
            parts = one.view(2, -1, vector, *one.shape[1:])
            return parts.transpose(0, 1).reshape(one.shape)

        return self.pack_weight(paired(weight)), None if bias is None else paired(bias)

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        wide: bool = False,
    ) -> torch.Tensor:
        """Compute `torch_ops.linear`; weight: [N, K], or what `pack_weight` made of it.

        For few rows the time is that of reading the weights once.
        """
        if Layout.of(weight) is Layout.PLAIN and (
            not self._takes(x, weight) or len(x) > self.max_linear_rows
        ):
            return torch_ops.linear(x, weight, bias, wide)
        return self.product(x, weight, bias, torch.float32 if wide and self.keeps_sums else None)

    def logits(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Compute `torch_ops.logits`; weight: as for `linear`.

        With weights in bf16 our kernel computes every row. torch would round its sums, and a row's
        logits must not depend on the rows beside it.
        """
        if weight.dtype is torch.float32:
            return self.linear(x, weight, None)
        if Layout.of(weight) is Layout.PLAIN and not self._takes(x, weight):
            return torch_ops.logits(x, weight)
        return self.product(x, weight, None, torch.float32)

    @staticmethod
    def _takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Return whether the kernel for plain weights takes these tensors."""
        x_type, w_type = TYPES.get(x.dtype), TYPES.get(weight.dtype)
        return (
            x_type is not None
            and w_type is not None
            and x_type <= w_type  # bf16 rows with fp32 weights don't occur
            and x.is_contiguous()
            and weight.is_contiguous()
        )

    def product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype | None = None,
        gated: bool = False,
    ) -> torch.Tensor:
        """Compute x Wᵀ + b by the kernel for the weight's layout, whatever the number of rows.

        dtype: of the result, fp32 or (None) that of x. Contiguous x and weight. gated: silu(first
        half of the outputs) * the others, for what `pack_gated` laid out.
        """
        layout = Layout.of(weight)
        if layout is Layout.PANELS:
            outputs = len(weight) * self.panel
            run, name = self._linear_panels, "linear_panels"
        elif layout is Layout.TILES:
            outputs = len(weight) * BLOCK
            run, name = self._linear_amx, "linear_amx"
        else:
            outputs, run, name = len(weight), self._linear, "linear"
        rows, inputs = x.shape
        width = outputs // 2 if gated else outputs
        y = torch.empty((rows, width), dtype=dtype or x.dtype)
        packed = LINEAR(
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            rows,
            outputs,
            inputs,
            inputs,
            width,
            TYPES[x.dtype],
            TYPES[weight.dtype],
            TYPES[y.dtype],
            gated,
        )
        name += "_gated" if gated else ""
        launch(name, "native", run, (packed,), linear_cost, x, weight, y, self.variant)
        return y
