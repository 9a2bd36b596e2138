"""Draw one group of weights through each quantized format, and count how exactly each is read.

The weights are real: the first 128 of row 0 of the pocket model's first q_proj. Each format stores
them; the bytes are what lies in the file, and the numbers are what the engine reads from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gguf
import numpy as np
import torch
from safetensors import safe_open

from engine.config import POCKET_MODEL
from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.filling import expanded
from engine.models.formats.find import SCHEMES
from engine.models.formats.gguf_blocks import BLOCKS, dequantize
from engine.models.formats.gguf_weights import to_weight
from engine.quantize.gguf_file import TYPES
from engine.quantize.packing import PACKINGS
from engine.quantize.weight_rounding import Grid, round_to_nearest
from tests.models.quantized_files import FORMATS

GROUP = 128
SHOWN = 6
NF4 = (
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Drawn(NamedTuple):
    """Hold one group in one format."""

    stored: bytes  # of the codes, in the file's order
    weight: QuantizedWeight
    bits: float  # of a weight in the file, with its part of the scales


def real_weights() -> torch.Tensor:
    """Return 8 rows of 128 weights: fp32 [8, 128]."""
    with safe_open(f"{POCKET_MODEL}/model.safetensors", framework="pt") as tensors:
        name = "model.layers.0.self_attn.q_proj.weight"
        return tensors.get_tensor(name)[:8, :GROUP].float()


def one_group() -> str:
    """Fill the table of one group in all formats."""
    weights = real_weights()
    plain = weights[0].bfloat16().view(torch.uint8)
    lines = [
        "| format | first bytes of the codes | codes | scale | what is read | error | bits |",
        "|---|---|---|---|---|---|---|",
        f"| bf16 | `{_hex(plain)}` | | | {_numbers(weights[0])} | | 16 |",
    ]
    for name, draw in DRAWN.items():
        drawn = draw(weights)
        numbers = drawn.weight.dequantize()[0]
        error = float((numbers - weights[0]).norm() / weights[0].norm())
        lines.append(
            f"| {name} | `{_hex(drawn.stored)}` | {_codes(drawn.weight)} | {_scale(drawn.weight)}"
            f" | {_numbers(numbers)} | {error:.1%} | {drawn.bits:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _hex(data: bytes | torch.Tensor) -> str:
    return bytes(data[:4].tolist() if isinstance(data, torch.Tensor) else data[:4]).hex(" ")


def _numbers(row: torch.Tensor) -> str:
    return " ".join(f"{float(value):.3f}".replace("-", "−") for value in row[:SHOWN])


def _codes(weight: QuantizedWeight) -> str:
    row = weight.codes[0]
    if row.dtype is not torch.uint8:
        row = row.view(torch.uint8)
    elif weight.bits == 4:
        row = torch.stack((row & 15, row >> 4), 1).flatten()
    return " ".join(str(int(code)) for code in row[:SHOWN])


def _scale(weight: QuantizedWeight) -> str:
    if weight.scales is None:
        return "a table"
    said = f"{float(weight.scales[0, 0]):.5f}".replace("-", "−")
    zero = weight.zero if isinstance(weight.zero, int) else int(weight.zero[0, 0])
    if weight.offsets is not None:
        return f"{said}, offset {float(weight.offsets[0, 0]):.4f}".replace("-", "−")
    return f"{said}, zero {zero}" if zero else said


def _read(method: str, config: dict, stored: dict[str, torch.Tensor], codes: str) -> Drawn:
    scheme = SCHEMES[method](config)
    shape = 8, GROUP
    contiguous = {name: tensor.contiguous() for name, tensor in stored.items()}
    filling = scheme.filling("layer", contiguous, shape)
    assert isinstance(filling.matrix, QuantizedWeight)
    beside = (".g_idx", ".weight_shape")  # of every matrix the same
    size = sum(tensor.nbytes for name, tensor in contiguous.items() if name not in beside)
    data = contiguous[codes].view(torch.uint8).flatten()
    return Drawn(bytes(data[:4].tolist()), filling.matrix, 8 * size / (8 * GROUP))


def _packed(form: str, codes: str) -> Callable[[torch.Tensor], Drawn]:
    def draw(weights: torch.Tensor) -> Drawn:
        packing = PACKINGS[form]
        grid = Grid(packing.bits[0], GROUP, packing.symmetric)
        config = packing.config(grid, [])
        stored = packing.store(round_to_nearest(weights, grid), grid)
        return _read(config["quant_method"], config, stored, codes)

    return draw


def _fp8(weights: torch.Tensor) -> Drawn:
    scale = weights.abs().amax(1, keepdim=True) / 448
    stored = {".weight": (weights / scale).to(torch.float8_e4m3fn), ".weight_scale": scale}
    return _read("fp8", {}, stored, ".weight")


def _nf4(weights: torch.Tensor) -> Drawn:
    blocks = weights.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    table = torch.tensor(NF4)
    codes = ((blocks / absmax[:, None])[..., None] - table).abs().argmin(-1).to(torch.uint8)
    flat = codes.flatten()
    state = f'{{"blocksize": 64, "shape": [8, {GROUP}]}}'
    stored = {
        ".weight": flat[::2] << 4 | flat[1::2],
        ".weight.absmax": absmax,
        ".weight.quant_map": table,
        ".weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(state.encode()), dtype=torch.uint8
        ),
    }
    drawn = _read("bitsandbytes", {"bnb_4bit_quant_type": "nf4"}, stored, ".weight")
    return drawn._replace(bits=4 + 32 / 64)


def _mxfp4(weights: torch.Tensor) -> Drawn:
    blocks = weights.reshape(8, -1, 32)
    exponent = (blocks.abs().amax(-1) / 6).log2().ceil().int()
    scaled = blocks / 2.0 ** exponent[..., None]
    codes = (scaled.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1).to(torch.uint8)
    codes |= (scaled < 0).to(torch.uint8) << 3
    stored = {
        "_blocks": codes[..., ::2] | codes[..., 1::2] << 4,
        "_scales": (exponent + 127).to(torch.uint8),
    }
    return _read("mxfp4", {}, stored, "_blocks")


def _squeezellm(weights: torch.Tensor) -> Drawn:
    table = torch.quantile(weights, (torch.arange(16) + 0.5) / 16, dim=1).T.contiguous()
    for _ in range(20):  # k-means of each row
        codes = (weights[..., None] - table[:, None]).abs().argmin(-1)
        sums = torch.zeros_like(table).scatter_add_(1, codes, weights)
        counts = torch.zeros_like(table).scatter_add_(1, codes, torch.ones_like(weights))
        table = torch.where(counts > 0, sums / counts.clamp(min=1), table)
    codes = (weights[..., None] - table[:, None]).abs().argmin(-1).to(torch.uint8)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).contiguous().view(torch.int32).t()
    stored = {".qweight": packed, ".lookup_table": table}
    drawn = _read("squeezellm", {"wbits": 4}, stored, ".qweight")
    return drawn._replace(bits=4.0)  # the table is one for a row, however long


def _gguf(form: str) -> Callable[[torch.Tensor], Drawn]:
    def draw(weights: torch.Tensor) -> Drawn:
        if form in TYPES:
            kind = TYPES[form]
            raw = kind.write(round_to_nearest(weights, Grid(kind.bits, 32, True)))
            number = kind.number
        else:
            number = int(gguf.GGMLQuantizationType[form.upper()])
            raw = gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType(number))
        block = BLOCKS[number]
        codes = {"q4_0": 2, "q8_0": 2, "q4_1": 4, "q5_0": 6}[form]
        data = bytes(raw[0, codes : codes + 4].tolist())
        return Drawn(data, to_weight(raw, block, (8, GROUP)), 8 * block.num_bytes / block.weights)

    return draw


DRAWN: dict[str, Callable[[torch.Tensor], Drawn]] = {
    "GPTQ": _packed("gptq", ".qweight"),
    "AWQ": _packed("awq-like", ".qweight"),
    "compressed-tensors W4A16": _packed("w4a16", ".weight_packed"),
    "compressed-tensors int8": _packed("int8", ".weight"),
    "FP8": _fp8,
    "bitsandbytes nf4": _nf4,
    "MXFP4": _mxfp4,
    "SqueezeLLM": _squeezellm,
    "GGUF Q4_0": _gguf("q4_0"),
    "GGUF Q4_1": _gguf("q4_1"),
    "GGUF Q5_0": _gguf("q5_0"),
    "GGUF Q8_0": _gguf("q8_0"),
}


# ------------------------------------------------------------------------------------- exactness


def exactness() -> str:
    """Fill the table of formats: are they read, and how many numbers differ from the oracle's."""
    lines = ["| what is read | compared with | numbers | different bits |", "|---|---|---|---|"]
    for name, form in FORMATS.items():
        weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) / 10
        stored, wanted = form.store(weight, torch.Generator().manual_seed(0))
        scheme = SCHEMES[form.config["quant_method"]](form.config)
        filling: Filling = scheme.filling("layer", stored, (64, 96))
        different = int((expanded(filling) != wanted).sum())
        oracle = "compressed-tensors itself" if "compressed" in name else "the format's description"
        lines.append(f"| {name} | {oracle} | {wanted.numel():,} | {different} |")
    for number, block in BLOCKS.items():
        if block.bits:
            raw, wanted_rows = random_rows(number)
            found = dequantize(raw, number).view(np.uint32)
            different = int((found != wanted_rows.view(np.uint32)).sum())
            lines.append(f"| GGUF {block.name} | gguf itself | {found.size:,} | {different} |")
    return "\n".join(lines) + "\n"


def random_rows(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (random bytes of 16 rows, what gguf reads from them); no scale is infinite."""
    block = BLOCKS[number]
    raw = np.random.default_rng(number).integers(0, 256, (16, 4, block.num_bytes), np.uint8)
    halves = [-1] if block.name == "Q6_K" else [1, 3]  # the exponents of the scales
    for at in halves:
        raw[:, :, at] &= 0xBB
    raw = raw.reshape(16, -1)
    return raw, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number))
