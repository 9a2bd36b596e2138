"""Call the native kernels from Python: the same arguments, shapes and results as `torch_ops`.

A call goes: check that the kernel takes these tensors (else plain torch does it), make the result
with `torch.empty`, pack pointers and sizes into the bytes of the C++ argument struct, call. Packing
into one struct makes a call cheap: 0.3 µs. ctypes takes 1.5 µs to convert twelve arguments one by
one, and an extension module, 0.15 µs faster, would need Python's headers.
"""

from __future__ import annotations

import ctypes
from struct import Struct

import torch

from engine.kernels import torch_ops
from engine.kernels.cpu.attention_ops import TYPES, AttentionOps, function
from engine.kernels.cpu.costs import (
    IN_PAIRS,
    draw_allowed_cost,
    elementwise_cost,
    embed_cost,
    mask_cost,
    norm_cost,
)
from engine.kernels.cpu.grammar_ops import GrammarOps
from engine.kernels.cpu.linear_ops import BLOCK, Layout
from engine.kernels.cpu.quantized_ops import QuantizedOps
from engine.kernels.launch import launch

# Fields of the C++ argument structs: q is a pointer or an integer, d a double.
_NORM = Struct("14qd").pack
_SILU = Struct("6q").pack
_EMBED = Struct("9q").pack
_ANGLES = Struct("6qd").pack
_RELU = Struct("3q").pack
_ARGMAX = Struct("6q").pack
_MASK = Struct("7q").pack
_DRAW_ALLOWED = Struct("10q").pack


