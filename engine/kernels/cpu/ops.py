"""The native kernels as Python functions: the same arguments, shapes and results as `torch_ops`.

A call goes: check that the kernel takes these tensors (else plain torch does it), make the result
with `torch.empty`, pack pointers and sizes into the bytes of the C++ argument struct, call. Packing
into one struct is what makes a call cheap: 0.3 µs, where ctypes takes 1.5 µs to convert twelve
arguments one by one, and an extension module, 0.15 µs faster, would need Python's headers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from struct import Struct

import torch

from engine.kernels import torch_ops
from engine.kernels.cpu.attention_ops import TORCH_CHUNKS, TYPES, AttentionOps, function
from engine.kernels.cpu.costs import elementwise_cost, linear_cost, norm_cost
from engine.kernels.launch import launch

# Fields of the C++ argument structs: q is a pointer or an integer, d a double.
_LINEAR = Struct("11q").pack
_NORM = Struct("12qd").pack
_SILU = Struct("6q").pack
_EMBED = Struct("9q").pack
_ANGLES = Struct("6qd").pack
_RELU = Struct("3q").pack
_ARGMAX = Struct("6q").pack

LINEAR_ROWS = {
    ("amx", torch.bfloat16): 8,
    ("amx", torch.float32): 16,
    ("avx512_bf16", torch.bfloat16): 16,
    ("avx512_bf16", torch.float32): 16,
    ("avx512", torch.bfloat16): 4,
    ("avx512", torch.float32): 16,
    ("avx2", torch.bfloat16): 4,
    ("avx2", torch.float32): 12,
    ("portable", torch.bfloat16): 1,
    ("portable", torch.float32): 1,
}
"""Up to this many rows of x our product is faster than others, by variant and dtype of weights."""
LINEAR_ROWS_BESIDE_AMX = 8
"""The same for weights in bf16 that aren't packed, on CPUs where torch has matrix tiles."""
BLOCK = 32
"""A packed weight has a multiple of this many outputs, and of inputs."""
# All: benchmarks/kernels_cpu.py and benchmarks/results/NOTES.md


