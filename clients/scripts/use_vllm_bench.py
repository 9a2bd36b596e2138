"""vLLM's `vllm bench serve`, over completions and over chat."""

import os
import re
import subprocess
import sys
from pathlib import Path

from asked import KEY, MODEL, SERVER, TOKENIZER, did

program = str(Path(sys.executable).with_name("vllm"))
for backend, endpoint in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
    words = [
        "bench", "serve", "--backend", backend, "--base-url", SERVER, "--endpoint", endpoint,
        "--model", MODEL, "--tokenizer", TOKENIZER, "--dataset-name", "random", "--num-prompts",
        "8", "--random-input-len", "16", "--random-output-len", "8", "--ignore-eos",
        "--max-concurrency", "4",
    ]  # fmt: skip
    done = subprocess.run(
        [program, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=300, env={**os.environ, "OPENAI_API_KEY": KEY},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
    assert re.search(r"Successful requests:\s+8\b", done.stdout)
    did(f"8 requests with --backend {backend}")
