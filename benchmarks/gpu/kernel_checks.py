"""Check each kernel against float64 on fresh random inputs, its outputs poisoned first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.gpu.paged_step import captured, finite, make_step
from benchmarks.gpu.quantized_checks import quantized_errors
from engine.config import ConfigError
from engine.kernels import Kernels, torch_attention, torch_ops
from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache
from engine.kernels.fp8_cache import LARGEST, stored_as
from engine.worker.memory.kv_dtype import chosen_kv_dtype
from engine.worker.sampling import exact_draw as definition

ALLOWED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Relative error: of the greatest difference to the greatest exact value."""
STEPS = {
    "decode": [(0, 1), (100, 1), (1030, 1)],
    "long decode": [(2100, 1)],
    "mixed": [(77, 1), (0, 50), (33, 20)],
}
EXTRAS = {
    "": {},
    " window": {"sliding_window": 50},
    " cap, sinks": {"soft_cap": 10.0, "sinks": torch.tensor([1.0, -2.0, 3.0, 0.0])},
}


def checks(
    kernels: Kernels, device: torch.device, dtypes: list[torch.dtype], head_dims: list[int]
) -> Iterator[dict]:
    """Return one result for each kernel and kind of input: {kernel, dtype, error, allowed}."""
    for dtype in dtypes:
        for name, error in _of_dtype(kernels, device, dtype, head_dims):
            short = str(dtype).removeprefix("torch.")
            yield {"kernel": name, "dtype": short, "error": error, "allowed": ALLOWED[dtype]}
        for pages in LARGEST:
            if can_convert(pages, device):
                for name, error, allowed in _in_8_bits(kernels, device, dtype, pages):
                    yield {"kernel": name, "dtype": short, "error": error, "allowed": allowed}
    yield {
        "kernel": "angles",
        "dtype": "float32",
        "error": _angles(kernels, device),
        "allowed": 1e-6,
    }
    yield {
        "kernel": "copy_blocks",
        "dtype": "int64",
        "error": _moved_wrong(kernels, device),
        "allowed": 0.0,
    }
    yield {
        "kernel": "take_inputs and hand_out",
        "dtype": "int64",
        "error": _exchanged_wrong(kernels, device),
        "allowed": 0.0,
    }
    yield {"kernel": "draw", "dtype": "float32", "error": _draw(kernels, device), "allowed": 0.0}
    for dtype in dtypes:
        yield {
            "kernel": "greatest",
            "dtype": str(dtype).removeprefix("torch."),
            "error": _greatest(kernels, device, dtype),
            "allowed": 0.0,
        }


