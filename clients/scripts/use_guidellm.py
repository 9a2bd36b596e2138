"""guidellm: a short benchmark of made prompts."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asked import KEY, SERVER, TOKENIZER, did

program = str(Path(sys.executable).with_name("guidellm"))
report = Path(tempfile.mkdtemp()) / "report.json"
words = [
    "benchmark", "run", "--target", SERVER, "--backend-kwargs", json.dumps({"api_key": KEY}),
    "--profile", "synchronous", "--max-requests", "4", "--processor", TOKENIZER,
    "--data", json.dumps({"prompt_tokens": 16, "output_tokens": 8}),
    "--output-path", str(report),
]  # fmt: skip
done = subprocess.run(
    [program, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    env={**os.environ, "COLUMNS": "200"},
)  # fmt: skip
print(done.stdout)
assert done.returncode == 0
requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
assert len(requests["successful"]) == 4 and not requests["errored"], requests["errored"]
did("4 requests, one after another, none failed")
