"""Help and refusals of options come at once: no command imports torch for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.quantize.format_names import GGUF, SAFETENSORS
from engine.quantize.gguf_file import TYPES
from engine.quantize.packing import PACKINGS
from glasshouse.command import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
IMPOSSIBLE = [
    ["--tensor-parallel-size", "9"],
    ["--tensor-parallel-size", "7"],
    ["--quantized-activations"],
    ["--quantization", "gptq"],
    ["--max-model-len", "1000000"],
]
"""What pocket can't take."""
REFUSED: dict[str, list[list[str]]] = {
    "serve": [["--max-num-seqs", "0"], ["--nonsense"], *IMPOSSIBLE],
    "class": [["--port", "-1"]],
    "chat": [["--nonsense"]],
    "lab": [
        ["--only", "nonsense"],
        ["--model", "/no/such"],
        ["--scheduler-cls", "no:Such"],
        ["--report", "/no/such/lab.html"],
    ],
    "plan": [["/no/such"], ["--nonsense"]],
    "quantize": [
        ["pocket", "--format", "nonsense", "--out", "out"],
        ["pocket", "--format", "gptq", "--bits", "5", "--out", "out"],
        ["pocket", "--format", "gptq", "--out", str(ROOT)],
        ["/no/such", "--format", "q4_0", "--out", "out"],
    ],
    "trace": [["nonsense"], ["replay", "/no/such"]],
    "whatif": [["/no/such"]],
    "bench": [["--shapes", "nonsense"]],
}
"""Words that each program refuses."""

PROGRAM = """
import contextlib, importlib, io, json, sys

sys.modules.update(torch=None, transformers=None, triton=None)
from glasshouse.command import run

def code(*words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return run(words)
        except SystemExit as end:
            return end.code

for name, refused in json.loads(sys.argv[1]).items():
    assert code(name, "--help") == 0, name
    for words in refused:
        assert code(name, *words) == 2, (name, words)
for module in json.loads(sys.argv[2]):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            importlib.import_module(module).main(["--help"])
        except SystemExit as end:
            assert not end.code, module
"""


def test_help_and_refusals_need_no_torch():
    assert REFUSED.keys() == PROGRAMS.keys()
    scripts = ["koyeb_api_server", "koyeb_vllm_setup", "test_client"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(REFUSED), json.dumps(scripts)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("named", "made"), [(SAFETENSORS, PACKINGS), (GGUF, TYPES)])
def test_the_formats_named_are_those_that_are_written(named, made):
    assert {name: one.bits for name, one in made.items()} == named
