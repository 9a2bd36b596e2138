"""`make clients`: its catalogue is complete, and a failing client is reported. None is
installed."""

from __future__ import annotations

import json
import sys

import httpx
import pytest

from clients import __main__ as runner
from clients import environments
from clients.catalogue import CLIENTS, SCRIPTS, Client
from clients.scripted import scripted_server
from clients.table import RESULTS, clients_table

ASKS = """
import os, urllib.error, urllib.request
assert os.environ["SERVER_MODEL"] and os.environ["SERVER_TOKENIZER"]
for path in ("/v1/models", "/v1/nothing"):
    headers = {"Authorization": "Bearer " + os.environ["SERVER_KEY"]}
    request = urllib.request.Request(os.environ["SERVER_URL"] + path, headers=headers)
    try:
        urllib.request.urlopen(request)
        print("did:", path)
    except urllib.error.HTTPError as error:
        print(error.code)
"""

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zurich"}}\n</tool_call>'


def test_every_client_has_its_script_and_every_script_its_client():
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)
    used = {client.path for client in CLIENTS}
    assert used == {path for path in SCRIPTS.iterdir() if path.name.startswith("use_")}


def test_results_are_of_clients_that_there_are():
    results = json.loads(RESULTS.read_text())
    assert results.keys() <= {client.name for client in CLIENTS}
    table = clients_table()
    assert all(f"`{client.shown}`" in table for client in CLIENTS)


@pytest.fixture
def client(monkeypatch, tmp_path):
    made = Client("mine", ("httpx",), "use_mine.py")
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "version", lambda client: "1.0")
    script = tmp_path / "script.py"
    monkeypatch.setattr(environments, "command", lambda client: [sys.executable, str(script)])
    environments.folder(made).mkdir()
    return made, script


def test_what_a_client_did(run_server, client):
    made, script = client
    with run_server(api_key=runner.KEY) as server:
        script.write_text(ASKS)
        result = runner.run(made, server.url)
        assert (result["did"], result["problem"]) == (["/v1/models"], "")
        assert result["without_route"] == 1  # so that a route that clients want is not missed
        script.write_text("print('did: this'); raise SystemExit('no answer')")
        failed = runner.run(made, server.url)
        assert (failed["did"], failed["problem"]) == (["this"], "failed: no answer")


def test_what_cant_be_installed(client):
    made, _ = client
    python = environments.folder(made) / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho no such package\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(environments.NotInstalled, match="not installed: no such package"):
        environments.install(made, 10)
    assert not environments.is_installed(made)
    python.write_text("#!/bin/sh\nexit 0\n")
    environments.install(made, 10)
    assert environments.is_installed(made)


@pytest.mark.slow
def test_a_scripted_model_calls_and_then_answers():
    weather = {"type": "function", "function": {"name": "weather"}}
    asked = [{"role": "user", "content": f"SAY:{CALL}"}]
    with scripted_server("key", "scripted") as url:

        def say(messages):
            response = httpx.post(
                f"{url}/v1/chat/completions",
                headers={"Authorization": "Bearer key"},
                json={"model": "scripted", "messages": messages, "tools": [weather]},
            )
            return response.json()["choices"][0]["message"]

        message = say(asked)
        [call] = message["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Zurich"}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "SAY:It rains."}
        assert say([*asked, message, result])["content"] == "It rains."
