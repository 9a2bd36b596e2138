"""Make the checkpoint of a model in a format once, and keep it in the folder of the peers.

Its name has a part of the hash of the weights that it was made from: a model that was trained again
gets new ones.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.formats import squeezellm
from benchmarks.formats.forms import AUTO_ROUND, FORMS, LLAMA, OURS
from benchmarks.peers.install import LOGS, PEERS_DIR, Peers, last_words
from engine.models.hub import find_model

ROOT = Path(__file__).resolve().parents[2]
MAKER = Path(__file__).with_name("maker.py")
MADE = PEERS_DIR / "models" / "formats"
GGUF_NAME = "model.gguf"
LONGEST_S = 1200


class ToolFailed(RuntimeError):
    """Report that a tool made nothing; the message has the end of its log."""


def checkpoint(peers: Peers, name: str, model: str) -> Path:
    """Return the folder of a model in a format. Raises `ToolFailed`."""
    source = find_model(model, None, None)
    target = _kept_as(model, source, name)
    if target.is_dir():
        return target
    MADE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MADE) as work:
        made = Path(work) / "made"
        if FORMS[name].tool == OURS:
            squeezellm.make(source, made, sparse=name.endswith("sparse"))
        elif FORMS[name].tool == LLAMA:
            made.mkdir()
            _llama_quantize(peers, name, _plain_gguf(peers, model, source), made / GGUF_NAME)
        else:
            command = [str(peers.tool_python(FORMS[name].tool)), str(MAKER), "make", name]
            _run(name, [*command, str(source), str(made)], peers.plain_environment)
            made = next(path.parent for path in Path(work).rglob("config.json"))
            for path in source.glob("tokenizer*"):
                if not (made / path.name).exists():
                    (made / path.name).write_bytes(path.read_bytes())
        made.rename(target)
    return target


def read_by_library(peers: Peers, name: str, folder: Path, numbers: Path) -> None:
    """Write what the format's own library reads from a checkpoint. Raises `ToolFailed`."""
    tool = FORMS[name].tool
    tool = AUTO_ROUND if tool == LLAMA else tool  # gguf is there, and what transformers needs
    python = sys.executable if tool == OURS else str(peers.tool_python(tool))
    command = [python, str(MAKER), "read", name, str(folder), str(numbers)]
    _run(name, command, peers.plain_environment)


def _kept_as(model: str, source: Path, name: str) -> Path:
    weights = (source / "model.safetensors").read_bytes()
    return MADE / f"{model}-{hashlib.sha256(weights).hexdigest()[:8]}-{name}"


def _plain_gguf(peers: Peers, model: str, source: Path) -> Path:
    """Return the model's own numbers as a GGUF file."""
    target = _kept_as(model, source, "float32.gguf")
    if not target.exists():
        half_done = target.with_suffix(".part")
        command = [sys.executable, "-m", "benchmarks.peers.convert", "--dtype", "float32"]
        path = os.pathsep.join([str(peers.llama_source / "gguf-py"), str(ROOT)])
        environment = {**peers.plain_environment, "PYTHONPATH": path}
        _run(LLAMA, [*command, str(source), str(half_done)], environment)
        half_done.rename(target)
    return target


def _llama_quantize(peers: Peers, name: str, plain: Path, target: Path) -> None:
    command = [str(peers.llama_quantize), str(plain), str(target), name.upper()]
    _run(name, command, peers.plain_environment)


def _run(name: str, command: list[str], environment: dict[str, str]) -> None:
    """Run a tool, offline and without a GPU. Raises `ToolFailed`."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"formats-{name}.log"
    with log.open("ab") as file:
        try:
            ran = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
                timeout=LONGEST_S,
            )
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"{name}: the tool took longer than {LONGEST_S} s") from None
    if ran.returncode:
        raise ToolFailed(f"{name}: the tool failed; {log} ends so:\n{last_words(log)}")
