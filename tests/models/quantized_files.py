"""Tiny checkpoints in every quantized format, and the numbers that their weights stand for.

Each `store_…` takes a matrix apart as the format's own description says, one number after the
other where the order matters: it shares no code with the loaders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GROUP = 32
Matrix = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors of one matrix by what follows the layer's name, and its numbers in fp32."""


class Format(NamedTuple):
    config: dict[str, Any]  # quantization_config
    store: Callable[[torch.Tensor, torch.Generator], Matrix]


def words_along_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """A stream of bits for each column, lowest first: [K, N] → int32 [⌈K · bits / 32⌉, N]."""
    length, columns = codes.shape
    out = torch.zeros(-(-length * bits // 32), columns, dtype=torch.int64)
    for k in range(length):
        word, shift = divmod(k * bits, 32)
        value = codes[k].long() << shift
        out[word] |= value & 0xFFFFFFFF
        if shift + bits > 32:
            out[word + 1] |= value >> 32
    return torch.where(out >= 1 << 31, out - (1 << 32), out).int()


def random_codes(shape: tuple[int, ...], bits: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 1 << bits, shape, generator=random)


def signed_scales(shape: tuple[int, ...], bits: int, random: torch.Generator) -> torch.Tensor:
    scales = (0.2 / 2**bits) * (0.5 + torch.rand(shape, generator=random))
    return scales * (torch.randint(0, 2, shape, generator=random) * 2 - 1)


def per_input(of_groups: torch.Tensor, g_idx: torch.Tensor) -> torch.Tensor:
    return of_groups[g_idx]


def gptq(
    bits: int = 4, group: int = GROUP, v2: bool = False, order: bool = False, symmetric: bool = True
) -> Format:
    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        outputs, inputs = weight.shape
        size = inputs if group == -1 else group
        groups = -(-inputs // size)
        codes = random_codes((inputs, outputs), bits, random)
        scales = signed_scales((groups, outputs), bits, random).half()
        middle = torch.full((groups, outputs), 1 << (bits - 1))
        zeros = middle if symmetric else random_codes((groups, outputs), bits, random).clamp(min=1)
        g_idx = torch.arange(inputs) // size
        if order:
            g_idx = g_idx[torch.randperm(inputs, generator=random)]
        numbers = (codes - zeros[g_idx]).float() * scales.float()[g_idx]
        stored = {
            ".qweight": words_along_rows(codes, bits),
            ".qzeros": words_along_rows((zeros if v2 else zeros - 1).T, bits).T.contiguous(),
            ".scales": scales,
            ".g_idx": g_idx.int(),
        }
        return stored, numbers.T

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order}
    config |= {"sym": symmetric, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    return Format(config, store)


def awq(zeros_stored: bool = True) -> Format:
    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        outputs, inputs = weight.shape
        groups = inputs // GROUP
        codes = random_codes((inputs, outputs), 4, random)
        zeros = random_codes((groups, outputs), 4, random)
        if not zeros_stored:
            zeros = torch.full_like(zeros, 8)
        scales = signed_scales((groups, outputs), 4, random).half()
        g_idx = torch.arange(inputs) // GROUP
        numbers = (codes - zeros[g_idx]).float() * scales.float()[g_idx]

        def words(of: torch.Tensor) -> torch.Tensor:
            nibble = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # which output lies in nibble i
            return words_along_rows(of.view(len(of), -1, 8)[:, :, nibble].flatten(1).T, 4).T

        return {
            ".qweight": words(codes).contiguous(),
            ".qzeros": words(zeros).contiguous(),
            ".scales": scales,
        }, numbers.T

    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    return Format(config | {"zero_point": zeros_stored}, store)


def squeezellm(bits: int = 4, outliers: bool = True) -> Format:
    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        outputs, inputs = weight.shape
        codes = random_codes((inputs, outputs), bits, random)
        table = 0.1 * torch.randn(outputs, 1 << bits, generator=random)
        numbers = table.gather(1, codes.T)
        stored = {".qweight": words_along_rows(codes, bits), ".lookup_table": table}
        if outliers:
            sparse = torch.randn(outputs, inputs, generator=random)
            sparse *= torch.rand(outputs, inputs, generator=random) < 0.02
            rows_of, cols = sparse.nonzero().T
            full = torch.tensor([3, 7], dtype=torch.int32)
            rows = torch.randn(inputs, 2, generator=random)
            rows[sparse[full.long()].T != 0] = 0  # no number is in both
            stored |= {
                ".rows": torch.tensor([0, *rows_of.bincount(minlength=outputs).cumsum(0)]).int(),
                ".cols": cols.int(),
                ".vals": sparse[rows_of, cols],
                ".full_rows": rows,
                ".full_row_indices": full,
            }
            sparse[full.long()] += rows.T
            numbers = numbers + sparse
        return stored, numbers

    return Format({"quant_method": "squeezellm", "wbits": bits}, store)


def compressed(form: str, **weights: Any) -> Format:
    """Written, and read again, by compressed-tensors itself."""
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)

    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        outputs, inputs = weight.shape
        groups = inputs // GROUP if args.strategy == "group" else 1
        rows = 1 if args.strategy == "tensor" else outputs
        scale = signed_scales((rows, groups), args.num_bits, random).abs().to(torch.float32)
        if args.type == "float":
            scale *= 2**args.num_bits / 448
        state = {"weight": weight.float(), "weight_scale": scale.squeeze() if rows == 1 else scale}
        if rows == 1:
            state["weight_scale"] = scale.reshape(1)
        low = -(1 << args.num_bits - 1)
        zeros = torch.zeros(scale.shape, dtype=torch.int8)
        if not args.symmetric:
            zeros = random_codes(tuple(scale.shape), args.num_bits, random).add(low).to(torch.int8)
            state["weight_zero_point"] = zeros
        stored = compressor.compress(dict(state), scheme)
        back = compressor.decompress(dict(stored), scheme)["weight"]
        return {f".{name}": tensor for name, tensor in stored.items()}, back.float()

    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}
        },
    }
    return Format(config, store)