def _of_dtype(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, head_dims: list[int]
) -> Iterator[tuple[str, float]]:
    x = torch.randn(5, 2 * 700, device=device).to(dtype)
    residual = torch.randn(5, 2 * 700, device=device)  # fp32, as the models keep it
    weight, bias = (torch.randn(2 * 700, device=device).to(dtype) for _ in range(2))
    poison(x)
    total = (x + residual).double()
    yield (
        "rms_norm",
        _error(
            kernels.rms_norm(x, weight, 1e-5), torch_ops.rms_norm(x.double(), weight.double(), 1e-5)
        ),
    )
    yield (
        "rms_norm of the stream",
        _error(
            kernels.rms_norm(residual, weight, 1e-5),
            torch_ops.rms_norm(residual.double(), weight.double(), 1e-5),
        ),
    )
    yield (
        "add_rms_norm",
        _error(
            kernels.add_rms_norm(x, residual, weight, 1e-5)[0],
            torch_ops.rms_norm(total, weight.double(), 1e-5),
        ),
    )
    yield (
        "add_layer_norm",
        _error(
            kernels.add_layer_norm(x, residual, weight, bias, 1e-5)[0],
            torch_ops.layer_norm(total, weight.double(), bias.double(), 1e-5),
        ),
    )
    sums = torch.randn(5, 2 * 700, device=device)  # of a product, as it added them up
    yield (
        "add_rms_norm of sums",
        _error(
            kernels.add_rms_norm(sums, residual, weight, 1e-5)[0],
            torch_ops.rms_norm((sums + residual).double(), weight.double(), 1e-5),
        ),
    )
    yield "silu_and_mul", _error(kernels.silu_and_mul(x), torch_ops.silu_and_mul(x.double()))
    table, places = (torch.randn(9, 2 * 700, device=device).to(dtype) for _ in range(2))
    ids, positions = (torch.randint(0, n, (5,), device=device) for n in (9, 7))
    poison(table)
    yield "embed", _error(kernels.embed(ids, table), table.double()[ids])
    yield (
        "embed and positions",
        _error(
            kernels.embed(ids, table, positions, places[2:]),  # as OPT's, which begin at 2
            table.double()[ids] + places.double()[positions + 2],
        ),
    )
    yield from _few_rows(kernels, device, dtype)
    yield from quantized_errors(kernels, device, dtype, _error)
    for head_dim in head_dims:
        for step, rows in STEPS.items():
            for extra, options in EXTRAS.items():
                error = _attention(kernels, device, dtype, head_dim, rows, options)
                yield f"qkv_attention {step}{extra} d{head_dim}", error
        for extra, options in EXTRAS.items():
            error = _attention(kernels, device, dtype, head_dim, STEPS["mixed"], options, (9, 2))
            yield f"qkv_attention captured{extra} d{head_dim}", error
        error = _attention(kernels, device, dtype, head_dim, STEPS["mixed"], {}, sums=True)
        yield f"qkv_attention of sums d{head_dim}", error


def _few_rows(
    kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, float]]:
    """Check the products of a step with few tokens, each with what stands beside it."""
    if kernels.few_rows is None:
        raise RuntimeError("these kernels have none for few rows: Triton isn't installed")
    inputs, outputs = (60, 33) if device.type == "cpu" else (1500, 701)
    for rows in (1, kernels.few_rows.most - 1):
        x, stream, residual = (
            torch.randn(rows, n, device=device) for n in (inputs, inputs, outputs)
        )
        x = x.to(dtype)  # stream and residual are in fp32, as the models keep them
        norm, bias = (torch.randn(n, device=device).to(dtype) for n in (inputs, outputs))
        weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).to(dtype)
        gated = (torch.randn(2 * outputs, inputs, device=device) / inputs**0.5).to(dtype)
        poison(residual)
        product = x.double() @ weight.double().T
        normed = torch_ops.rms_norm(stream.double(), norm.double(), 1e-5)
        few = kernels.few_rows
        for name, found, exact in (
            ("linear", kernels.linear(x, weight, bias), product + bias.double()),
            ("sums", kernels.linear(x, weight, bias, wide=True), product + bias.double()),
            ("relu", few.linear_relu(x, weight, bias), (product + bias.double()).relu()),
            ("add", few.linear_add(x, weight, None, residual), product + residual.double()),
            (
                "norm",
                few.norm_linear(stream, norm, 1e-5, weight, None),
                normed @ weight.double().T,
            ),
            (
                "norm, gate",
                few.norm_gated(stream, norm, 1e-5, gated, None),
                torch_ops.silu_and_mul(normed @ gated.double().T),
            ),
        ):
            yield f"skinny {name}, {rows} rows", _error(found, exact)


def _attention(
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    rows: list[tuple[int, int]],
    options: dict,
    padding: tuple[int, int] | None = None,
    sums: bool = False,
) -> float:
    """Check attention.

    padding: tokens and rows that a captured step has beside these. sums: the projection is in fp32.
    """
    cache, batch = make_step(rows, 2, head_dim, 16, dtype)
    cache, batch = on_device(finite(cache), batch, device)
    exact = LayerCache(cache.k.double(), cache.v.double())
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    spec = AttentionSpec(4, 2, head_dim, head_dim**-0.5, **options)
    tokens = len(batch.positions)
    qkv = torch.randn(tokens, 8 * head_dim, device=device)
    qkv = qkv if sums else qkv.to(dtype)
    angles = tuple(torch.rand(tokens, 1, head_dim, device=device) for _ in range(2))
    poison(qkv)
    if padding is None:
        found = kernels.qkv_attention(qkv, angles, None, cache, batch, spec, dtype)
    else:
        step = captured(batch, *padding)
        more = [F.pad(x, (0, 0) * (x.dim() - 1) + (0, padding[0])) for x in (qkv, *angles)]
        found = kernels.qkv_attention(more[0], tuple(more[1:]), None, cache, step, spec)[:tokens]
    return _error(
        found, torch_attention.qkv_attention(qkv.double(), angles, None, exact, batch, spec)
    )


