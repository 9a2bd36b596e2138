"""What the compiled kernels do before they wait for the kernel before them: the invariant of
`start.py`, read from the machine code for sm_90."""

from __future__ import annotations

import os
import re

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from engine.kernels.triton.catalogue import variants
from engine.kernels.triton.compile_all import compiled_for
from engine.kernels.triton.variant import Variant

BY_NAME = {variant.name: variant for variant in variants()}
LENGTHS = {"query_start_ptr", "context_lens_ptr"}  # inputs of a step, like slots, cuts, and words
CUTS = {"top_k_ptr", "top_p_ptr"}
ADDRESSES = {"staged", "there"}  # numbers that are pointers
READ_BEFORE = {
    "rms norm bf16 width 4096": {"weight_ptr"},
    "add rms norm bf16 width 768": {"weight_ptr"},
    "layer norm bf16 width 768": {"weight_ptr", "bias_ptr"},
    "attention decode bf16 d128 group 4": LENGTHS,
    "attention split bf16 d128 group 4": LENGTHS,
    "attention prefill bf16 d128 group 4": LENGTHS,
    "attention split bf16 d64 group 4 mixed": LENGTHS,
    "attention prefill bf16 d128 group 4 mixed": LENGTHS,
    "merge d64 splits 2": set(),
    "write rotate norm bf16 d128": {"q_norm_ptr", "k_norm_ptr", "slots_ptr"},
    "write_kv bf16": {"slots_ptr"},
    "silu_and_mul bf16": set(),
    "embed and positions bf16": set(),
    "angles": set(),
    "greatest of pieces bf16": set(),
    "greatest of rows vocabulary 32000": set(),
    "draw exponentials vocabulary 128256": set(),
    "draw weights vocabulary 256": {"min_p_ptr"},
    "draw top_k vocabulary 128256": {"top_k_ptr"},
    "draw narrow top_k vocabulary 256": {"top_k_ptr"},
    "draw narrow top_p vocabulary 256": {"top_p_ptr"},
    "draw top_p vocabulary 256": CUTS,
    "draw vocabulary 256": CUTS | {"words_ptr"},
    "mask_logits": set(),
    "copy_blocks": set(),
    "take_drawn": set(),
    "take_inputs drawn": {"staged"},
    "hand_out": set(),
    "linear bf16 rows 1 weight 2048 × 2048": {"weight_ptr"},
    "linear bias relu bf16 rows 4 weight 3072 × 768": {"weight_ptr", "bias_ptr"},
    "norm gated bf16 rows 2 weight 16384 × 2048": {"weight_ptr"},
    "linear q4_0 bf16 rows 1 inputs 4096": {"words_ptr"},
    "linear nf4 bf16 rows 4 inputs 4096": {"words_ptr"},
    "linear q4_0 bf16 up to 16 rows inputs 4096": set(),
    "expand q4_0": set(),
    "tiled bf16 to bf16 weight 4096 × 4096": set(),
}


def before_the_wait(variant: Variant, capability: int) -> str:
    """The lines of its PTX up to the wait."""
    ptx = compiled_for(variant, capability).asm["ptx"]
    return ptx[ptx.index(".visible .entry") : ptx.index("griddepcontrol.wait")]


def pointers_read(variant: Variant, lines: str) -> set[str]:
    """Arguments that addresses of loads are computed from, line by line."""
    names = [name for name in variant.kernel.arg_names if name in variant.types]
    made_of: dict[str, set[str]] = {}  # register → arguments
    found: set[str] = set()
    for line in lines.splitlines():
        registers = re.findall(r"%\w+", line)
        if argument := re.search(r"ld\.param\S+\s+(%\w+), \[\w+_param_(\d+)\]", line):
            made_of[argument[1]] = {names[int(argument[2])]}
        elif address := re.search(r"(?:ld\.global|cp\.async\.c)[^\[]*\[\s*(%\w+)", line):
            found |= made_of[address[1]]
        elif len(registers) > 1:
            sources = (made_of.get(register, set()) for register in registers[1:])
            made_of[registers[0]] = set().union(*sources)
    return {name for name in found if variant.types[name][0] == "*" or name in ADDRESSES}


@pytest.mark.parametrize("name", READ_BEFORE)
def test_what_is_read_before_the_wait(name):
    lines = before_the_wait(BY_NAME[name], 90)
    assert pointers_read(BY_NAME[name], lines) == READ_BEFORE[name]
    assert not re.search(r"\b(st|red|atom)\.global|\bret;", lines)  # no write and no way out
    assert "griddepcontrol.launch_dependents" in lines


def test_every_kernel_is_looked_at():
    assert {BY_NAME[name].kernel for name in READ_BEFORE} == {v.kernel for v in BY_NAME.values()}


def test_older_devices_know_nothing_of_it():
    for capability in (80, 89):
        ptx = compiled_for(BY_NAME["angles"], capability).asm["ptx"]
        assert "griddepcontrol" not in ptx
