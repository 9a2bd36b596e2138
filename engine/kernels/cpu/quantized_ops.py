"""Call the products with quantized weights from Python.

`quantized_panels.py`, `expanded_ops.py` and `table_ops.py` lay the weights out for them.
"""

from __future__ import annotations

import ctypes
from struct import Struct

import torch

from engine.kernels import quantized
from engine.kernels.cpu.attention_ops import TYPES, function
from engine.kernels.cpu.costs import quantized_cost, quantized_embed_cost
from engine.kernels.cpu.expanded_ops import ExpandedProduct, PackedExpandable, pack_expandable
from engine.kernels.cpu.linear_ops import LinearOps
from engine.kernels.cpu.quantized_args import look_up_args, product_args
from engine.kernels.cpu.quantized_panels import PackedPanels, pack_panels
from engine.kernels.cpu.table_ops import PackedTables, TableProduct, numbers_of, pack_tables
from engine.kernels.launch import launch
from engine.kernels.quantized_weight import QuantizedWeight

_LINEAR = Struct("20q2d").pack  # QuantizedArgs
_INT8 = Struct("20q2dq").pack  # Int8Args
_EMBED = Struct("23q2d").pack  # QuantizedEmbedArgs

VECTOR = {"amx": 16, "avx512_bf16": 16, "avx512": 16, "avx2": 8, "neon": 4, "portable": 4}
"""Outputs in a vector: VEC in simd.h. A panel has two."""
HALF_STEP = 16
"""Matrix tiles take groups of a multiple of this many inputs."""
INT8_VECTOR_ROWS = 8
"""Rows of activations in 8 bits that vectors multiply even where there are tiles, at most: these
compute the same bits, and are faster for more."""

Packed = PackedPanels | PackedExpandable | PackedTables | QuantizedWeight
"""What `pack_quantized` returns."""


