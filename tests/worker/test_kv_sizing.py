"""The pool's size: arithmetic on given numbers, and the readings that it starts from."""

from __future__ import annotations

import os
import resource

import pytest

from engine.config import ConfigError, EngineConfig
from engine.worker import host
from engine.worker.memory.kv_sizing import GIB, KVMemory, KVSize, size_kv
from engine.worker.platforms.cpu import RESERVE, memory_for_pages

BLOCK_BYTES = 2**20


def size(budget=8 * GIB, model_len=2048, free=None, on_cpu=True, **options) -> KVSize:
    defaults = dict(block_size=16, max_num_seqs=64, swap_space=1.0)
    config = EngineConfig(**(defaults | options))
    free = budget if free is None else free
    return size_kv(config, BLOCK_BYTES, model_len, KVMemory(budget, "the test says", free), on_cpu)


def test_a_cpu_gives_four_gib_at_most():
    got = size()
    assert got.num_blocks == 4096 and got.num_host_blocks == 1024
    assert "the test says = 8.00 GiB" in got.why and "at most 4.00 GiB on a CPU" in got.why
    assert "4,096 blocks = 65,536 tokens" in got.why and "1,024 host blocks" in got.why


def test_a_gpu_gives_all_and_its_host_pool_is_elsewhere():
    got = size(on_cpu=False)
    assert got.num_blocks == 8192 and got.num_host_blocks == 1024


def test_gpus_with_a_share_of_each_block_share_the_host_pool():
    config = EngineConfig(max_num_seqs=64, swap_space=1.0)
    got = size_kv(config, BLOCK_BYTES, 2048, KVMemory(GIB, "of the least", GIB), False, 4)
    assert got.num_blocks == 1024 and got.num_host_blocks == 256
    assert "1,048,576 B on each of 4 devices for a block" in got.why


def test_swapping_comes_out_of_a_cpus_memory_a_quarter_at_most():
    got = size(budget=GIB)
    assert got.num_host_blocks == 256 and got.num_blocks == 768
    assert size(budget=GIB, preemption_mode="recompute").num_blocks == 1024


def test_no_more_than_the_seats_can_use():
    got = size(max_num_seqs=2)
    assert got.num_blocks == got.num_host_blocks == 2 * 128
    assert "2 sequences can use" in got.why


def test_what_the_user_fixes_is_what_it_is():
    assert size(num_gpu_blocks_override=7, max_model_len=112).num_blocks == 7
    assert size(kv_cache_memory_bytes=5 * GIB).num_blocks == 5 * 1024
    assert size(kv_cache_memory_bytes=5 * GIB, num_gpu_blocks_override=9).num_blocks == 9


def test_what_the_user_fixes_must_be_there():
    with pytest.raises(ConfigError, match=r"kv-cache-memory-bytes.*9\.00 GiB.*8\.00 GiB are free"):
        size(kv_cache_memory_bytes=9 * GIB)
    with pytest.raises(ConfigError, match="num-gpu-blocks-override is 9000"):
        size(num_gpu_blocks_override=9000)


def test_a_pool_below_the_context():
    got = size(num_gpu_blocks_override=10)
    assert got.max_model_len == 160 and "160 tokens" in got.warning and "2048" in got.warning
    with pytest.raises(ConfigError, match=r"--max-model-len is 161 tokens.*holds only 160"):
        size(num_gpu_blocks_override=10, max_model_len=161)
    exact = size(num_gpu_blocks_override=10, max_model_len=160)
    assert exact.max_model_len == 160 and not exact.warning


def test_more_than_the_models_positions_is_refused():
    with pytest.raises(ConfigError, match="4096, but the model has only 2048"):
        size(max_model_len=4096)


