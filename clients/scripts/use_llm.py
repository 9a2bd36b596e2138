"""Use simonw/llm: its command, with and without streaming, from a file of models."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asked import BASE, KEY, MODEL, did

folder = Path(tempfile.mkdtemp())
model = {"model_id": "house", "model_name": MODEL, "api_base": BASE, "api_key_name": "house"}
completion = {**model, "model_id": "house-plain", "completion": True}
(folder / "extra-openai-models.yaml").write_text(json.dumps([model, completion]))  # JSON is YAML
(folder / "keys.json").write_text(json.dumps({"house": KEY}))
program = str(Path(sys.executable).with_name("llm"))


def llm(*words: str) -> str:
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "LLM_USER_PATH": str(folder)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


options = ("-o", "temperature", "0", "-o", "max_tokens", "8")
streamed = llm("-m", "house", "Hello! What is a KV cache?", *options)
assert streamed
did("a prompt, streamed")
assert llm("-m", "house", "--no-stream", "Hello! What is a KV cache?", *options) == streamed
did("and whole")
assert llm("-m", "house-plain", "Once", *options)
did("a completion model")
logged = json.loads(llm("logs", "--json", "-n", "3", "-m", "house"))
assert len(logged) == 2 and all(one["input_tokens"] and one["output_tokens"] for one in logged)
did("tokens in its log")
