"""512 MB are enough: `make demo`'s questions are answered below limits that the kernel holds."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 512 * 2**20
CGROUPS = {
    "memory.max": Path("/sys/fs/cgroup"),
    "memory.limit_in_bytes": Path("/sys/fs/cgroup/memory"),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux holds these limits"),
]


def demo(before) -> None:
    """Run the demo; it and its server are below the limit that `before` sets."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--once"],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        preexec_fn=before,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    told = result.stdout  # a table of questions and answers, and the story of the requests
    assert "capital of France?" in told and "req-7" in told and "exited with code 0" in told


def test_each_process_may_have_512_mb():
    demo(lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)))


@pytest.mark.full
def test_all_processes_together_have_512_mb():
    """As on the smallest instance of a cloud. Only root may make such a group."""
    try:
        group, name = new_group()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        demo(lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
        if name == "memory.max":
            assert "oom_kill 0" in (group / "memory.events").read_text()
        else:
            assert "oom_kill 0" in (group / "memory.oom_control").read_text()
    finally:
        group.rmdir()


def new_group() -> tuple[Path, str]:
    """Make a cgroup with the limit; returns also the file that says so. Raises OSError."""
    for name, above in CGROUPS.items():
        group = above / f"glasshouse-test-{os.getpid()}"
        if not (above / "cgroup.procs").exists():  # a folder of the other version, or none
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(LIMIT))
            return group, name
        except OSError:
            group.rmdir()
    raise OSError("neither version's folder can be written")
