"""Each machine's results in a folder of its own."""

from __future__ import annotations

from benchmarks.machine_folder import RESULTS, machine_folder


def test_processor_and_kernels_name_the_folder():
    found = machine_folder("Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "avx512")
    assert found == RESULTS / "intel-core-i7-1165g7-2-80ghz-avx512"


def test_two_generations_of_one_name_are_two_machines():
    assert machine_folder("AMD EPYC", "avx2") != machine_folder("AMD EPYC", "avx512_bf16")