class NativeOps(AttentionOps):
    """The operations of one loaded library."""

    def __init__(self, library: ctypes.PyDLL, variant: str, amx: bool) -> None:
        """variant: what the library was compiled for. amx: torch computes bf16 in AMX tiles."""
        super().__init__(library, amx)
        self.variant = variant
        self.max_linear_rows = {dtype: LINEAR_ROWS[variant, dtype] for dtype in TYPES}
        if variant == "amx" and function(library, "allow_amx", ctypes.c_int64)(b"") == 0:
            self.tiles = True
            self.torch_chunks[torch.bfloat16] = TORCH_CHUNKS[torch.bfloat16]
            self._linear_amx = function(library, "linear_amx")
        if amx:
            rows = min(self.max_linear_rows[torch.bfloat16], LINEAR_ROWS_BESIDE_AMX)
            self.max_linear_rows[torch.bfloat16] = rows

        self._linear = function(library, "linear")
        self._norm = function(library, "norm")
        self._silu = function(library, "silu_and_mul")
        self._embed = function(library, "embed")
        self._angles = function(library, "angles")
        self._relu = function(library, "relu")
        self._argmax = function(library, "argmax")
        # through a handle that gives Python's lock away: it takes as long as a whole step
        self.replay = function(ctypes.CDLL(library._name), "replay")
        self.bind_threads = function(library, "bind_threads")

    # ------------------------------------------------------------------------------ products

    def pack_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """weight [N, K] as `linear` reads it fastest; what it gives is for `linear` and `embed`.

        In bf16 on matrix tiles: [N / 32, K / 32, 2, 16, 16, 2], the order of linear_amx.cpp. Other
        weights, and those whose N or K is no multiple of 32, stay as they are.
        """
        outputs, inputs = weight.shape
        if not self.tiles or weight.dtype is not torch.bfloat16:
            return weight
        if outputs % BLOCK or inputs % BLOCK:
            return weight
        tiles = weight.view(outputs // BLOCK, 2, 16, inputs // BLOCK, 16, 2)
        return tiles.permute(0, 3, 1, 4, 2, 5).contiguous()

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """As `torch_ops.linear`; weight: [N, K], or what `pack_weight` made of it.

        For few rows the time is that of reading the weights once.
        """
        if weight.dim() != 2:
            outputs = len(weight) * BLOCK
            return self._product("linear_amx", self._linear_amx, x, weight, bias, outputs)
        x_type, w_type = TYPES.get(x.dtype), TYPES.get(weight.dtype)
        if (
            x_type is None
            or w_type is None
            or x_type > w_type  # bf16 rows with fp32 weights: nobody has them
            or not (x.is_contiguous() and weight.is_contiguous())
            or len(x) > self.max_linear_rows[weight.dtype]
        ):
            return torch_ops.linear(x, weight, bias)
        return self.skinny_linear(x, weight, bias)

    def skinny_linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`linear` by the kernel, whatever the number of rows. Contiguous x and weight."""
        return self._product("linear", self._linear, x, weight, bias, len(weight))

    def _product(
        self,
        name: str,
        run: Callable[[bytes], int],
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        outputs: int,
    ) -> torch.Tensor:
        rows, inputs = x.shape
        y = torch.empty((rows, outputs), dtype=x.dtype)
        packed = _LINEAR(
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            rows,
            outputs,
            inputs,
            inputs,
            outputs,
            TYPES[x.dtype],
            TYPES[weight.dtype],
        )
        launch(name, "native", run, (packed,), linear_cost, x, weight, outputs, self.variant)
        return y

    # ---------------------------------------------------------------------------- norms, activation

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """As `torch_ops.rms_norm`."""
        out = self._normalise(x, None, weight, None, eps, center=False)
        return torch_ops.rms_norm(x, weight, eps) if out is None else out[0]

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `torch_ops.add_rms_norm`."""
        out = self._normalise(x, residual, weight, None, eps, center=False)
        return torch_ops.add_rms_norm(x, residual, weight, eps) if out is None else out

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        """As `torch_ops.layer_norm`."""
        out = self._normalise(x, None, weight, bias, eps, center=True)
        return torch_ops.layer_norm(x, weight, bias, eps) if out is None else out[0]

    def add_layer_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `torch_ops.add_layer_norm`."""
        out = self._normalise(x, residual, weight, bias, eps, center=True)
        return torch_ops.add_layer_norm(x, residual, weight, bias, eps) if out is None else out

    def _normalise(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        center: bool,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(norm, x + residual), or None if the kernel doesn't take these tensors."""
        dtype = x.dtype
        if (
            dtype not in TYPES
            or (residual is not None and residual.dtype is not dtype)
            or (weight is not None and weight.dtype is not dtype)
            or (bias is not None and bias.dtype is not dtype)
        ):
            return None
        x = x.contiguous()
        width = x.shape[-1]
        out, total = torch.empty_like(x), x
        if residual is not None:
            residual, total = residual.contiguous(), torch.empty_like(x)
        packed = _NORM(
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            total.data_ptr(),
            x.numel() // width,
            width,
            width,
            width,
            TYPES[dtype],
            center,
            eps,
        )
        name = "layer_norm" if center else "rms_norm"
        launch(name, "native", self._norm, (packed,), norm_cost, x, residual is not None)
        return out, total

    def embed(
        self,
        ids: torch.Tensor,
        table: torch.Tensor,
        positions: torch.Tensor | None = None,
        position_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `torch_ops.embed`."""
        packed_table = table.dim() != 2
        if table.dtype not in TYPES or not (
            position_table is None or position_table.dtype is table.dtype
        ):
            return torch_ops.embed(ids, table, positions, position_table)
        width = table.shape[1] * (BLOCK if packed_table else 1)
        out = torch.empty((len(ids), width), dtype=table.dtype)
        packed = _EMBED(
            ids.data_ptr(),
            0 if positions is None else positions.data_ptr(),
            table.data_ptr(),
            0 if position_table is None else position_table.data_ptr(),
            out.data_ptr(),
            *out.shape,
            TYPES[table.dtype],
            packed_table,
        )
        launch("embed", "native", self._embed, (packed,), elementwise_cost, out, out)
        return out

    def angles(
        self, positions: torch.Tensor, inv_freq: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `torch_ops.angles`."""
        tokens, half = len(positions), len(inv_freq)
        cos, sin = (torch.empty((tokens, 1, 2 * half), dtype=torch.float32) for _ in range(2))
        places = positions.data_ptr(), inv_freq.data_ptr(), cos.data_ptr(), sin.data_ptr()
        packed = _ANGLES(*places, tokens, half, scale)
        launch("angles", "native", self._angles, (packed,), elementwise_cost, cos, sin)
        return cos, sin

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """As `torch_ops.silu_and_mul`."""
        if x.dtype not in TYPES or not x.is_contiguous():
            return torch_ops.silu_and_mul(x)
        rows, both = x.shape
        out = torch.empty((rows, both // 2), dtype=x.dtype)
        packed = _SILU(x.data_ptr(), out.data_ptr(), rows, both // 2, both, TYPES[x.dtype])
        launch("silu_and_mul", "native", self._silu, (packed,), elementwise_cost, x, out)
        return out

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        """As `torch_ops.relu`."""
        if x.dtype not in TYPES or not x.is_contiguous():
            return torch_ops.relu(x)
        packed = _RELU(x.data_ptr(), x.numel(), TYPES[x.dtype])
        launch("relu", "native", self._relu, (packed,), elementwise_cost, x, x)
        return x

    def argmax(self, x: torch.Tensor) -> torch.Tensor:
        """As `torch_ops.greatest`."""
        if x.dtype not in TYPES or not x.is_contiguous():
            return torch_ops.greatest(x)
        rows, width = x.shape
        out = torch.empty(rows, dtype=torch.int64)
        packed = _ARGMAX(x.data_ptr(), out.data_ptr(), rows, width, width, TYPES[x.dtype])
        launch("argmax", "native", self._argmax, (packed,), elementwise_cost, x, out)
        return out