class NativeOps(QuantizedOps, AttentionOps):
    """Hold the operations of one loaded library."""

    def __init__(self, library: ctypes.PyDLL, variant: str) -> None:
        """Bind the functions of the library. variant: what it was compiled for."""
        QuantizedOps.__init__(self, library, variant)
        AttentionOps.__init__(self, library, self.tiles, variant in IN_PAIRS)
        self._norm = function(library, "norm")
        self._silu = function(library, "silu_and_mul")
        self._embed = function(library, "embed")
        self._angles = function(library, "angles")
        self._relu = function(library, "relu")
        self._argmax = function(library, "argmax")
        self._mask_logits = function(library, "mask_logits")
        self._draw_allowed = function(library, "draw_allowed")
        # through a handle that releases Python's lock: a replay takes as long as a whole step
        self.replay = function(ctypes.CDLL(library._name), "replay")
        self.bind_threads = function(library, "bind_threads")
        self.grammars = GrammarOps(library)

    # ---------------------------------------------------------------------------- norms, activation

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Compute `torch_ops.rms_norm`."""
        out = self._normalise(x, None, weight, None, eps, center=False)
        return torch_ops.rms_norm(x, weight, eps) if out is None else out[0]

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute `torch_ops.add_rms_norm`."""
        out = self._normalise(x, residual, weight, None, eps, center=False)
        return torch_ops.add_rms_norm(x, residual, weight, eps) if out is None else out

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        """Compute `torch_ops.layer_norm`."""
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
        """Compute `torch_ops.add_layer_norm`."""
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
        """Return (norm, x + residual), or None if the kernel doesn't take these tensors."""
        dtype = x.dtype if weight is None else weight.dtype
        stream = x if residual is None else residual
        if (
            dtype not in TYPES
            or any(one.dtype not in (dtype, torch.float32) for one in (x, stream))
            or (bias is not None and bias.dtype is not dtype)
        ):
            return None
        x = x.contiguous()
        width = x.shape[-1]
        out, total = torch.empty_like(x, dtype=dtype), x
        if residual is not None:
            residual = residual.contiguous()
            total = torch.empty_like(residual if x.dtype is dtype else x)
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
            TYPES[x.dtype],
            TYPES[stream.dtype],
            center,
            eps,
        )
        name = "layer_norm" if center else "rms_norm"
        launch(name, "native", self._norm, (packed,), norm_cost, x, out, total)
        return out, total

    def embed(
        self,
        ids: torch.Tensor,
        table: torch.Tensor,
        positions: torch.Tensor | None = None,
        position_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute `torch_ops.embed`."""
        layout = Layout.of(table)
        if table.dtype not in TYPES or not (
            position_table is None or position_table.dtype is table.dtype
        ):
            return torch_ops.embed(ids, table, positions, position_table)
        width = table.shape[1] * (BLOCK if layout is Layout.TILES else 1)
        out = torch.empty((len(ids), width), dtype=torch.float32)
        packed = _EMBED(
            ids.data_ptr(),
            0 if positions is None else positions.data_ptr(),
            table.data_ptr(),
            0 if position_table is None else position_table.data_ptr(),
            out.data_ptr(),
            *out.shape,
            TYPES[table.dtype],
            layout,
        )
        launch("embed", "native", self._embed, (packed,), embed_cost, table, out)
        return out

    def angles(
        self, positions: torch.Tensor, inv_freq: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute `torch_ops.angles`."""
        tokens, half = len(positions), len(inv_freq)
        cos, sin = (torch.empty((tokens, 1, 2 * half), dtype=torch.float32) for _ in range(2))
        places = positions.data_ptr(), inv_freq.data_ptr(), cos.data_ptr(), sin.data_ptr()
        packed = _ANGLES(*places, tokens, half, scale)
        launch("angles", "native", self._angles, (packed,), elementwise_cost, cos, sin)
        return cos, sin

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """Compute `torch_ops.silu_and_mul`."""
        if x.dtype not in TYPES or not x.is_contiguous():
            return torch_ops.silu_and_mul(x)
        rows, both = x.shape
        out = torch.empty((rows, both // 2), dtype=x.dtype)
        packed = _SILU(x.data_ptr(), out.data_ptr(), rows, both // 2, both, TYPES[x.dtype])
        launch("silu_and_mul", "native", self._silu, (packed,), elementwise_cost, x, out)
        return out

    def linear_gated(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute silu_and_mul(linear(x)), rounded once. weight, bias: of `pack_gated`."""
        if Layout.of(weight) is Layout.PLAIN:
            return self.silu_and_mul(self.linear(x, weight, bias))
        return self.product(x, weight, bias, gated=True)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        """Compute `torch_ops.relu`."""
        if x.dtype not in TYPES or not x.is_contiguous():
            return torch_ops.relu(x)
        packed = _RELU(x.data_ptr(), x.numel(), TYPES[x.dtype])
        launch("relu", "native", self._relu, (packed,), elementwise_cost, x, x)
        return x

    def argmax(self, x: torch.Tensor) -> torch.Tensor:
        """Compute `torch_ops.greatest`."""
        if x.dtype not in TYPES or not x.is_contiguous():
            return torch_ops.greatest(x)
        rows, width = x.shape
        out = torch.empty(rows, dtype=torch.int64)
        packed = _ARGMAX(x.data_ptr(), out.data_ptr(), rows, width, width, TYPES[x.dtype])
        launch("argmax", "native", self._argmax, (packed,), elementwise_cost, x, out)
        return out

    def mask_logits(self, logits: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor) -> None:
        """Compute `torch_ops.mask_logits`."""
        if logits.dtype is not torch.float32 or not logits.is_contiguous():
            torch_ops.mask_logits(logits, masks, rows)
            return
        masks = masks.contiguous()
        packed = _MASK(
            logits.data_ptr(),
            masks.data_ptr(),
            rows.data_ptr(),
            len(rows),
            logits.shape[1],
            masks.shape[1],
            logits.shape[1],
        )
        launch("mask_logits", "native", self._mask_logits, (packed,), mask_cost, logits, masks)

    def draw_allowed(
        self,
        logits: torch.Tensor,
        draws: torch.Tensor,
        masks: torch.Tensor | None,
        parameters: torch.Tensor,
        top_k: torch.Tensor,
    ) -> torch.Tensor:
        """Draw tokens, of those that masks allow: see `signatures.DrawAllowed`."""
        out = torch.empty(draws.shape[1], dtype=torch.int64)
        packed = _DRAW_ALLOWED(
            logits.data_ptr(),
            draws.data_ptr(),
            0 if masks is None else masks.data_ptr(),
            parameters.data_ptr(),
            top_k.data_ptr(),
            out.data_ptr(),
            len(out),
            logits.shape[1],
            0 if masks is None else masks.shape[1],
            parameters.shape[1],
        )
        launch(
            "draw_allowed", "native", self._draw_allowed, (packed,),
            draw_allowed_cost, logits, draws, masks,
        )  # fmt: skip
        return out
