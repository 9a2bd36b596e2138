"""What `make gpu` makes of its results; the path to them is in triton/test_gpu_dry_run.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config

pytest.importorskip("triton")

from benchmarks.gpu import memcheck, report, several_gpus, speed
from benchmarks.gpu.attention_speed import faster_from


def test_the_workload_is_the_known_one():
    jobs = speed.make_jobs(Qwen3Config().vocab_size, 256, (100, 1024), (100, 1024))
    assert sum(job.num_output for job in jobs) == 133_966


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({128: (1, 2), 512: (3, 2), 2048: (9, 5)}, 512),
        ({128: (3, 2), 512: (1, 2), 2048: (9, 5)}, 2048),  # not faster in between
        ({128: (3, 2), 512: (3, 2), 2048: (4, 5)}, None),
    ],
)
def test_from_which_length_on_sdpa_is_faster(times, expected):
    rows = [{"tokens": n, "triton_us": a, "torch_us": b} for n, (a, b) in times.items()]
    assert faster_from(rows) == expected


# ----------------------------------------------------------------------------------------- memcheck


def fake_tool(tmp_path, says: str, status: int) -> str:
    """A "compute-sanitizer" that notes what it was given, and ends as it is told."""
    path = tmp_path / "compute-sanitizer"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"open({str(tmp_path / 'given')!r}, 'w').write(' '.join(sys.argv[1:]) + '\\n'"
        " + os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'])\n"
        f"print({says!r})\nsys.exit({status})\n"
    )
    path.chmod(0o755)
    return str(path)


def test_memcheck_counts_errors(tmp_path):
    tool = fake_tool(tmp_path, "========= ERROR SUMMARY: 3 errors", memcheck.FAULTY)
    found = memcheck.memcheck(tool, has_device=True, command=("python", "-m"))
    assert (found["ran"], found["errors"]) == (True, 3)
    given, environment = (tmp_path / "given").read_text().splitlines()
    assert given.startswith("--tool memcheck")
    assert "python -m benchmarks.gpu.parts kernels --few" in given
    assert environment == "1"
    assert report.faults({"memcheck": [found]}) == [found]


def test_memcheck_that_could_not_run_says_why(tmp_path):
    tool = fake_tool(tmp_path, "Unable to find the device", 1)
    found = memcheck.memcheck(tool, has_device=True)
    assert found == {"ran": False, "why": "exit status 1: Unable to find the device"}
    assert "CUDA toolkit" in memcheck.memcheck(None, True)["why"]
    assert "no device" in memcheck.memcheck(tool, False)["why"]
    assert report.faults({"memcheck": [found]}) == []


def test_memcheck_that_takes_too_long_says_so(tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    tool.chmod(0o755)
    found = memcheck.memcheck(str(tool), has_device=True, limit_s=0.2)
    assert not found["ran"] and "not done after" in found["why"]


def test_the_tool_is_found_in_cuda_home(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    tool = fake_tool(tmp_path / "bin", "", 0)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert memcheck.find_tool() == tool


# -------------------------------------------------------------------------------------------- page


def test_what_is_wrong_is_found():
    good = {"error": 0.0, "allowed": 0.0}
    bad = [{"error": 0.1, "allowed": 0.01}, {"error": float("nan"), "allowed": 1.0}]
    record = {
        "kernels": [good, *bad],
        "parity": [{"prompts": 2, "equal": 2}, {"prompts": 2, "equal": 1}],
        "bf16_logits": [good, {"error": 0.03, "allowed": 0.02}],
    }
    assert len(report.faults(record)) == 4


def test_several_gpus_have_their_lines_or_say_why_not():
    card = {"device": "x", "torch": "2", "triton": "3", "cuda": "13", "date": "d", "parts": {}}
    card |= {"limits": {"copy_gb_s": 1.0, "matrix_tflop_s": 1.0}, "dry_run": False}
    [missing] = several_gpus.tensor_parallel(torch.device("cuda"), Path(), [], False)
    assert several_gpus.sizes(1) == [] and several_gpus.sizes(7) == [2, 4]
    page = report.markdown({**card, "tensor_parallel": [missing]})
    assert "tensor parallel: not run, this machine has 0 GPUs, and it takes two" in page
    same = {"ran": True, "gpus": 2, "prompts": 3, "equal": 2}
    record = {
        "tensor_parallel": [
            {**same, "model": "llama"},
            {
                **same, "equal": 3, "shape": "s", "requests": 64,
                "tokens_per_s": 1234.5, "decode_step_us": 2000.0, "told_s": 0.25,
            },
        ],
    }  # fmt: skip
    assert report.faults(record) == record["tensor_parallel"][:1]
    page = report.markdown({**card, **record})
    assert "llama on 2 GPUs, fp32, greedy: 2 of 3 prompts" in page
    assert "64 requests: 1,234 tokens/s, a decode step 2,000 µs" in page and "0.25 s" in page


def test_a_line_for_every_row_of_the_table_and_whether_it_was_reached():
    case = {
        "shape": "qwen3-0.6b",
        "requests": 256,
        "wanted": 0.6,
        "share_of_limit": 0.7,
        "tokens_per_s": 21_000.0,
        "computing_share": 0.9,
        "p50_s": 1,
        "p95_s": 2,
        "p99_s": 3,
    }
    peer = {"shape": "opt-125m", "requests": 32, "ran": True, "tokens_per_s": 10.0}
    record = {
        "device": "NVIDIA H200",
        "limits": {"copy_gb_s": 4200.0},
        "speed": [case, {**case, "shape": "opt-125m", "wanted": None}],
        "decode_attention": [
            {"rows": 256, "context": 1024, "cache": "float16", "us": 9.0, "share_of_limit": 0.79}
        ],
        "record_cost": [{"shape": "x", "requests": 1, "cost_of_steps": 0.02, "cost_of_off": 0.004}],
        "peers": [
            {**peer, "system": "Glasshouse"},
            {**peer, "system": "transformers, one by one", "engine_is": 7.3},
            {**peer, "system": "of 4 requests", "requests": 4, "engine_is": 755.0},
            {**peer, "system": "transformers, continuous batching", "engine_is": 2.9},
            {**peer, "system": "transformers, static 8", "ran": False, "why": "no kernels"},
        ],
    }
    found = list(report.lines(record))
    assert [line.good for line in found] == [
        *(True, False, None),  # 60 % of the limit; 22,000 tokens/s on an H200; nothing wanted
        False,  # 80 % of bandwidth
        *(None, None, False, None),  # ours; 7.3 and 2.9 times transformers; one that could not run
        *(True, False),  # 2 % and 0.3 %
    ]
    assert "no kernels" in found[7].found
    assert "61% of the datasheet's 4.8 TB/s" in found[0].found
