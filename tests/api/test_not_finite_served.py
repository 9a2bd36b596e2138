"""Serve a checkpoint with a broken embedding: only requests that use it get an error."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

HEALTHY = {"prompt": "hello", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
SICK = {"prompt": "puzzle", "max_tokens": 60, "temperature": 0}
MESSAGES = [{"role": "user", "content": "puzzle"}]


@pytest.fixture(scope="module")
def broken(start_server, model_folder, tmp_path_factory):
    """Start a server whose embedding of the letter z is NaN; also return its answer to "hello"."""
    folder = tmp_path_factory.mktemp("broken")
    model, tokenizer = (
        kind.from_pretrained(model_folder) for kind in (LlamaForCausalLM, AutoTokenizer)
    )
    [letter] = tokenizer.encode("z", add_special_tokens=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[letter] = float("nan")
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    with start_server("--model", str(folder)) as server:
        alone = server.complete(**HEALTHY)["choices"][0]["text"]
        assert "z" not in alone
        yield server, alone


@pytest.mark.parametrize(
    ("path", "body"),
    [("completions", SICK), ("chat/completions", {**SICK, "prompt": None, "messages": MESSAGES})],
)
def test_an_error_of_one_request(broken, path, body):
    server, alone = broken
    body = {name: value for name, value in body.items() if value is not None}
    found = {}
    beside = threading.Thread(target=lambda: found.update(server.complete(**HEALTHY)))
    beside.start()

    answer = server.http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["type"] == "InternalServerError" and error["code"] == 500
    assert "no finite logits for position" in error["message"]
    assert "--dtype bfloat16 or float32" in error["message"]

    with server.http.stream("POST", f"/v1/{path}", json={**body, "stream": True}) as streamed:
        assert streamed.status_code == 200  # sent before anything is computed
        lines = [line for line in streamed.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: ")) == {"error": error}

    beside.join()
    assert found["choices"][0]["text"] == alone
    assert server.http.get("/health").status_code == 200


def test_it_is_counted_and_recorded(broken):
    server, alone = broken
    series = 'vllm:request_success_total{engine="0",finished_reason="error"'

    def counted() -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(series))

    before = counted()
    asked = server.http.post("/v1/completions", json={**SICK, "request_id": "sick"})
    assert asked.status_code == 500
    assert counted() == before + 1

    def ends() -> list[dict]:
        record = [json.loads(line) for line in server.http.get("/trace").text.splitlines()]
        named = [event for event in record if event.get("request_id") == "cmpl-sick"]
        return [event for event in named if event["kind"] == "request.finished"]

    deadline = time.monotonic() + 10  # the record comes a moment later
    while not (found := ends()) and time.monotonic() < deadline:
        time.sleep(0.05)
    [end] = found
    assert end["reason"] == "error" and "no finite logits for position 6" in end["why"]
    assert server.complete(**HEALTHY)["choices"][0]["text"] == alone
