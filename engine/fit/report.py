"""Write the plan as text, every number with the sum that it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from engine.fit.estimate import ALLOWANCE, GB, GIB, Plan
from engine.fit.shape import BYTES, Shape
from engine.rank_sizes import NEVER_RUN
from engine.rounding import ceil_div

WIDTH = 98


def report(plan: Plan) -> str:
    """Write the plan as text, every number with its sum."""
    shape, size = plan.shape, BYTES[plan.shape.dtype]
    lines = [f"{shape.name}: {shape.architecture}, {shape.dtype} ({size} bytes a number)"]
    lines += [f"quantized: {shape.quantized.says}"] if shape.quantized else []
    lines += [""]
    lines += [f"Each of {plan.ranks} ranks, which share each layer", ""] if plan.ranks > 1 else []
    lines += ["Weights"]
    lines += [_line(part.name, part.formula, f"{part.numbers:,}") for part in shape.parts]
    lines += [
        *_weight_lines(shape, size),
        *_draft_lines(plan),
        "",
        "KV cache" if plan.kv_cache_dtype == "auto" else f"KV cache, in {plan.kv_dtype}",
        _line(
            "a token",
            f"K and V: 2 × {shape.layers} layers × {shape.kv_heads} heads × {shape.head_dim}"
            f" × {_bytes(plan.kv_number_bytes)}",
            f"{plan.kv_bytes_of(shape):,} bytes",
        ),
        *_draft_kv_lines(plan),
        _line("a block", f"{plan.block_size} tokens", f"{plan.block_bytes:,} bytes"),
        _line(
            f"{plan.concurrency} at once",
            f"{plan.concurrency} × {plan.max_model_len:,} tokens = {plan.blocks:,} blocks",
            _gib(plan.kv_bytes),
        ),
        "",
        "Beside them",
        _line(
            "drawing",
            f"{plan.seats} seats × {shape.vocab:,} tokens × 16 bytes",
            _gib(plan.drawing_bytes),
        ),
        _line("the rest", "an allowance; the engine measures it at start", _gib(ALLOWANCE)),
        "",
        _line("Needed", "weights + KV cache + beside them", _gib(plan.needed)),
        "",
        *_gpu_lines(plan),
        "",
        *_verdict(plan),
    ]
    return "\n".join(lines)


def _draft_lines(plan: Plan) -> list[str]:
    """Write what the draft model's weights take."""
    draft = plan.draft
    if draft is None:
        return []
    formula = f"{draft.name}: {draft.parameters:,} parameters, in {plan.shape.dtype}"
    return [_line("draft model", formula, _gib(plan.draft_bytes))]


def _draft_kv_lines(plan: Plan) -> list[str]:
    """Write what a token takes in the draft model's pages."""
    draft = plan.draft
    if draft is None:
        return []
    formula = (
        f"K and V: 2 × {draft.layers} layers × {draft.kv_heads} heads × {draft.head_dim}"
        f" × {_bytes(plan.kv_number_bytes)}"
    )
    return [_line("of the draft", formula, f"{plan.kv_bytes_of(draft):,} bytes")]


def _weight_lines(shape: Shape, size: int) -> list[str]:
    """Write what the weights take in all, and how it comes about."""
    quantized, in_all = shape.quantized, _gib(shape.weight_bytes)
    if quantized is None:
        return [_line("in all", f"{shape.parameters:,} × {size} bytes", in_all)]
    if quantized.in_all is not None:
        return [_line("in all", "as the file's tensors are kept", in_all)]
    lines, plain = [], shape.parameters
    for width, matrices in shape.in_codes.items():
        count = sum(matrix.numbers for matrix in matrices)
        plain -= count
        *others, last = dict.fromkeys(matrix.part for matrix in matrices)
        parts = f"{', '.join(others)} and {last}" if others else last
        codes = f"{count:,} of {parts} × ({width.formula}) bits"
        lines.append(_line("matrices", codes, _gib(round(count * width.bits / 8))))
    rest = f"matrices + {plain:,} × {size} bytes"
    return [*lines, _line("in all", rest, in_all)]


def _line(name: str, formula: str, result: str) -> str:
    indent = "" if name == "Needed" else "  "
    return f"{indent + name:<15}{formula:<64}{result:>19}"


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"


def _gpu_lines(plan: Plan) -> Iterator[str]:
    yield (
        f"{'Koyeb instance':<30}{'memory':>8}{f'× {plan.share:.2f}':>12}{'left for KV':>14}"
        f"{'tokens':>12}{f'of {plan.max_model_len:,}':>12}  "
    )
    for gpu in plan.offered:
        instance = gpu.instance(plan.ranks)
        if gpu.memory_gb is None:
            yield f"{instance:<30}{'?':>8}  memory not found: check on your account"
            continue
        if not plan.converts(gpu):
            capability = ".".join(map(str, gpu.capability))
            yield (
                f"{instance:<30}{f'{gpu.memory_gb} GB':>8}"
                f"  has no e4m3 (compute capability {capability}): use fp8_e5m2"
            )
            continue
        left = plan.left_for_kv(gpu)
        blocks = max(0, left // plan.block_bytes)
        sequences = blocks // ceil_div(plan.max_model_len, plan.block_size)
        yield (
            f"{instance:<30}{f'{gpu.memory_gb} GB':>8}"
            f"{_gib(int(gpu.memory_gb * GB * plan.share)):>12}"
            f"{_gib(left) if left > 0 else 'too small':>14}"
            f"{blocks * plan.block_size:>12,}{sequences:>12,}"
            f"  {'fits' if plan.fits(gpu) else '–'}"
        )


def _verdict(plan: Plan) -> list[str]:
    gpu = plan.choice()
    if gpu is not None:
        region = gpu.regions.partition(",")[0]
        if plan.refusal:
            return [
                f"By these sums {gpu.instance(plan.ranks)} ({gpu.regions}) would hold it, but this"
                " version does not start so:",
                *wrap(plan.refusal, WIDTH),
            ]
        found = [
            f"Smallest that fits: --instance-type {gpu.instance(plan.ranks)} --regions {region}",
            f"(regions: {gpu.regions}; prices: https://www.koyeb.com/pricing)",
        ]
        return found + (wrap(f"{NEVER_RUN}.", WIDTH) if plan.ranks > 1 else [])
    usable = [gpu for gpu in plan.offered if gpu.memory_gb is not None and plan.converts(gpu)]
    tokens = max(0, max(map(plan.left_for_kv, usable)) // plan.kv_bytes_per_token)
    if tokens == 0:
        return ["None of them holds the weights: choose a smaller model."]
    return [
        f"None of them fits. The largest holds {tokens:,} tokens beside the weights: lower"
        " --max-model-len or --concurrency."
    ]
