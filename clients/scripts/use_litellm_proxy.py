"""Use litellm's proxy before this server, whose deployments must not go into cool-down."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from asked import BASE, CALL, HELLO, KEY, MODEL, SCRIPTED, SERVER, did

MASTER = "sk-master"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(url: str, path: str, body: dict | None = None) -> tuple[int, str]:
    request = urllib.request.Request(
        url + path,
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {MASTER}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def started(url: str, process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return ask(url, "/health/liveliness")[0] == 200
        except OSError:
            time.sleep(0.5)
    return False


def calls(answer: dict) -> list[tuple[str, dict]]:
    """Return the calls of an answer of either API: names and arguments."""
    items = answer.get("output") or answer["content"]
    return [
        (item["name"], item.get("input") or json.loads(item["arguments"]))
        for item in items
        if item["type"] in ("function_call", "tool_use")
    ]


def arguments(stream: str) -> str:
    """Return what a stream of either API says of a call's arguments, joined."""
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    pieces = []
    for event in map(json.loads, lines):
        if event["type"] == "response.function_call_arguments.delta":
            pieces.append(event["delta"])
        elif event["type"] == "content_block_delta":
            pieces.append(event["delta"].get("partial_json", ""))
    return "".join(pieces)


folder = Path(tempfile.mkdtemp())
models = [
    {
        "model_name": name,
        "litellm_params": {"model": f"{way}/{MODEL}", "api_base": base, "api_key": KEY},
    }
    for name, way, base in (
        ("openai-way", "openai", BASE),
        ("vllm-way", "hosted_vllm", BASE),
        ("anthropic-way", "anthropic", SERVER),
        ("both", "openai", BASE),  # only where there are several is one of them left alone
        ("both", "hosted_vllm", BASE),
        ("openai-tools", "openai", f"{SCRIPTED}/v1"),
        ("vllm-tools", "hosted_vllm", f"{SCRIPTED}/v1"),
        ("anthropic-tools", "anthropic", SCRIPTED),
    )
]
settings = {
    "model_list": models,
    "router_settings": {"allowed_fails": 0, "cooldown_time": 600, "num_retries": 0},
    "general_settings": {"master_key": MASTER},
}
(folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
port = free_port()
url = f"http://127.0.0.1:{port}"
program = Path(sys.executable).with_name("litellm")
words = [str(program), "--config", str(folder / "config.yaml"), "--port", str(port)]
with (folder / "log").open("wb") as log:
    process = subprocess.Popen(
        [*words, "--host", "127.0.0.1"], stdout=log, stderr=log,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )  # fmt: skip
try:
    assert started(url, process), (folder / "log").read_text()[-2000:]

    def chat(name: str, **fields) -> tuple[int, str]:
        asked = {"model": name, "messages": HELLO, "max_tokens": 8, "temperature": 0, **fields}
        return ask(url, "/v1/chat/completions", asked)

    names = sorted({model["model_name"] for model in models})
    for name in names:
        status, text = chat(name)
        assert status == 200 and json.loads(text)["choices"][0]["message"]["content"], text
        status, text = chat(name, stream=True)
        assert status == 200 and text.rstrip().endswith("data: [DONE]"), text
    did("chat and streams through its three providers")

    health = json.loads(ask(url, "/health")[1])
    assert health["healthy_count"] == len(models) and not health["unhealthy_endpoints"], health
    did("its own health check")

    said = [{"role": "user", "content": f"SAY:{CALL}"}]
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    spoken = {"name": "weather", "description": "Tell the weather."}
    apis = (
        ("/v1/responses", {"input": said, "max_output_tokens": 200},
         [{"type": "function", **spoken, "parameters": schema}], "response.completed"),
        ("/v1/messages", {"messages": said, "max_tokens": 200},
         [{**spoken, "input_schema": schema}], "message_stop"),
    )  # fmt: skip
    for path, body, tools, last in apis:
        for name in ("openai-tools", "vllm-tools", "anthropic-tools"):
            fields = {"model": name, **body, "tools": tools}
            status, text = ask(url, path, fields)
            assert status == 200 and calls(json.loads(text)) == [("weather", {"city": "Zurich"})], (
                text
            )
            status, text = ask(url, path, {**fields, "stream": True})
            assert status == 200 and last in text, text
            assert json.loads(arguments(text)) == {"city": "Zurich"}, text
        did(f"{path} with a tool, whole and streamed, through its three providers")

    # What this server doesn't do is reported as the request's fault, and no reason to avoid the
    # server.
    others = (
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["a", "b"]}),
        ("/v1/audio/speech", {"input": "a", "voice": "b"}),
        ("/v1/images/generations", {"prompt": "a"}),
    )
    for name in names:
        for path, body in others:
            status, text = ask(url, path, {"model": name, **body})
            print(name, path, status, text[:200], flush=True)
            status, text = chat(name)
            assert status == 200, f"after {path} {name} is left alone: {text}"
    did("chat goes on after requests for what is not served")

    status, text = chat(names[0], temperature=-1)
    assert 400 <= status < 500, text
    assert chat(names[0])[0] == 200
    did("and after a bad request")
finally:
    process.terminate()
    process.wait(timeout=30)
