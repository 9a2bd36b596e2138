"""Unpack codes from 32-bit words, and pack them as the engine has them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.models.errors import ModelError
from engine.rounding import ceil_div

Stored = Mapping[str, torch.Tensor]
"""The tensors of one matrix in the file, by what follows the layer's name: "qweight", …"""


def nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes of up to 4 bits. uint8 [N, K] → uint8 [N, K / 2], the even input in the lower."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def split(packed: torch.Tensor) -> torch.Tensor:
    """Undo `nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def as_bytes(words: torch.Tensor) -> torch.Tensor:
    """Return the bytes of rows of words. int32 [R, W] → uint8 [R, 4 W]."""
    return words.flatten().view(torch.uint8).view(len(words), -1)


def from_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Read codes from words, lowest bits first. int32 [R, W] → uint8 [R, count].

    They are a dense stream of bits: codes of 3, 5, 6 or 7 bits reach from word to word.
    """
    data = as_bytes(words)
    if bits == 8:
        return data[:, :count]
    if bits == 4:
        return split(data)[:, :count]
    if bits == 2:
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8)
        return (data[:, :, None] >> shifts & 3).flatten(1)[:, :count]
    # eight codes are `bits` whole bytes
    width = ceil_div(count, 8) * bits
    data = torch.nn.functional.pad(data, (0, max(0, width - data.shape[1])))[:, :width]
    groups = data.view(len(data), -1, bits)
    found = torch.empty(*groups.shape[:2], 8, dtype=torch.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        code = groups[:, :, byte].to(torch.int16) >> shift
        if shift + bits > 8:
            code |= groups[:, :, byte + 1].to(torch.int16) << (8 - shift)
        found[:, :, place] = (code & (1 << bits) - 1).to(torch.uint8)
    return found.flatten(1)[:, :count]


def engine_codes(words: torch.Tensor, bits: int, inputs: int) -> tuple[torch.Tensor, int]:
    """Read a matrix's codes from words along its inputs. int32 [N, ⌈K · bits / 32⌉].

    Returns (codes, bits) as `QuantizedWeight` has them: of 4 bits where that is enough.
    """
    if bits in (4, 8) and inputs * bits % 32 == 0:  # its bytes are in the engine's order
        return as_bytes(words), bits
    codes = from_words(words, bits, inputs)
    if bits > 4 or inputs % 2:
        return codes.contiguous(), 8
    return nibbles(codes), 4


Shape = tuple[int, ...]


def wanted(
    stored: Stored, name: str, kinds: tuple[torch.dtype, ...], shape: Shape | list[Shape]
) -> torch.Tensor:
    """Return a tensor of the matrix. Raises `ModelError` where it is missing or of another shape.

    shape: a tuple, or a list of tuples.
    """
    tensor = stored.get(name)
    shapes = shape if isinstance(shape, list) else [shape]
    if tensor is None:
        raise ModelError(f"its {name} is missing")
    if tensor.dtype not in kinds:
        names = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
        raise ModelError(f"its {name} holds {str(tensor.dtype)[6:]} numbers; {names} are due")
    if tuple(tensor.shape) not in shapes:
        due = " or ".join(str(list(one)) for one in shapes)
        raise ModelError(f"its {name} has shape {list(tensor.shape)}; {due} is due")
    return tensor


FLOATS = (torch.float16, torch.bfloat16, torch.float32)
WORDS = (torch.int32,)


def group_order(g_idx: torch.Tensor, group: int, inputs: int) -> torch.Tensor | None:
    """Return the inputs sorted by their group: int64 [K]; None where they are so already.

    g_idx: int [K], the group of each input. Raises `ModelError` unless each group has `group`
    inputs, the last one the rest.
    """
    groups = ceil_div(inputs, group)
    least, most = int(g_idx.min()), int(g_idx.max())
    if least < 0 or most >= groups:
        raise ModelError(
            f"its g_idx names group {least if least < 0 else most}; there are {groups}"
        )
    in_order = torch.arange(inputs) // group
    order = torch.argsort(g_idx, stable=True)
    if not torch.equal(g_idx[order].long(), in_order):
        if not bool(g_idx.any()):  # zeros for "in order", as some tools write
            return None
        raise ModelError(f"its g_idx has groups that don't have {group} inputs each")
    return None if torch.equal(g_idx.long(), in_order) else order


def reordered(codes: torch.Tensor, bits: int, order: torch.Tensor) -> torch.Tensor:
    """Return codes with column k for input order[k]."""
    if bits == 8:
        return codes[:, order]
    return nibbles(split(codes)[:, order])
