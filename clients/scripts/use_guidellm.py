"""Use guidellm: a short benchmark of made prompts, over completions and over chat."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asked import KEY, MODEL, SERVER, TOKENIZER, did

program = str(Path(sys.executable).with_name("guidellm"))
report = Path(tempfile.mkdtemp()) / "report.json"
for path in ("/v1/completions", "/v1/chat/completions"):
    backend = f"kind=openai_http,target={SERVER},model={MODEL},api_key={KEY},request_format={path}"
    words = [
        "run", "--backend", backend, "--profile", "kind=synchronous",
        "--constraint", "kind=max_requests,count=4",
        "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}",
        "--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
        "--output", f"kind=json,path={report}", "--disable-progress",
    ]  # fmt: skip
    done = subprocess.run(
        [program, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=200, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
    requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
    assert len(requests["successful"]) == 4 and not requests["errored"], requests["errored"]
    did(f"4 requests to {path}, none failed")
