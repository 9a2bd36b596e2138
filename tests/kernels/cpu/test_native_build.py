"""Building the kernels: the cache, two builders at once, and machines that can't build."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from engine.kernels import TORCH, cpu
from engine.kernels.cpu import build
from tests.support.cases import mostly


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and nothing remembered from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget = (build._compiler, cpu._load)
    for remembered in forget:
        remembered.cache_clear()
    yield tmp_path
    for remembered in forget:
        remembered.cache_clear()


def has_compiler() -> bool:
    try:
        build._compiler()
    except build.BuildError:
        return False
    return True


pytestmark = pytest.mark.slow
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler here")


@pytest.fixture
def small(monkeypatch):
    """Only the smallest source, so that a build takes a second."""
    monkeypatch.setattr(build, "SOURCES", ("linear.cpp",))
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))


@needs_compiler
def test_second_load_builds_nothing(fresh, small, monkeypatch):
    build.load("portable")
    [built] = fresh.rglob("*.so")
    before = built.stat().st_mtime_ns
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    build.load("portable")
    assert [*fresh.rglob("*")] == [built.parent, built]  # no temporary file is left
    assert built.stat().st_mtime_ns == before


DAMAGE = {
    "half": lambda data: data[: len(data) // 2],  # its pages beyond the end: SIGBUS at every start
    "no last byte": lambda data: data[:-1],
    "no hash": lambda data: data[:-32],  # whole, but by somebody who wrote none
    "nothing": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),  # a crash before the disk had them
    "one bit": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
}


@needs_compiler
@pytest.mark.parametrize("damage", mostly(list(DAMAGE), "half", "one bit"))
def test_a_damaged_library_is_built_again(fresh, small, damage):
    path = build._build("portable", build.SOURCES, build.library_path("portable", build.SOURCES))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert not build._is_whole(path)
    # in a process of its own: a library with pages beyond its end would take this one along
    code = (
        "from engine.kernels.cpu import build;"
        "build.SOURCES = ('linear.cpp',); build.FLAGS = ('-O0', *build.FLAGS[1:]);"
        "build.load('portable').glasshouse_linear"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    assert build._is_whole(path) and [*fresh.rglob("*.so")] == [path]


@needs_compiler
def test_flags_and_sources_name_the_file(fresh, small, monkeypatch):
    first = build.library_path("portable", build.SOURCES)
    assert build.library_path("avx2", build.SOURCES).name != first.name.replace("portable", "avx2")
    monkeypatch.setattr(build, "HEADERS", ())
    assert build.library_path("portable", build.SOURCES) != first


@needs_compiler
@pytest.mark.skipif(not build.cpu_flags(), reason="this compiler makes code for other CPUs")
@pytest.mark.parametrize(
    "variant", sorted(set(build.variants_of(platform.machine())) - set(build.variants_here()))
)
def test_a_variant_for_other_cpus_compiles_too(fresh, monkeypatch, variant):
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:], "-Werror=all"))
    assert build._build(variant, build.SOURCES, build.library_path(variant, build.SOURCES)).exists()


@needs_compiler
def test_two_processes_build_at_once(fresh):
    code = (
        "from engine.kernels.cpu import build;"
        "build.SOURCES = ('linear.cpp',); build.FLAGS = ('-O0', *build.FLAGS[1:]);"
        "build.load('portable').glasshouse_linear"
    )
    builders = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [builder.wait(timeout=120) for builder in builders] == [0, 0]
    assert len([*fresh.rglob("*.so")]) == 1


@needs_compiler
def test_unwritable_cache_still_builds(fresh, small, monkeypatch):
    (fresh / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))  # no folder can be made in it
    assert build.load("portable").glasshouse_linear


@needs_compiler
def test_source_that_does_not_compile(fresh, small, monkeypatch):
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DEXPORT=nonsense", "-Werror"))
    with pytest.raises(build.BuildError, match="could not compile"):
        build.load("portable")
    assert not [*fresh.rglob("*.so")]


def test_without_a_compiler_torch_computes(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not cpu.available()
    assert cpu.native() is None
    assert "install g++" in cpu.why()


def test_it_can_be_turned_off(fresh, monkeypatch):
    monkeypatch.setenv("GLASSHOUSE_NATIVE", "0")
    assert not cpu.available()
    assert "GLASSHOUSE_NATIVE=0" in cpu.why()


def test_turned_off_the_models_compute_in_torch(tmp_path):
    code = (
        "import torch; from engine.kernels import TORCH, kernels_for;"
        "assert kernels_for(torch.device('cpu')) is TORCH"
    )
    environment = {"GLASSHOUSE_NATIVE": "0", "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    assert TORCH.name == "torch"
