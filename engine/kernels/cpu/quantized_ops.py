"""Call the products with quantized weights from Python, and lay the weights out for them.

`linear_quantized.cpp` states the order in memory, `codes.h` that of the codes within a word.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from struct import Struct

import torch

from engine.kernels import quantized
from engine.kernels.cpu.attention_ops import TYPES, function
from engine.kernels.cpu.code_kinds import PACKED_AT_ONCE, PARTS, Kind, parts_of
from engine.kernels.cpu.costs import quantized_cost, quantized_embed_cost
from engine.kernels.cpu.expanded_ops import ExpandedProduct, PackedExpandable, pack_expandable
from engine.kernels.cpu.large_pages import WEIGHTS
from engine.kernels.cpu.linear_ops import LinearOps
from engine.kernels.cpu.quantized_args import look_up_args, product_args
from engine.kernels.cpu.table_ops import PackedTables, TableProduct, numbers_of, pack_tables
from engine.kernels.launch import launch
from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div

_LINEAR = Struct("19qd").pack  # QuantizedArgs
_INT8 = Struct("19qdq").pack  # Int8Args
_EMBED = Struct("22qd").pack  # QuantizedEmbedArgs

VECTOR = {"amx": 16, "avx512_bf16": 16, "avx512": 16, "avx2": 8, "neon": 4, "portable": 4}
"""Outputs in a vector: VEC in simd.h. A panel has two."""
HALF_STEP = 16
"""Matrix tiles take groups of a multiple of this many inputs."""
INT8_VECTOR_ROWS = 8
"""Rows of activations in 8 bits that vectors multiply even where there are tiles, at most: these
compute the same bits, and are faster for more."""


@dataclass(frozen=True, eq=False)
class PackedPanels:
    """Hold a quantized weight as linear_quantized.cpp reads it.

    data: uint8 [panels, bytes of a panel]. zeros, offsets: whether groups have them.
    """

    data: torch.Tensor
    shape: tuple[int, int]
    kind: Kind
    group: int
    parts: torch.dtype
    zeros: bool
    offsets: bool
    zero: int  # of all groups, beside their own
    table: torch.Tensor | None  # fp32 [16]
    inputs: torch.Tensor | None  # int32 [K]
    x_group: int  # inputs that share a scale of activations in 8 bits; 0: these aren't rounded

    @property
    def num_bytes(self) -> int:
        others = (part.nbytes for part in (self.table, self.inputs) if part is not None)
        return self.data.nbytes + sum(others)

    @property
    def fields(self) -> tuple[int, ...]:
        """Return kind, part_type, zeros, offsets, zero."""
        return self.kind, PARTS[self.parts], self.zeros, self.offsets, self.zero


Packed = PackedPanels | PackedExpandable | PackedTables | QuantizedWeight
"""What `pack_quantized` returns."""


class QuantizedOps(LinearOps):
    """Compute y = x Wᵀ + b with a quantized W by one loaded library."""

    def __init__(self, library: ctypes.PyDLL, variant: str) -> None:
        """Bind the library; see `LinearOps`."""
        super().__init__(library, variant)
        self._vector = VECTOR[variant]
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
        if self._expanding is not None and dtype is torch.bfloat16:
            expandable = pack_expandable(weight)
            if expandable is not None:
                return expandable
        rows, inputs = weight.shape
        places = 8 if weight.bits == 4 else 4
        several = weight.group < inputs
        if inputs % places or (several and weight.group % places):
            return weight
        if weight.table is not None and (weight.table.dim() == 2 or weight.bits == 8):
            return weight
        kind, shift, table = self._kind(weight)
        scales, zeros, offsets = parts_of(weight, shift, self._vector > 4)
        stacked = [part for part in (scales, zeros, offsets) if part is not None]
        panel = 2 * self._vector
        head = panel * len(stacked) * scales.element_size()
        group = min(weight.group, inputs)
        groups = ceil_div(inputs, group)
        size = groups * head + inputs // places * panel * 4
        data = WEIGHTS.empty((ceil_div(rows, panel), size), torch.uint8)
        step = max(1, PACKED_AT_ONCE // (inputs * panel))
        for start in range(0, len(data), step):
            some = slice(start * panel, (start + step) * panel)
            self._fill(
                data[start : start + step],
                _shifted(weight.codes[some].view(torch.uint8), weight.bits, shift),
                [part[some] for part in stacked],
                weight.bits,
                group,
            )
        return PackedPanels(
            data,
            (rows, inputs),
            kind,
            group,
            scales.dtype,
            zeros is not None,
            offsets is not None,
            0
            if table is not None or isinstance(weight.zero, torch.Tensor)
            else weight.zero - shift,
            table,
            None if weight.inputs is None else weight.inputs.int(),
            weight.x_group,
        )

    def pack_quantized_gated(
        self, weight: QuantizedWeight, dtype: torch.dtype
    ) -> PackedExpandable | None:
        """Lay out a weight whose product is to be silu(first half of the outputs) * the others.

        None: such a product isn't computed at once. dtype: see `pack_quantized`.
        """
        if self._expanding is None or dtype is not torch.bfloat16:
            return None
        return pack_expandable(weight, gated=True)

    def _kind(self, weight: QuantizedWeight) -> tuple[Kind, int, torch.Tensor | None]:
        """Return the kind, what is subtracted from codes, and its table.

        Codes become signed. A zero that all groups share is worked into them where it fits.
        """
        zero = weight.zero if isinstance(weight.zero, int) else 0
        if weight.codes.dtype is not torch.uint8:
            return Kind.FLOAT8, 0, None
        if weight.bits == 8:
            fits = int(weight.codes.max()) - zero < 128 and zero <= 128
            return Kind.SIGNED8, zero if fits else 128, None
        if weight.table is not None or self._vector == 16:
            values = torch.arange(16.0) if weight.table is None else weight.table.float()
            return Kind.TABLE4, 0, values - zero
        return Kind.SIGNED4, 8, None

    def _fill(
        self,
        data: torch.Tensor,
        codes: torch.Tensor,
        parts: list[torch.Tensor],
        bits: int,
        group: int,
    ) -> None:
        """Write some panels. codes: uint8 rows, parts: [rows, groups]; rows may be missing."""
        panels, panel = len(data), 2 * self._vector
        missing = panels * panel - len(codes)
        if missing:
            codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
            parts = [torch.nn.functional.pad(part, (0, 0, 0, missing)) for part in parts]
        words = codes.view(torch.int32)
        if bits == 4:
            words = _paired(words)
        places = 32 // bits
        steps, count = group // places, words.shape[1]
        whole = count // steps
        words = words.view(panels, panel, count).transpose(1, 2)  # [panels, words of K, panel]
        parts = [part.view(panels, panel, -1).transpose(1, 2) for part in parts]
        head = sum(panel * part.element_size() for part in parts)
        record = head + steps * panel * 4
        for first, groups, length in ((0, whole, steps), (whole, 1, count - whole * steps)):
            if not groups or not length:
                continue
            at = first * record
            size = head + length * panel * 4
            target = data[:, at : at + groups * size].view(panels, groups, size)
            place = 0
            for part in parts:
                raw = part[:, first : first + groups].contiguous().view(torch.uint8)
                target[:, :, place : place + raw.shape[2]] = raw
                place += raw.shape[2]
            some = words[:, first * steps : first * steps + groups * length].contiguous()
            target[:, :, head:] = some.view(torch.uint8).view(panels, groups, size - head)

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
        outputs = weight.shape[0]
        gated = isinstance(weight, PackedExpandable) and weight.gated
        assert not gated or x.dtype is torch.bfloat16, "gated for rows in bf16"
        if out is None:
            out = torch.empty((len(x), outputs // 2 if gated else outputs), dtype=x.dtype)
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
        launch(
            "linear_quantized", "native", run, (packed,),
            quantized_cost, x, weight, out, self.variant,
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


def _paired(words: torch.Tensor) -> torch.Tensor:
    """Move the even places of eight into a word's lower half, the odd ones into its upper half."""
    even = _joined(words & 0x0F0F0F0F)
    return _joined((words >> 4) & 0x0F0F0F0F).bitwise_left_shift_(16).bitwise_or_(even)


def _joined(nibbles: torch.Tensor) -> torch.Tensor:
    """Join the lower halves of a word's four bytes into 16 bits."""
    pairs = nibbles.bitwise_or_(nibbles >> 4).bitwise_and_(0x00FF00FF)
    return pairs.bitwise_or_(pairs >> 8).bitwise_and_(0xFFFF)


def _shifted(codes: torch.Tensor, bits: int, shift: int) -> torch.Tensor:
    """Subtract a number from codes: in two's complement, of 4 bits where the number is 8."""
    if not shift:
        return codes
    return codes ^ 0x88 if bits == 4 else codes - shift