def fp8(block: tuple[int, int] | None = None, rows: bool = False) -> Format:
    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        outputs, inputs = weight.shape
        codes = (100 * torch.randn(outputs, inputs, generator=random)).to(torch.float8_e4m3fn)
        if block is not None:
            grid = -(-outputs // block[0]), -(-inputs // block[1])
            scale = torch.rand(grid, generator=random) / 1000
            wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            name, wide = ".weight_scale_inv", wide[:outputs, :inputs]
        else:
            scale = torch.rand((outputs, 1) if rows else (), generator=random) / 1000
            name, wide = ".weight_scale", scale
        stored = {".weight": codes, name: scale, ".input_scale": torch.tensor(0.5)}
        return stored, codes.float() * wide

    return Format({"quant_method": "fp8", "weight_block_size": block and list(block)}, store)


def nf4(nested: bool = False, block: int = 64) -> Format:
    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        outputs, inputs = weight.shape
        count = outputs * inputs
        codes = random_codes((count,), 4, random)
        table = torch.randn(16, generator=random)
        blocks = -(-count // block)
        absmax = torch.rand(blocks, generator=random) / 10
        state = {"quant_type": "nf4", "blocksize": block, "shape": [outputs, inputs]}
        stored = {
            ".weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
            ".weight.quant_map": table,
            ".weight.absmax": absmax,
        }
        if nested:
            small = random_codes((blocks,), 8, random).to(torch.uint8)
            map_, wide = torch.rand(256, generator=random), torch.rand(-(-blocks // 256))
            absmax = map_[small.long()] * wide[torch.arange(blocks) // 256] + 0.25
            state |= {"nested_blocksize": 256, "nested_offset": 0.25}
            stored |= {
                ".weight.absmax": small,
                ".weight.nested_absmax": wide,
                ".weight.nested_quant_map": map_,
            }
        said = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        stored[".weight.quant_state.bitsandbytes__nf4"] = said
        numbers = table[codes] * absmax[torch.arange(count) // block]
        return stored, numbers.view(outputs, inputs)

    return Format(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, store
    )


def int8() -> Format:
    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        codes = torch.randint(-127, 128, weight.shape, generator=random, dtype=torch.int8)
        most = torch.rand(len(weight), generator=random) / 4
        numbers = codes * most[:, None] * 7.874015718698502e-3
        format_ = torch.tensor(0, dtype=torch.uint8)
        return {".weight": codes, ".SCB": most, ".weight_format": format_}, numbers

    return Format({"quant_method": "bitsandbytes", "load_in_8bit": True}, store)


def mxfp4() -> Format:
    half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]

    def store(weight: torch.Tensor, random: torch.Generator) -> Matrix:
        outputs, inputs = weight.shape
        codes = random_codes((outputs, inputs), 4, random)
        scales = torch.randint(118, 122, (outputs, inputs // 32), generator=random)
        table = torch.tensor(half + [-one for one in half])
        numbers = table[codes] * 2.0 ** (scales.repeat_interleave(32, 1) - 127)
        blocks = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
        stored = {"_blocks": blocks.view(outputs, -1, 16), "_scales": scales.to(torch.uint8)}
        return stored, numbers

    return Format({"quant_method": "mxfp4"}, store)


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
FORMATS: dict[str, Format] = {
    "gptq": gptq(),
    "gptq v2, asymmetric": gptq(v2=True, symmetric=False),
    "gptq asymmetric, act-order": gptq(order=True, symmetric=False),
    "gptq one group": gptq(group=-1),
    "gptq 8 bits, act-order": gptq(8, order=True),
    "gptq 8 bits v2, asymmetric": gptq(8, v2=True, symmetric=False),
    "gptq 3 bits": gptq(3),
    "gptq a short last group": gptq(group=40),
    "awq": awq(),
    "awq without zeros": awq(zeros_stored=False),
    "squeezellm": squeezellm(outliers=False),
    "squeezellm with outliers": squeezellm(),
    "squeezellm 3 bits": squeezellm(3),
    "compressed-tensors W4A16": compressed("pack-quantized", **INT4),
    "compressed-tensors W4A16 asymmetric": compressed("pack-quantized", **INT4, symmetric=False),
    "compressed-tensors W4A16 channel": compressed(
        "pack-quantized", num_bits=4, type="int", strategy="channel"
    ),
    "compressed-tensors 5 bits": compressed("pack-quantized", **INT4 | {"num_bits": 5}),
    "compressed-tensors W8": compressed(
        "int-quantized", num_bits=8, type="int", strategy="channel"
    ),
    "compressed-tensors W8 tensor": compressed(
        "int-quantized", num_bits=8, type="int", strategy="tensor"
    ),
    "compressed-tensors FP8": compressed(
        "float-quantized", num_bits=8, type="float", strategy="channel"
    ),
    "fp8": fp8(),
    "fp8 rows": fp8(rows=True),
    "fp8 blocks": fp8((128, 128)),
    "fp8 ragged blocks": fp8((40, 24)),
    "nf4": nf4(),
    "nf4 nested": nf4(nested=True),
    "nf4 blocks across rows": nf4(block=256),
    "bitsandbytes int8": int8(),
    "mxfp4": mxfp4(),
}


def _about_the_head(form: Format, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What config.json says of a head that is quantized, or isn't."""
    quantized = not tensors.keys() & {"lm_head.weight"} or "lm_head.weight_scale" in tensors
    if form.config["quant_method"] == "compressed-tensors":
        return {"ignore": [] if quantized else ["lm_head"]}
    return {"lm_head": True} if quantized and form.config["quant_method"] in ("gptq", "awq") else {}


def save(
    form: Format,
    folder: Path,
    seed: int = 0,
    keep: tuple[str, ...] = (),
    ends: tuple[str, ...] = ("proj.weight",),
    head: Format | None = None,
    tied: bool = False,
    **sizes: int,
) -> Any:
    """Write a Llama model in that format; returns transformers' with the same numbers.

    keep: parts of names of layers that stay plain. ends: of names of matrices that are quantized.
    head: another format for the head. tied: config.json ties the head, though it is stored. sizes:
    other ones than `CONFIG`'s.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    config = LlamaConfig(**CONFIG | sizes, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors: dict[str, torch.Tensor] = {}
    state = model.state_dict()
    for name, weight in state.items():
        layer = name.removesuffix(".weight")
        if not name.endswith(ends) or any(part in name for part in keep):
            weight.copy_(weight * 3)
            tensors[name] = weight
            continue
        store = head.store if head is not None and layer == "lm_head" else form.store
        stored, numbers = store(weight.clone(), random)
        weight.copy_(numbers)
        tensors |= {f"{layer}{end}": tensor.contiguous() for end, tensor in stored.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    said["tie_word_embeddings"] = tied
    said["quantization_config"] = form.config | _about_the_head(form, tensors)
    (folder / "config.json").write_text(json.dumps(said))
    return model
