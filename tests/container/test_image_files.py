"""What can be told of the image without building it. `make image-check` builds and judges it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile.koyeb").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of each line, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_the_base_can_be_chosen():
    assert arguments("ARG") == ["BASE_IMAGE=python:3.11-slim", "TORCH_INDEX=", "BAKE_MODEL="]
    assert arguments("FROM") == ["${BASE_IMAGE}"]


def test_the_server_gets_signals_itself_and_is_not_root():
    assert arguments("CMD") == ['["python", "koyeb_api_server.py"]']
    assert not arguments("ENTRYPOINT")
    (user,) = arguments("USER")
    assert int(user) > 0
    assert f"--uid {user}" in DOCKERFILE


def test_defaults():
    text = " ".join(arguments("ENV"))
    assert "MODEL_NAME=Qwen/Qwen3-0.6B" in text
    assert "HF_HOME=/data/" in text
    assert "PORT=8000" in text and arguments("EXPOSE") == ["8000"]


def test_every_install_keeps_to_the_constraints():
    installs = re.findall(r"pip install[^&\\]*", " ".join(arguments("RUN")))
    assert len(installs) == 2
    assert all("-c constraints.txt" in one and "--no-cache-dir" in one for one in installs)


def test_code_comes_after_packages():
    order = [f"{name} {rest}" for name, rest in instructions()]
    code = next(i for i, line in enumerate(order) if line.startswith("COPY . "))
    last_install = max(i for i, line in enumerate(order) if "pip install" in line)
    assert last_install < code


def test_what_a_first_start_would_do_is_done_as_the_servers_user():
    order = [f"{name} {rest}" for name, rest in instructions()]
    prepared = order.index("RUN python -m engine.prepare pocket")
    user = next(i for i, line in enumerate(order) if line.startswith("USER "))
    assert user < prepared  # its cache is in that user's home
    assert any(line.startswith("RUN python -m compileall") for line in order[:user])


def matched_by_ignore_file(path: str) -> bool:
    """Whether .dockerignore keeps a top-level file or folder out."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    ignored = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        if wanted in ("*", path):
            ignored = not pattern.startswith("!")
    return ignored


def test_the_context_is_what_the_server_needs():
    for inside in ("engine", "lab", "pocket", "koyeb_api_server.py", "constraints.txt", "docs"):
        assert (ROOT / inside).exists() and not matched_by_ignore_file(inside), inside
    for outside in (".git", ".venv", "tests", "docs/*", "exercises", "build", "trace.jsonl"):
        assert matched_by_ignore_file(outside), outside


def test_the_check_is_a_valid_script_and_names_no_machine():
    script = ROOT / "container" / "check.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert not re.search(r"/(opt|srv|home|root)/wheels|/work\b", script.read_text())


def test_without_its_tools_the_check_says_which(tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = subprocess.run(
        [str(ROOT / "container" / "check.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "buildah is missing" in result.stderr


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_hadolint_finds_nothing():
    result = subprocess.run(
        ["hadolint", str(ROOT / "Dockerfile.koyeb")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
