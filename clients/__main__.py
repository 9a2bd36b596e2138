"""Run other people's clients against a real server: `python -m clients [NAME …]` (`make clients`).

Each is installed into an environment of its own and asks a server process with the pocket model and
a key; for agents' loops it asks a second one, whose model follows a script. What each did, and with
which version, goes into clients/results.json, from which `python -m docs.scripts.fill` writes the
table of the docs. The exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import httpx

from clients import environments
from clients.catalogue import CLIENTS, Client
from clients.environments import ROOT, NotInstalled
from clients.scripted import scripted_server
from clients.table import RESULTS
from docs.scripts.server import LocalServer
from engine.trace.command import run_command

KEY = "key-of-the-clients"
MODEL = "pocket"
INSTALL_S = 1800.0
RUN_S = 420.0
METRICS_S = 60.0  # a server that runs beside other work, at a low priority, may answer late
DID = re.compile(r"^did: (.+)$", re.MULTILINE)
NO_ROUTE = re.compile(r'^http_requests_total\{handler="none",.*\} (\S+)$', re.MULTILINE)


def run(client: Client, url: str, scripted_url: str = "") -> dict[str, Any]:
    """Ask the servers with one client: its version, what it did, what went wrong ("" nothing)."""
    missing = _num_without_route(url)
    variables = {
        **os.environ,
        "SERVER_URL": url,
        "SCRIPTED_URL": scripted_url,
        "SERVER_KEY": KEY,
        "SERVER_MODEL": MODEL,
        "SERVER_TOKENIZER": str(ROOT / "pocket" / "model"),
        "HF_HUB_OFFLINE": "1",
    }
    try:
        done = subprocess.run(
            environments.command(client), env=variables, cwd=environments.folder(client),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_S,
        )  # fmt: skip
        output, problem = done.stdout, "" if done.returncode == 0 else "failed"
    except subprocess.TimeoutExpired as late:
        output, problem = (late.stdout or b"").decode(errors="replace"), "took too long"
    log = environments.FOLDER / f"run-{client.name}.log"
    log.write_text(output)
    if problem:
        last = [line for line in output.splitlines() if line.strip()][-1:]
        problem = f"{problem}: {' '.join(last)[:200]}"
    return {
        "version": environments.version(client),
        "did": DID.findall(output),
        "without_route": int(_num_without_route(url) - missing),
        "problem": problem,
    }


def _num_without_route(url: str) -> float:
    """Return how many requests so far were for a route that the server doesn't have."""
    headers = {"Authorization": f"Bearer {KEY}"}
    text = httpx.get(f"{url}/metrics", headers=headers, timeout=METRICS_S).text
    return sum(map(float, NO_ROUTE.findall(text)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m clients", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which [all]")
    parser.add_argument("--skip", nargs="*", default=[], metavar="NAME", help="which not")
    given = parser.parse_args(argv)
    known = {client.name: client for client in CLIENTS}
    if unknown := {*given.names, *given.skip} - known.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
    chosen = [known[name] for name in given.names or known if name not in given.skip]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    flags = ("--api-key", KEY, "--served-model-name", MODEL, "--log-format", "off")
    with LocalServer(*flags) as server, scripted_server(KEY, MODEL) as scripted_url:
        for client in chosen:
            print(f"{client.name}: ", end="", flush=True)
            try:
                environments.install(client, INSTALL_S)
                result = run(client, server.url, scripted_url)
            except NotInstalled as error:
                result = {"version": "", "did": [], "problem": str(error)}
            results[client.name] = {"package": client.shown, **result}
            if result["problem"]:
                failed.append(client.name)
            print(result["problem"] or "; ".join(result["did"]), flush=True)
    order = [name for name in known if name in results]
    RESULTS.write_text(json.dumps({name: results[name] for name in order}, indent=1) + "\n")
    print(f"{len(chosen) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
