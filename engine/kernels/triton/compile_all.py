"""Compile every kernel for every GPU that is supported, on a machine without one.

    python -m engine.kernels.triton.compile_all [--out FOLDER]

writes `triton_aot.json` and `triton_aot.md`: registers, spills and shared memory of each kernel on
each kind of device, as NVIDIA's assembler reports them. Exit status 1 if any kernel spills without
a stated reason, needs more shared memory than the device has, or multiplies matrices without
tensor cores.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from engine.kernels.triton.catalogue import variants
from engine.kernels.triton.start import PDL_SINCE
from engine.kernels.triton.variant import Variant
from engine.trace.command import run_command

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Compute capability → shared memory that one program may have (CUDA C++ Programming Guide, table
of technical specifications per compute capability)."""

_WORDS = (
    "3 to 5 words stored and read in all; on sm_90, whose machine code was looked at, a round of"
    " the loop over keys reads one of them, among some 900 instructions"
)
_ONCE = "stored before the loop and read after it, as the machine code shows; or without a loop"
SPILLS_ALLOWED: dict[str, str] = {
    "attention split fp32 d128": _WORDS,
    "attention decode fp32 d128 group 8 window cap sinks": _WORDS,
    "attention decode fp32 d64 group 4 mixed": _ONCE,
    "attention decode bf16 on fp8e5 d128 group 4 mixed": _ONCE,
    "norm linear fp32 rows 4 weight 2048 × 2048": _ONCE,
}
"""Beginning of a variant's name → why its spills are accepted."""

TENSOR_CORES = re.compile(r"\b(wgmma|tcgen05\.mma|mma\.sync)")
FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[2] / "benchmarks" / "results"


@dataclass(frozen=True)
class Compiled:
    """Describe what a variant became on one device."""

    variant: str
    capability: int
    registers: int  # of one thread, at most 255
    spill_bytes: int  # stores and loads of one thread
    shared_bytes: int  # of one program
    num_warps: int
    num_stages: int
    matrix: str  # the matrix instruction, or ""

    def faults(self, wants_tensor_cores: bool) -> list[str]:
        found = []
        where = f"{self.variant} on sm_{self.capability}"
        accepted = any(self.variant.startswith(name) for name in SPILLS_ALLOWED)
        if self.spill_bytes and not accepted:
            found.append(f"{where} spills {self.spill_bytes} bytes")
        limit = SHARED_KIB[self.capability] * 1024
        if self.shared_bytes > limit:
            found.append(f"{where} needs {self.shared_bytes} bytes of shared memory of {limit}")
        if wants_tensor_cores and not self.matrix:
            found.append(f"{where} multiplies matrices without tensor cores")
        return found


def compiled_for(variant: Variant, capability: int) -> Any:
    """Compile a variant with Triton: `.asm["ptx"]`, `.metadata`. Raises what Triton raises."""
    names = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "constexpr") for name in names}
    # The engine's own pointers and sizes are multiples of 16; Triton specialises on that.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*") or name in ("q_stride", "width")
    }
    pdl = int(capability >= PDL_SINCE)  # as `start` launches it there
    source = ASTSource(variant.kernel, signature, {**variant.constants, "PDL": pdl}, aligned)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": variant.num_warps,
            "num_stages": variant.num_stages,
            "launch_pdl": bool(pdl),
            "enable_fp_fusion": True,  # its default changes between versions
        },
    )