class QuantizedOps(LinearOps):
    """Compute y = x Wᵀ + b with a quantized W by one loaded library."""

    def __init__(self, library: ctypes.PyDLL, variant: str) -> None:
        """Bind the library; see `LinearOps`."""
        super().__init__(library, variant)
        self._vector = VECTOR[variant]
        self._pack_words = function(library, "pack_words")
        self._linear_quantized = function(library, "linear_quantized")
        self._embed_quantized = function(library, "embed_quantized")
        self._linear_quantized_amx = (
            function(library, "linear_quantized_amx") if self.tiles else self._linear_quantized
        )
        self._linear_int8 = function(library, "linear_int8")
        self._linear_int8_amx = (
            function(library, "linear_int8_amx") if self.tiles else self._linear_int8
        )
        self._tables = TableProduct(library, variant)
        self._expanding = ExpandedProduct(library, variant) if self.tiles else None

    def pack_quantized(self, weight: QuantizedWeight, dtype: torch.dtype) -> Packed:
        """Lay out a weight for the functions below; what they don't take is returned unchanged.

        dtype: of the rows that it will multiply.

        They take any N. K, and groups if there are several, must fill words of 32 bits; rows with
        tables of their own must be one group.
        """
        tables = pack_tables(weight, self._vector)
        if tables is not None:
            return tables
        laid_out = self._pack_panels(weight, dtype)
        return weight if laid_out is None else laid_out

    def pack_quantized_gated(
        self, weight: QuantizedWeight, dtype: torch.dtype
    ) -> PackedPanels | PackedExpandable | None:
        """Lay out a weight whose product is to be silu(first half of the outputs) * the others.

        None: such a product isn't computed at once. Rows mustn't have tables of their own, and half
        of the outputs must fill vectors. dtype: see `pack_quantized`.
        """
        return self._pack_panels(weight, dtype, gated=True) if dtype in TYPES else None

    def _pack_panels(
        self, weight: QuantizedWeight, dtype: torch.dtype, gated: bool = False
    ) -> PackedPanels | PackedExpandable | None:
        if self._expanding is not None and dtype is torch.bfloat16:
            expandable = pack_expandable(weight, gated)
            if expandable is not None:
                return expandable
        pairs = self.variant == "avx512_bf16" and dtype is torch.bfloat16
        return pack_panels(weight, self._vector, pairs, self._pack_words, gated)

    def quantized_linear(
        self,
        x: torch.Tensor,
        weight: Packed,
        bias: torch.Tensor | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute `quantized.quantized_linear`; weight: what `pack_quantized` made.

        Weights aren't rounded, but where x is in bf16 and the CPU multiplies it: a table's entries,
        and what `PackedExpandable` holds. For few rows the time is that of reading the codes once.
        """
        if isinstance(weight, QuantizedWeight):
            return quantized.quantized_linear(x, weight, bias, out, self.linear, self.logits)
        if out is None:
            outputs = weight.shape[0] // 2 if weight.gated else weight.shape[0]
            out = torch.empty((len(x), outputs), dtype=x.dtype)
        if x.dtype not in TYPES or out.dtype not in TYPES:
            return self._expanded(x, weight, bias, out)
        if isinstance(weight, PackedExpandable) and x.dtype is not torch.bfloat16:
            return self._expanded(x, weight, bias, out)
        if x.stride(-1) != 1:
            x = x.contiguous()
        if bias is not None and bias.dtype not in TYPES:
            bias = bias.float()
        if isinstance(weight, PackedTables):
            self._tables.into(x, weight, bias, out)
            return out
        if isinstance(weight, PackedExpandable):
            assert self._expanding is not None
            self._expanding.into(x, weight, bias, out)
            return out
        fields = product_args(x, weight, bias, out)
        if weight.x_group:
            many = len(x) > INT8_VECTOR_ROWS and self.on_tiles(weight)
            run = self._linear_int8_amx if many else self._linear_int8
            packed = _INT8(*fields, weight.x_group)
        else:
            tiles = x.dtype is torch.bfloat16 and self.on_tiles(weight)
            run = self._linear_quantized_amx if tiles else self._linear_quantized
            packed = _LINEAR(*fields)
        name = "linear_quantized_gated" if weight.gated else "linear_quantized"
        launch(
            name, "native", run, (packed,), quantized_cost, x, weight, out, self.variant
        )  # fmt: skip
        return out

    def on_tiles(self, weight: PackedPanels) -> bool:
        """Return whether rows in bf16 are multiplied by it on matrix tiles, however many they are.

        A step takes 16 places at least, of one group.
        """
        return self.tiles and not (weight.shape[1] % HALF_STEP or weight.group % HALF_STEP)

    def _expanded(
        self,
        x: torch.Tensor,
        weight: PackedPanels | PackedExpandable | PackedTables,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the product for dtypes that the kernel doesn't take, some outputs at a time."""
        assert not weight.gated, "packed for rows of another dtype"
        outputs, inputs = weight.shape
        step = max(1, quantized.EXPANDED // inputs)
        for start in range(0, outputs, step):
            ids = torch.arange(start, min(start + step, outputs))
            expanded = self.quantized_embed(ids, weight).to(x.dtype)
            product = self.linear(x, expanded, None if bias is None else bias[ids])
            out[:, start : start + step] = product
        return out

    def quantized_embed(self, ids: torch.Tensor, table: Packed) -> torch.Tensor:
        """Compute `quantized.quantized_embed`, to the bit."""
        if isinstance(table, QuantizedWeight):
            return quantized.quantized_embed(ids, table)
        if isinstance(table, PackedTables):
            return numbers_of(table, self._vector, ids)
        if isinstance(table, PackedExpandable):
            assert self._expanding is not None
            return self._expanding.rows(ids, table)
        out = torch.empty((len(ids), table.shape[1]), dtype=torch.float32)
        packed = _EMBED(*look_up_args(ids, table, out))
        launch(
            "embed_quantized", "native", self._embed_quantized, (packed,),
            quantized_embed_cost, table, out,
        )  # fmt: skip
        return out