def can_convert(pages: torch.dtype, device: torch.device) -> bool:
    """Return whether the device has such 8-bit floats."""
    try:
        chosen_kv_dtype("fp8" if pages == torch.float8_e4m3fn else "fp8_e5m2", device)
    except ConfigError:
        return False
    return True


def _in_8_bits(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, pages: torch.dtype
) -> Iterator[tuple[str, float, float]]:
    """Yield (kernel, error, allowed) for attention over 8-bit pages, and for writing them.

    Attention is checked on what the pages hold then; writing, by the share of numbers that differ
    from torch's cast.
    """
    short = str(pages).removeprefix("torch.float8_")
    cache, batch = make_step(STEPS["mixed"], 2, 64, 16, torch.float32)
    cache = finite(cache)
    cache = LayerCache(stored_as(cache.k, pages), stored_as(cache.v, pages))
    cache, batch = on_device(cache, batch, device)
    spec = AttentionSpec(4, 2, 64, 0.125)
    qkv = torch.randn(len(batch.positions), 8 * 64, device=device).to(dtype)
    found = kernels.qkv_attention(qkv, None, None, cache, batch, spec)
    q, k, v = qkv.view(-1, 8, 64).split((4, 2, 2), 1)
    exact = LayerCache(cache.k.double(), cache.v.double())
    expected = torch_attention.paged_attention(q.double(), exact, batch, spec).flatten(1)
    yield f"qkv_attention on {short}", _error(found, expected), ALLOWED[dtype]
    if device.type == "cpu":  # Triton's interpreter rounds wrongly to 8 bits
        return
    for name, new in (("k", k), ("v", v)):
        held = getattr(cache, name).flatten(0, 1).view(torch.uint8)[batch.slot_mapping]
        wrong = held != stored_as(new, pages).view(torch.uint8)
        yield f"write {name} in {short}", float(wrong.float().mean()), 0.0


def _angles(kernels: Kernels, device: torch.device) -> float:
    """Return the greatest difference from float64's cosines and sines.

    They are of the same products in fp32.
    """
    tokens, half, scale = 7, 40, 1.25
    positions = torch.randint(0, 131_072, (tokens,), device=device)
    inv_freq = 1.0 / 10_000.0 ** (torch.arange(half, device=device) / half)
    turned = (positions[:, None, None].float() * inv_freq).double()
    cos, sin = turned.cos() * scale, turned.sin() * scale
    exact = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    poison(cos.float())
    found = kernels.angles(positions, inv_freq, scale)
    wrong = torch.stack([(a.double() - b).abs().max() for a, b in zip(found, exact)])
    return float(wrong.max().nan_to_num(float("inf")))


def _moved_wrong(kernels: Kernels, device: torch.device) -> float:
    """Return the share of words that are in a wrong place after a copy and two swaps.

    The swaps go to (pinned) host memory and back.
    """
    if kernels.copy_blocks is None:
        raise RuntimeError("these kernels copy no blocks: Triton isn't installed")
    widths = (3, 1500)
    pool = [torch.randint(-(2**60), 2**60, (6, words), device=device) for words in widths]
    pin = device.type == "cuda"
    host = [torch.zeros(4, words, dtype=torch.int64, pin_memory=pin) for words in widths]
    places, there = (
        torch.tensor([part.data_ptr() for part in parts], device=device) for parts in (pool, host)
    )
    words = torch.tensor(widths, device=device)
    expected = [part.clone() for part in pool]
    for part in expected:
        part[4], part[5] = part[0], part[2]
        part[1] = part[5]
    kernels.copy_blocks(places, places, words, torch.tensor([[0, 4], [2, 5]], device=device))
    kernels.copy_blocks(places, there, words, torch.tensor([[5, 3], [4, 0]], device=device))
    kernels.copy_blocks(there, places, words, torch.tensor([[3, 1]], device=device))
    wrong = [(a != b).float().mean() for a, b in zip(pool, expected)]
    wrong += [(a[3].to(device) != b[5]).float().mean() for a, b in zip(host, expected)]
    return float(max(wrong))