def compile_variant(variant: Variant, capability: int) -> Compiled:
    """Compile with Triton to PTX, then with NVIDIA's assembler. Raises what they raise.

    Only the assembler knows registers and spills.
    """
    compiled = compiled_for(variant, capability)
    ptx = compiled.asm["ptx"]
    registers, spills = _assemble(ptx, capability)
    matrix = TENSOR_CORES.search(ptx)
    return Compiled(
        variant.name,
        capability,
        registers,
        spills,
        compiled.metadata.shared,
        variant.num_warps,
        variant.num_stages,
        matrix[1] if matrix else "",
    )


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Return (registers, bytes spilled) of a thread, from `ptxas -v`."""
    target = re.search(r"\.target (sm_\w+)", ptx)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        arch = target[1] if target else f"sm_{capability}"
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={arch}", file.name]
        said = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True)
    if said.returncode != 0:
        raise RuntimeError(f"ptxas: {said.stderr.strip()}")
    registers = re.search(r"Used (\d+) registers", said.stderr)
    stored = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said.stderr)
    if registers is None or stored is None:
        raise RuntimeError(f"ptxas says nothing of registers: {said.stderr.strip()}")
    return int(registers[1]), int(stored[1]) + int(stored[2])


def sources_hash() -> str:
    """Hash every variant and what each kernel does, and Triton's version.

    Comments, docstrings, and the file that a kernel is in change nothing.
    """
    digest = hashlib.sha256(triton.__version__.encode())
    modules = {variant.kernel.fn.__module__ for variant in variants()}
    functions = {
        function.fn.__qualname__: function.src
        for module in modules
        for function in vars(sys.modules[module]).values()
        if isinstance(function, triton.JITFunction)
    }
    for name in sorted(functions):
        tree = ast.parse(functions[name])
        (kernel,) = tree.body
        if isinstance(kernel, ast.FunctionDef) and ast.get_docstring(kernel) is not None:
            del kernel.body[0]
        digest.update(ast.unparse(tree).encode())
    for variant in variants():
        shape = (variant.types, variant.constants, variant.num_warps, variant.num_stages)
        digest.update(repr((variant.name, shape)).encode())
    return digest.hexdigest()[:16]


def table(results: Iterable[Compiled]) -> str:
    """Write a Markdown table: `registers / shared KiB` of each variant on each device."""
    lines = [
        "| kernel | warps × stages | " + " | ".join(f"sm_{c}" for c in SHARED_KIB) + " |",
        "|---|---|" + "---|" * len(SHARED_KIB),
    ]
    by_name: dict[str, dict[int, Compiled]] = {}
    for result in results:
        by_name.setdefault(result.variant, {})[result.capability] = result
    for name, row in by_name.items():
        any_of_them = next(iter(row.values()))
        cells = []
        for capability in SHARED_KIB:
            it = row.get(capability)
            if it is None:
                cells.append("–")
                continue
            spilled = f", spills {it.spill_bytes} B" if it.spill_bytes else ""
            matrix = f", {it.matrix}" if it.matrix else ""
            cells.append(f"{it.registers} / {it.shared_bytes / 1024:.1f}{matrix}{spilled}")
        shape = f"{any_of_them.num_warps} × {any_of_them.num_stages}"
        lines.append(f"| {name} | {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _compile_all_devices(variant: Variant) -> list[Compiled]:
    return [compile_variant(variant, c) for c in SHARED_KIB if c >= variant.since]


def _by_place(place: int) -> list[Compiled]:
    return _compile_all_devices(list(variants())[place])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    everything = list(variants())
    results: list[Compiled] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done, row in enumerate(pool.map(_by_place, range(len(everything))), 1):
            results += row
            print(f"{done}/{len(everything)} {row[0].variant}", file=sys.stderr)
    wants = {variant.name: variant.tensor_cores for variant in everything}
    faults = [fault for result in results for fault in result.faults(wants[result.variant])]
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "triton": triton.__version__,
        "sources": sources_hash(),
        "shared_kib": {str(capability): kib for capability, kib in SHARED_KIB.items()},
        "spills_allowed": SPILLS_ALLOWED,
        "compiled": [asdict(result) for result in results],
    }
    (options.out / "triton_aot.json").write_text(json.dumps(record, indent=1) + "\n")
    heading = (
        "Registers of a thread / shared memory of a program in KiB, matrix instruction, spills;\n"
        f"Triton {triton.__version__}. Made by `python -m engine.kernels.triton.compile_all`.\n\n"
    )
    (options.out / "triton_aot.md").write_text(heading + table(results) + "\n")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    run_command(main)
