"""A start after `engine.prepare` compiles nothing and asks transformers nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import prepare
from engine.kernels.cpu import build, choice, rank_ops

ROOT = Path(__file__).resolve().parents[2]


def test_each_variant_is_compiled_and_the_products_that_choose_one(monkeypatch):
    made = []
    monkeypatch.setattr(
        build, "compiled", lambda variant, sources=(): made.append((variant, sources))
    )
    monkeypatch.setattr(prepare.platform, "machine", lambda: "x86_64")
    x86 = [variant for variant in build.VARIANTS if variant != "neon"]
    assert prepare.compile_kernels() == x86
    assert {variant for variant, _ in made} == set(x86)
    probes = {variant for variant, sources in made if sources == choice.PROBE}
    assert probes == set(x86) - {"portable"}
    made.clear()
    monkeypatch.setattr(prepare.platform, "machine", lambda: "aarch64")
    assert prepare.compile_kernels() == ["neon", "portable"]  # no choice, so nothing to measure
    ranks = ("portable", rank_ops.SOURCES)  # which any CPU runs
    assert made == [("neon", ()), ("portable", ()), ranks]
    made.clear()
    monkeypatch.setattr(prepare.platform, "machine", lambda: "riscv64")
    assert prepare.compile_kernels() == ["portable"] and made == [("portable", ()), ranks]


START = """
import subprocess, sys
from engine.config import EngineConfig
from engine.models.description import read_config
from engine.models.hub import find_model
from engine.text.loading import load_text

def refuse(*_, **__):
    raise SystemExit("a process was started")

subprocess.run = refuse
config = EngineConfig(model=sys.argv[1])
load_text(config)
read_config(find_model(config.model, None, ""))
"""


@pytest.mark.slow
def test_a_start_finds_what_was_asked_ahead(tmp_path, monkeypatch):
    """From another folder, and by the name of the folder as well as by the short one."""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = "from engine.prepare import read_model; read_model('pocket')"
    subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, check=True, timeout=120)
    for model, folder in (("pocket", "/"), ("pocket/model", ROOT)):
        command = [sys.executable, "-c", START, model]
        subprocess.run(command, env=env, cwd=folder, check=True, timeout=120)
