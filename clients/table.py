"""Write the table of the docs, from clients/results.json."""

from __future__ import annotations

import json

from clients.catalogue import CLIENTS
from clients.environments import ROOT

RESULTS = ROOT / "clients" / "results.json"


def clients_table() -> str:
    """List each client, its version, and what it did; what couldn't be had or failed says why."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = ["| client | version | what was done with it |", "|---|---|---|"]
    for client in CLIENTS:
        result = results.get(client.name)
        if result is None:
            lines.append(f"| {client.name}: `{client.shown}` | | not tried yet |")
            continue
        done = "; ".join(result["did"])
        problem = result["problem"].replace("|", "\\|")
        told = " – ".join(part for part in (done, f"**{problem}**" if problem else "") if part)
        lines.append(f"| {client.name}: `{result['package']}` | {result['version']} | {told} |")
    return "\n".join(lines)
