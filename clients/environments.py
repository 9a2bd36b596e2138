"""Make each client's environment, once and apart from ours, in `.clients/`.

Git ignores that folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from clients.catalogue import Client

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("CLIENTS_DIR") or ROOT / ".clients").resolve()
VLLM_NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")  # made for another torch


class NotInstalled(RuntimeError):
    """Report that a client can't be had here; the message says why."""


def folder(client: Client) -> Path:
    return FOLDER / client.name


def command(client: Client) -> list[str]:
    """Return what runs the client's script."""
    if client.is_node:  # node looks for packages beside the script
        shutil.copy(client.path, folder(client))
        return ["node", str(folder(client) / client.path.name)]
    return [str(folder(client) / "bin" / "python"), str(client.path)]


def is_installed(client: Client) -> bool:
    marker = folder(client) / ".installed"
    return marker.is_file() and marker.read_text().split("\n")[:-1] == list(client.packages)


def install(client: Client, timeout_s: float) -> None:
    """Make the environment, unless it is there. Raises `NotInstalled`."""
    if is_installed(client):
        return
    if client.is_node:
        _install_node(client, timeout_s)
    else:
        _install_python(client, timeout_s)
    (folder(client) / ".installed").write_text("".join(f"{name}\n" for name in client.packages))


def version(client: Client) -> str:
    """Return the version of the client's first package."""
    name = client.packages[0].split("==")[0].split("[")[0]
    if client.is_node:
        told = folder(client) / "node_modules" / name / "package.json"
        return json.loads(told.read_text())["version"]
    ask = f"from importlib.metadata import version; print(version({name!r}))"
    python = str(folder(client) / "bin" / "python")
    return subprocess.run(
        [python, "-c", ask], capture_output=True, text=True, check=True
    ).stdout.strip()


def _install_python(client: Client, timeout_s: float) -> None:
    python = folder(client) / "bin" / "python"
    if not python.exists():
        _run(client, [sys.executable, "-m", "venv", str(folder(client))], timeout_s)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    _run(client, [*pip, "install", "--quiet", *client.packages], timeout_s)
    if client.packages[0].startswith("vllm"):
        _run(client, [*pip, "uninstall", "--quiet", "--yes", *VLLM_NOT_NEEDED], timeout_s)


def _install_node(client: Client, timeout_s: float) -> None:
    if shutil.which("npm") is None:
        raise NotInstalled("there is no npm")
    folder(client).mkdir(parents=True, exist_ok=True)
    npm = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder(client))]
    _run(client, [*npm, *client.packages], timeout_s)


def _run(client: Client, words: list[str], timeout_s: float) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = FOLDER / f"install-{client.name}.log"
    with log.open("wb") as file:
        try:
            done = subprocess.run(words, stdout=file, stderr=file, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"not installed within {timeout_s:g} s") from None
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise NotInstalled(f"not installed: {lines[-1] if lines else 'no word why'} ({log})")
