"""The kernels compiled for GPUs that aren't here: the committed results are of these very sources,
without faults, and a few variants compiled again give the same; with another version of Triton than
the committed one they may take other registers, but have no faults either."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton

from engine.kernels.triton.catalogue import variants
from engine.kernels.triton.compile_all import (
    RESULTS,
    SHARED_KIB,
    SPILLS_ALLOWED,
    Compiled,
    compile_variant,
    compiled_for,
    sources_hash,
    table,
)

BY_NAME = {variant.name: variant for variant in variants()}
AGAIN = [
    ("attention decode bf16 d128 group 4", 80),
    ("attention prefill bf16 d64 group 4", 90),
    ("write rotate norm bf16 d128", 89),
    ("add rms norm bf16 width 4096", 100),
    ("silu_and_mul fp16", 86),
    ("embed and positions fp16", 86),
    ("copy_blocks", 120),
    ("write_kv bf16 on fp8e4nv", 89),
]


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads((RESULTS / "triton_aot.json").read_text())


@pytest.fixture(scope="module")
def compiled(committed) -> list[Compiled]:
    return [Compiled(**result) for result in committed["compiled"]]


def test_committed_results_are_of_these_sources(committed):
    if committed["triton"] != triton.__version__:
        pytest.skip(f"they are of Triton {committed['triton']}, here is {triton.__version__}")
    assert committed["sources"] == sources_hash(), (
        "a kernel or a variant changed: run python -m engine.kernels.triton.compile_all"
    )


def test_every_variant_on_every_device(compiled):
    found = {(result.variant, result.capability) for result in compiled}
    assert found == {(n, c) for n in BY_NAME for c in SHARED_KIB if c >= BY_NAME[n].since}
    assert len(compiled) == len(found)


def test_no_faults(compiled):
    faults = [f for result in compiled for f in result.faults(BY_NAME[result.variant].tensor_cores)]
    assert faults == []
    for name in SPILLS_ALLOWED:  # a reason that is no longer needed goes
        assert any(r.spill_bytes for r in compiled if r.variant.startswith(name))


def test_the_table_is_of_these_results(compiled):
    assert table(compiled) in (RESULTS / "triton_aot.md").read_text()


def test_faults_are_found():
    bad = Compiled("x", 86, 255, spill_bytes=8, shared_bytes=99 * 1024 + 1, num_warps=4,
                   num_stages=2, matrix="")  # fmt: skip
    assert len(bad.faults(wants_tensor_cores=True)) == 3
    assert len(bad.faults(wants_tensor_cores=False)) == 2


@pytest.mark.parametrize(("name", "capability"), AGAIN)
def test_compiled_again(name, capability, committed, compiled):
    found = compile_variant(BY_NAME[name], capability)
    assert found.faults(BY_NAME[name].tensor_cores) == []
    if committed["triton"] == triton.__version__:
        [before] = [r for r in compiled if (r.variant, r.capability) == (name, capability)]
        assert found == before


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_angles_are_reduced_exactly(capability):
    """By libdevice, which has a table of 2/π for large ones; not by the fast instruction."""
    ptx = compiled_for(BY_NAME["angles"], capability).asm["ptx"]
    assert "__cudart_i2opi_f" in ptx
    assert "cos.approx" not in ptx and "sin.approx" not in ptx
