"""The variant is chosen by measurement, once, and can be forced."""

from __future__ import annotations

import json

import pytest

from engine.kernels import cpu
from engine.kernels.cpu import choice
from engine.kernels.cpu.build import BuildError, variants_here


@pytest.fixture
def several(monkeypatch, tmp_path):
    """A CPU that can run three variants, whose times are made up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(choice.FORCE, raising=False)
    variants = ("avx512", "avx2", "portable")
    monkeypatch.setattr(choice, "variants_here", lambda: variants)
    monkeypatch.setattr(choice, "library_path", lambda *_: tmp_path / "probe.so")
    times = {"avx512": [100.0, 90.0, 80.0], "avx2": [90.0, 80.0, 70.0]}
    measured = []

    def measure(candidates):
        measured.append(candidates)
        return times

    monkeypatch.setattr(choice, "measure", measure)
    return tmp_path, times, measured


def test_the_fastest_is_taken_and_measured_once(several):
    _, _, measured = several
    first = choice.choose()
    assert first.variant == "avx2"  # not the first by name
    assert first.why.endswith("128 rows by one thread: avx512 100 / 90 / 80; avx2 90 / 80 / 70")
    assert choice.choose() == first
    assert measured == [["avx512", "avx2"]]  # the portable one is only for those who have no other


def test_a_tie_goes_to_the_first_by_name(several):
    _, times, _ = several
    times["avx2"] = [99.0, 90.0, 79.0]
    assert choice.choose().variant == "avx512"


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"avx2": [1, 1, 1]}'])
def test_a_spoiled_file_is_measured_again(several, kept):
    folder, times, measured = several
    choice.choose()
    [file] = folder.glob("*.json")
    file.write_text(kept)
    assert choice.choose().variant == "avx2"
    assert json.loads(file.read_text()) == times
    assert len(measured) == 2


def test_whether_the_first_call_will_compile_is_known_before(several, monkeypatch):
    _, _, measured = several
    built = set()
    monkeypatch.delenv("GLASSHOUSE_NATIVE", raising=False)
    monkeypatch.setattr(cpu, "is_built", lambda variant: variant in built)
    assert cpu.must_compile() and not measured  # asking compiles and measures nothing
    choice.choose()
    assert cpu.must_compile()
    built.add("avx2")
    assert not cpu.must_compile()
    monkeypatch.setenv(choice.FORCE, "portable")
    assert cpu.must_compile()
    monkeypatch.setenv("GLASSHOUSE_NATIVE", "0")
    assert not cpu.must_compile()


def test_a_name_decides(several, monkeypatch):
    monkeypatch.setenv(choice.FORCE, "portable")
    assert choice.choose() == ("portable", f"as {choice.FORCE} says")
    for name, said in (("amx", "not for this CPU"), ("sse2", "unknown")):
        monkeypatch.setenv(choice.FORCE, name)
        with pytest.raises(BuildError, match=f"{name} is {said}; choose one of avx512"):
            choice.choose()


@pytest.mark.skipif(len(variants_here()) < 3, reason="this CPU runs one variant")
def test_the_products_themselves_are_timed():
    candidates = [name for name in variants_here() if name != "portable"]
    times = choice.measure(candidates)
    assert set(times) == set(candidates)
    assert all(len(us) == len(choice.ROWS) and min(us) > 0 for us in times.values())
