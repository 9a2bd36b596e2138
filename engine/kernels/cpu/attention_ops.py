"""Call attention and what belongs to it from Python; `ops.py` explains a call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.kernels import torch_attention, torch_ops
from engine.kernels.cpu.costs import attention_cost, elementwise_cost, write_cost
from engine.kernels.launch import launch

if TYPE_CHECKING:
    from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache, QKNorms

TYPES = {torch.float32: 0, torch.bfloat16: 1}  # enum Type in simd.h
MAX_HEAD_DIM = 256  # MAX_DIM in attention_task.h

# Fields of the C++ argument structs: q is a pointer or an integer, d a double.
_ROTATE = Struct("18qd").pack
_WRITE = Struct("12q").pack
_ATTENTION = Struct("20q2d").pack


def function(
    library: ctypes.CDLL, name: str, returns: type | None = None
) -> Callable[[bytes], int]:
    """Return a kernel of the library, which takes its argument struct as bytes."""
    found = getattr(library, f"glasshouse_{name}")
    found.argtypes, found.restype = [ctypes.c_char_p], returns
    return found


class AttentionOps:
    """Compute what lies between a layer's two projections, by one loaded library."""

    def __init__(self, library: ctypes.PyDLL, tiles: bool, pairs: bool) -> None:
        """Bind the library.

        tiles: whether matrix tiles may be used. pairs: whether bf16 is multiplied in pairs.
        """
        self.tiles, self.pairs = tiles, pairs
        self._rotate = function(library, "rotate")
        self._write = function(library, "write_kv")
        self._attention = function(library, "attention", ctypes.c_int64)

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slot_mapping: torch.Tensor
    ) -> None:
        """Compute `torch_attention.write_kv`, k and v in one call."""
        kv_type = TYPES.get(cache.k.dtype)
        if k.dtype not in TYPES or v.dtype not in TYPES or kv_type is None:
            return torch_attention.write_kv(k, v, cache, slot_mapping)
        tokens, heads, dim = k.shape
        width = heads * dim
        k, k_stride = _rows(k, width, dim)
        v, v_stride = _rows(v, width, dim)
        packed = _WRITE(
            k.data_ptr(),
            v.data_ptr(),
            cache.k.data_ptr(),
            cache.v.data_ptr(),
            slot_mapping.data_ptr(),
            tokens,
            width,
            k_stride,
            v_stride,
            TYPES[k.dtype],
            TYPES[v.dtype],
            kv_type,
        )
        launch("write_kv", "native", self._write, (packed,), write_cost, k, v, cache)

    def paged_attention(
        self, q: torch.Tensor, cache: LayerCache, batch: AttentionBatch, spec: AttentionSpec
    ) -> torch.Tensor:
        """Compute `torch_attention.paged_attention`, reading the pages in place."""
        if q.dtype not in TYPES or not _takes(cache, spec):
            return torch_attention.paged_attention(q, cache, batch, spec)
        q, stride = _rows(q, spec.num_heads * spec.head_dim, spec.head_dim)
        return self._attend(q, stride, cache, batch, spec, cache.k.dtype)

    def _attend(
        self,
        q: torch.Tensor,
        q_stride: int,
        cache: LayerCache,
        batch: AttentionBatch,
        spec: AttentionSpec,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Attend with q whose tokens are `q_stride` apart, heads side by side.

        The result is in `dtype`, of q's shape.
        """
        out = torch.empty(q.shape, dtype=dtype)
        step = batch.scratch.get("native") or _step(batch)
        sinks = None if spec.sinks is None else spec.sinks.float().contiguous()
        packed = _ATTENTION(
            q.data_ptr(),
            cache.k.data_ptr(),
            cache.v.data_ptr(),
            out.data_ptr(),
            step.tables.data_ptr(),
            step.query_start.data_ptr(),
            step.context_lens.data_ptr(),
            0 if sinks is None else sinks.data_ptr(),
            step.rows,
            step.width,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            batch.block_size,
            q_stride,
            TYPES[q.dtype],
            TYPES[cache.k.dtype],
            TYPES[dtype],
            spec.sliding_window or 0,
            self.tiles,
            spec.scale,
            spec.soft_cap or 0.0,
        )
        run, facts = self._attention, (q, cache, batch, spec, range(step.rows), self.pairs)
        launch("paged_attention", "native", run, (packed,), attention_cost, *facts)
        return out

    def qkv_attention(
        self,
        qkv: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor] | None,
        norms: QKNorms | None,
        cache: LayerCache,
        batch: AttentionBatch,
        spec: AttentionSpec,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Compute `torch_attention.qkv_attention` in two calls.

        The first norms, rotates and writes to the cache, the second attends.
        """
        dtype = dtype or qkv.dtype
        norm_dtype = dtype if norms is None else norms.q_weight.dtype
        ours = all(one in TYPES for one in (qkv.dtype, dtype, norm_dtype))
        if not ours or not _takes(cache, spec) or not qkv.is_contiguous():
            return torch_attention.qkv_attention(qkv, angles, norms, cache, batch, spec, dtype)
        tokens, width = qkv.shape
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        # q keeps the digits that rotation gives it; unrotated, it is what the projection made
        q = torch.empty((tokens, heads * dim), dtype=torch.float32)
        packed = _ROTATE(
            qkv.data_ptr(),
            0 if angles is None else angles[0].data_ptr(),
            0 if angles is None else angles[1].data_ptr(),
            0 if norms is None else norms.q_weight.data_ptr(),
            0 if norms is None else norms.k_weight.data_ptr(),
            q.data_ptr(),
            cache.k.data_ptr(),
            cache.v.data_ptr(),
            batch.slot_mapping.data_ptr(),
            tokens,
            heads + kv_heads,
            heads,
            kv_heads,
            dim,
            width,
            TYPES[qkv.dtype],
            TYPES[norm_dtype],
            TYPES[cache.k.dtype],
            0.0 if norms is None else norms.eps,
        )
        launch("rotate_and_write", "native", self._rotate, (packed,), elementwise_cost, qkv, q)
        return self._attend(q, heads * dim, cache, batch, spec, dtype)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Compute `torch_ops.rotate`: fp32, [tokens, heads, D]."""
        if x.dtype not in TYPES:
            return torch_ops.rotate(x, cos, sin)
        tokens, heads, dim = x.shape
        x, stride = _rows(x, heads * dim, dim)
        out = torch.empty((tokens, heads, dim), dtype=torch.float32)
        packed = _ROTATE(
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            0,
            0,
            out.data_ptr(),
            0,
            0,
            0,
            tokens,
            heads,
            heads,
            0,
            dim,
            stride,
            TYPES[x.dtype],
            TYPES[torch.float32],
            TYPES[torch.float32],
            0.0,
        )
        launch("rotate", "native", self._rotate, (packed,), elementwise_cost, x, out)
        return out


def _takes(cache: LayerCache, spec: AttentionSpec) -> bool:
    """Return whether the attention kernel is built for this layer."""
    return cache.k.dtype in TYPES and spec.head_dim <= MAX_HEAD_DIM


class _Step(NamedTuple):
    """Hold a batch's tensors as C++ reads them: int32, contiguous."""

    tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    rows: int
    width: int  # of tables


def _step(batch: AttentionBatch) -> _Step:
    """Make the step's tensors in its first layer, and keep them for the others."""
    tables, query_start, context_lens = (
        tensor.to(torch.int32).contiguous()
        for tensor in (batch.block_tables, batch.query_start, batch.context_lens)
    )
    rows, width = tables.shape
    step = _Step(tables, query_start, context_lens, rows, width)
    batch.scratch["native"] = step
    return step


def _rows(x: torch.Tensor, width: int, dim: int) -> tuple[torch.Tensor, int]:
    """Return (x, its stride from token to token), copied if heads don't lie side by side.

    x: [tokens, heads, dim]; it may be a part of a wider tensor.
    """
    stride, head_stride, inner = x.stride()
    if inner != 1 or head_stride != dim:
        return x.contiguous(), width
    return x, stride