def _exchanged_wrong(kernels: Kernels, device: torch.device) -> float:
    """Return the share of words that a step didn't read from pinned memory, or didn't write to
    it."""
    rows, width, pin = 300, 320, device.type == "cuda"
    staged, host = torch.randint(0, 1000, (5, width)), torch.zeros(width, dtype=torch.int64)
    staged[0, ::2] = -1
    staged[3] %= 50
    drawn = torch.randint(-1, 1000, (50,))
    expected, packed = torch.zeros_like(staged), torch.zeros_like(staged, device=device)
    torch_ops.take_inputs(expected, staged, rows, drawn)
    if pin:
        staged, host = staged.pin_memory(), host.pin_memory()
    kernels.take_inputs(packed, staged, rows, drawn.to(device))
    kernels.hand_out(packed[0, :rows], host)
    if pin:
        torch.cuda.synchronize(device)
    wrong = (packed.cpu() != expected).float().mean(), (host != expected[0]).float().mean()
    return float(max(wrong))


def _draw(kernels: Kernels, device: torch.device) -> float:
    """Return the share of tokens that differ from the CPU's."""
    if kernels.draw is None:
        raise RuntimeError("these kernels draw no tokens: Triton isn't installed")
    shapes = [(4, 1000)] if device.type == "cpu" else [(256, 32000), (4, 128_256)]
    return max(_draw_of(kernels, device, rows, vocab) for rows, vocab in shapes)


def _draw_of(kernels: Kernels, device: torch.device, rows: int, vocab: int) -> float:
    logits, words = torch.randn(rows, vocab) * 3, torch.randint(0, 2**32, (rows,))
    poison(logits.to(device))
    logits[2, vocab // 2] = float("nan")  # nothing can be drawn there
    top_p = torch.tensor([1.0, 0.9] * (rows // 2), dtype=torch.float64)
    cuts = definition.Cuts(torch.tensor([vocab, 50] * (rows // 2)), top_p, top_p * 0.01)
    expected = definition.cut_and_draw(definition.integer_weights(logits), cuts, words)
    there = (part.to(device) for part in cuts)
    found = kernels.draw(logits.to(device), *there, words.to(device)).cpu()
    return float((found != expected).float().mean())


def _greatest(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> float:
    """Return the share of places that differ from the CPU's.

    Rows with equals, NaN and infinities.
    """
    x = torch.randn(8, 4100 if device.type == "cpu" else 128_256).mul_(3).round_().to(dtype)
    x[1, 3], x[2, -1], x[3, 0] = float("nan"), float("nan"), float("inf")
    x[4], x[5, 1:] = float("-inf"), float("-inf")
    found = kernels.greatest(x.to(device)).cpu()
    return float((found != torch_ops.greatest(x)).float().mean())


def poison(like: torch.Tensor) -> None:
    """Fill freed memory with NaN, so that what a kernel leaves unwritten in its result is found."""
    for _ in range(4):
        like.new_full((like.numel() * 4,), float("nan"))


def on_device(
    cache: LayerCache, batch: AttentionBatch, device: torch.device
) -> tuple[LayerCache, AttentionBatch]:
    for name in ("positions", "slot_mapping", "block_tables", "query_start", "context_lens"):
        setattr(batch, name, getattr(batch, name).to(device))
    return LayerCache(cache.k.to(device), cache.v.to(device)), batch


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the greatest error; NaN, which compares greater than nothing, becomes infinity."""
    error = float((found.double() - exact).abs().max() / exact.abs().max())
    return error if error == error else float("inf")