def test_no_memory_at_all():
    for budget in (BLOCK_BYTES // 2, -GIB):
        with pytest.raises(ConfigError, match="no memory for a single KV block"):
            size(budget=budget, on_cpu=False)


# ------------------------------------------------------------------------------ what is really free


@pytest.fixture
def meminfo(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24000000 kB\nMemAvailable:   8000000 kB\n")
    return path


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text + "\n")


def test_without_a_limit_the_kernels_estimate_counts(meminfo, tmp_path):
    free = host.free_memory(meminfo, tmp_path / "none")
    assert free == (8_000_000 * 1024, "available (MemAvailable)")
    write(tmp_path, memory_dot_max="max", memory_dot_current="5")
    assert host.free_memory(meminfo, tmp_path).num_bytes == 8_000_000 * 1024


def test_a_containers_limit_counts_without_its_cached_files(meminfo, tmp_path):
    write(
        tmp_path,
        memory_dot_max=str(2 * GIB),
        memory_dot_current=str(GIB),
        memory_dot_stat=f"anon 1\ninactive_file {GIB // 2}\nactive_file 7",
    )
    free = host.free_memory(meminfo, tmp_path)
    assert free == (2 * GIB - GIB // 2, "left below the container's memory limit")


def test_the_older_kind_of_limit(meminfo, tmp_path):
    write(
        tmp_path,
        memory__memory_dot_limit_in_bytes=str(3 * GIB),
        memory__memory_dot_usage_in_bytes=str(GIB),
        memory__memory_dot_stat="total_inactive_file 0",
    )
    assert host.free_memory(meminfo, tmp_path).num_bytes == 2 * GIB
    write(tmp_path, memory__memory_dot_limit_in_bytes=str(2**63 - 4096))
    assert host.free_memory(meminfo, tmp_path).num_bytes == 8_000_000 * 1024


def test_a_group_within_the_groups_counts_and_those_above_it(meminfo, tmp_path):
    own = tmp_path / "own"
    own.write_text("4:memory,cpu:/a/b\n2:cpuset:/x\n0::/c/d\n")
    here = (meminfo, tmp_path, tmp_path / "no status", own)
    assert host.free_memory(*here).num_bytes == 8_000_000 * 1024
    write(tmp_path, c__memory_dot_max=str(4 * GIB), c__memory_dot_current=str(GIB))
    assert host.free_memory(*here).num_bytes == 3 * GIB
    write(
        tmp_path,
        memory__a__b__memory_dot_limit_in_bytes=str(2 * GIB),
        memory__a__b__memory_dot_usage_in_bytes="0",
    )
    assert host.free_memory(*here).num_bytes == 2 * GIB
    own.write_text("0::/../outside\n")  # a group that a container doesn't see
    assert host.free_memory(*here).num_bytes == 8_000_000 * 1024


def test_a_processs_own_limit_counts_what_is_mapped(meminfo, tmp_path, monkeypatch):
    write(tmp_path, status="VmSize:\t  4194304 kB\nVmData:\t  1048576 kB")
    limits = {resource.RLIMIT_DATA: 3 * GIB, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    here = (meminfo, tmp_path / "none", tmp_path / "status")
    assert host.free_memory(*here) == (2 * GIB, "left below this process's limit (ulimit -d)")
    limits[resource.RLIMIT_AS] = 5 * GIB
    assert host.free_memory(*here) == (GIB, "left below this process's limit (ulimit -v)")
    limits[resource.RLIMIT_AS] = GIB
    assert host.free_memory(*here).num_bytes == 0
    assert host.free_memory(meminfo, tmp_path / "none", tmp_path / "no").num_bytes > 7 * GIB


def test_a_small_machines_pool_leaves_room_for_all_else():
    large = memory_for_pages(host.FreeMemory(16 * GIB, "free"), 0.9)
    assert (
        large.num_bytes == int(16 * GIB * 0.9)
        and large.why == "16.00 GiB free beside the weights × 0.90"
    )
    small = memory_for_pages(host.FreeMemory(GIB // 2, "free"), 0.9)
    assert small.num_bytes == GIB // 2 - RESERVE and "128.0 MiB left for all else" in small.why
    tiny = memory_for_pages(host.FreeMemory(GIB // 8, "free"), 0.9)
    assert tiny.num_bytes == GIB // 16
    modest = memory_for_pages(host.FreeMemory(GIB // 2, "free"), 0.3)  # as the user says
    assert modest.num_bytes == int(GIB // 2 * 0.3)


def test_a_cpu_quota_caps_the_cores(tmp_path):
    every = host.physical_cores(tmp_path)
    assert 1 <= every <= len(os.sched_getaffinity(0))
    write(tmp_path, cpu_dot_max="50000 100000")
    assert host.physical_cores(tmp_path) == 1
    write(tmp_path, cpu_dot_max="max 100000")
    assert host.physical_cores(tmp_path) == every
