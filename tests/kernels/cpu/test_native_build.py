"""Building the kernels: the cache, two builders at once, and machines that can't build."""

from __future__ import annotations

import errno
import os
import platform
import stat
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch

from engine.config import EngineConfig
from engine.kernels import TORCH, cpu
from engine.kernels.cpu import build, build_folder
from engine.trace.events import EngineWarning
from engine.trace.recorder import Recorder
from engine.worker.platforms import platform_for
from tests.support.cases import mostly


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and nothing remembered from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget = (build._compiler, cpu._load, build_folder._chosen)
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
    unwritable(fresh, monkeypatch)
    (fresh / "tmp").chmod(0o777)  # nor is there a safe folder: anybody could replace it
    assert build.load("portable").glasshouse_linear
    assert not build.is_built("portable")
    said = build_folder.said_of("any")
    assert "each start compiles" in said and str(fresh / "file") in said


@needs_compiler
def test_where_the_cache_is_unwritable_a_private_folder_keeps_it(fresh, small, monkeypatch):
    unwritable(fresh, monkeypatch)
    assert not build.is_built("portable")
    build.load("portable")
    [built] = (fresh / "tmp").rglob("cpu-*.so")
    assert built.parent.stat().st_mode & 0o777 == 0o700
    assert build.is_built("portable")
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    build.load("portable")
    said = build_folder.said_of(built.name)
    assert str(built.parent) in said and str(fresh / "file" / "glasshouse") in said
    assert "Not a directory" in said and "Set XDG_CACHE_HOME" in said


@pytest.mark.parametrize("prepared", ["for all", "a link", "another's", "a file", "in another's"])
def test_a_folder_that_others_may_change_is_not_used(fresh, monkeypatch, prepared):
    unwritable(fresh, monkeypatch)
    folder = fresh / "tmp" / f"glasshouse-{os.getuid()}"
    if prepared == "for all":
        folder.mkdir()
        folder.chmod(0o770)
    elif prepared == "a link":
        (fresh / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(fresh / "elsewhere")
    elif prepared == "another's":
        folder.mkdir(mode=0o700)
        real = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: real + 1)
        folder.rename(fresh / "tmp" / f"glasshouse-{real + 1}")
    elif prepared == "in another's":  # who owns the folder above can put another in its place
        real_stat = os.stat

        def stat_of_another(path, **how):
            found = list(real_stat(path, **how))
            found[stat.ST_UID] = os.getuid() + 1
            return os.stat_result(found)

        monkeypatch.setattr(os, "stat", stat_of_another)
    else:
        folder.touch()
    path, reason = build_folder.folder_to_build_in()
    assert path == fresh / "file" / "glasshouse" and reason


def test_what_a_read_only_cache_has_is_used_without_a_word(fresh, monkeypatch):
    cache = fresh / "glasshouse"
    cache.mkdir()
    (cache / "kept.so").touch()
    monkeypatch.setattr(build_folder.tempfile, "TemporaryFile", refusing)
    monkeypatch.setattr(tempfile, "tempdir", str(fresh))
    assert build_folder.place_of("kept.so") == cache / "kept.so"
    assert build_folder.said_of("kept.so") == ""
    assert build_folder.place_of("new.so").parent == fresh / f"glasshouse-{os.getuid()}"
    assert "Read-only file system" in build_folder.said_of("new.so")


@needs_compiler
def test_the_start_says_that_kernels_are_not_kept(fresh, monkeypatch):
    with monkeypatch.context() as patch:
        unwritable(fresh, patch)
        patch.setattr(cpu, "native", lambda: SimpleNamespace(variant="portable", bind_threads=None))
        build_folder._chosen.cache_clear()
        recorder, seen = Recorder("steps"), []
        recorder.subscribe(seen.extend)
        threads = torch.get_num_threads()
        platform_for(torch.device("cpu")).prepare(EngineConfig(cpu_threads=threads), recorder)
        recorder.close()
    [warning] = [event.message for event in seen if isinstance(event, EngineWarning)]
    assert "kernels can't be kept in" in warning and "they are kept in" in warning


def refusing(**_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def unwritable(folder, monkeypatch) -> None:
    """Let the cache be where no folder can be made, and temporary files in a folder here."""
    (folder / "file").touch()
    (folder / "tmp").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))


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
