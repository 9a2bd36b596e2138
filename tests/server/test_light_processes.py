"""Which modules each process imports, and which it must not: checked in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

POCKET = Path(__file__).resolve().parents[2] / "pocket" / "model"

SERVER = """
import json, sys
import engine.server.command, engine.server.lifecycle
from engine.config import EngineConfig
from engine.server.service import Service
from engine.text.chat_template import ChatTemplate
from engine.text.detokenizer import detokenizer_for
from engine.text.loading import load_text

config = EngineConfig(model=sys.argv[1])
Service(config)
tokenizer, defaults = load_text(config)
text = ChatTemplate(tokenizer).render([{"role": "user", "content": "What is a KV cache?"}])
ids = tokenizer.encode(text, add_special_tokens=False)
feed = detokenizer_for(tokenizer, ids, True).feed
assert ids and tokenizer.token(ids[0]).text and isinstance(feed(ids[1]), str)
"""

ENGINE = """
import json, sys
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.server.link.engine_process import load_worker
from engine.trace.recorder import Recorder

config = EngineConfig(model=sys.argv[1], num_gpu_blocks_override=64, device="cpu")
recorder = Recorder("steps")
executor = load_worker(config, recorder, lambda stage: None)
core = EngineCore(config, executor, recorder)
for number, params in enumerate([
    SamplingParams(temperature=0, max_tokens=4),
    SamplingParams(temperature=1, seed=1, top_p=0.9, max_tokens=4, logprobs=2, min_tokens=3),
]):
    core.add_request(CoreRequest(
        request_id=str(number), prompt_token_ids=[5, 6, 7], params=params, eos_token_ids=[1],
        arrival_ns=0,
    ))
drawn = 0
while core.has_work:
    drawn += sum(len(output.token_ids) for output in core.step())
assert drawn == 8, drawn
recorder.close()
"""

SAY = "\nprint(json.dumps(sorted(m for m in json.loads(sys.argv[2]) if m in sys.modules)))"


def imported(program: str, names: list[str], model: Path = POCKET) -> list[str]:
    """Which of some modules a fresh process has after a program."""
    command = [sys.executable, "-c", program + SAY, str(model), json.dumps(names)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_server_imports_neither_torch_nor_transformers():
    heavy = ["torch", "transformers", "numpy", "safetensors", "engine.worker", "engine.kernels"]
    heavy += ["huggingface_hub", "rich", "yaml"]
    assert imported(SERVER, [*heavy, "tokenizers"]) == ["tokenizers"]


@pytest.mark.slow
def test_the_engine_imports_of_transformers_nothing_for_a_native_model():
    heavy = ["transformers", "tokenizers", "fastapi", "uvicorn", "torch._dynamo", "torch._inductor"]
    heavy += ["triton", "sympy", "engine.models.hf_adapter", "engine.text"]
    assert imported(ENGINE, [*heavy, "torch"]) == ["torch"]
