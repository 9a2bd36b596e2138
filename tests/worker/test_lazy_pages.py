"""Pages cost memory when they are written: measured in a process of its own, as the engine sets it
up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import torch
from pathlib import Path
from engine.kernels.batch import LayerKV
from engine.worker import host
from engine.worker.memory.kv_cache import KVCache

def anonymous():
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024

host.keep_freed_memory()
spoilt = [torch.ones(2**20) for _ in range(8)]  # used memory, which the C library now keeps
del spoilt
before = anonymous()
cache = KVCache([LayerKV(2, 64)] * 3, 8192, 4096, 16, torch.bfloat16, torch.device("cpu"))
made = anonymous()
held = sum(pages.nbytes for layer in cache.layers for pages in (layer.k, layer.v)) / 2**20
with torch.inference_mode():
    zeros = all(not pages[::512].any() for layer in cache.layers for pages in (layer.k, layer.v))
    read = anonymous()
    for layer in cache.layers:
        layer.k[:1024] = 1
        layer.v[:1024] = 1
written = anonymous()
print(json.dumps({"held": held, "zeros": zeros, "made": made - before, "read": read - made,
                  "written": written - read}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_cost_memory_when_written_and_not_when_made():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    mib = json.loads(result.stdout)
    assert mib["held"] == 192.0 and mib["zeros"]
    assert mib["made"] < 4 and mib["read"] < 4, mib
    assert 24 <= mib["written"] < 40, mib  # an eighth of the pages
