"""Code that only starting has read is let go; nothing else is."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from engine.worker import host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's madvise")


def resident_code_kb() -> int:
    """What this process has of files' code, by the kernel's count."""
    total, is_code = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_code = " r-xp " in line and "/" in line
        elif is_code and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_code_is_dropped_and_runs_again():
    before = resident_code_kb()
    values = torch.arange(1000.0)
    assert host.drop_read_code() > 50 * 2**20  # torch's alone is more
    assert resident_code_kb() < before / 2
    assert float((values * 2).sum()) == 999_000.0
    assert sorted(re.findall(r"\d", "312")) == ["1", "2", "3"]


@pytest.mark.parametrize(
    "rights, inode, name", [("rw-p", 5, " /lib.so"), ("r--p", 5, " /lib.so"), ("r-xp", 0, "")]
)
def test_what_may_have_been_written_stays(tmp_path, rights, inode, name):
    """Pages of a file that were changed after it was mapped would be read anew without changes."""
    file = tmp_path / "lib.so"
    file.write_bytes(b"file" * 1024)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096, mmap.MAP_PRIVATE) as memory:
        memory[:4] = b"mine"
        own = next(
            line.split()[0]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(str(file))
        )
        told = tmp_path / "maps"
        told.write_text(f"{own} {rights} 00000000 fe:00 {inode}{name}\n")
        assert host.drop_read_code(told) == 0
        assert memory[:4] == b"mine"
        # The same with the one line that is dropped: so the address was right.
        told.write_text(f"{own} r-xp 00000000 fe:00 5 /lib.so\n")
        assert host.drop_read_code(told) == 4096
        assert memory[:4] == b"file"
