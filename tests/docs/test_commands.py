"""Every command on every page runs here, or is marked with the reason why it can't.

Before each code block of a shell or of Python stands how it is checked:
    <!-- check: run -->            it is executed, against a local server where it names a URL
    <!-- check: needs-account -->  its commands and flags are compared with Koyeb's reference
    <!-- check: long -->           it takes minutes, a terminal, or a clean machine: its targets,
                                   files and flags exist; other tests run what it runs
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest

from docs.scripts.koyeb_reference import CPU_INSTANCES, FLAGS
from docs.scripts.server import ROOT, LocalServer, environment
from engine.config import EngineConfig
from engine.fit.estimate import GPUS
from engine.server.telemetry import connect
from examples.ray_serve.settings import read
from glasshouse.command import PROGRAMS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = ("run", "needs-account", "long")
CHECKED = ("bash", "sh", "console", "shell")
BLOCK = re.compile(
    r"(?:<!-- check: (?P<check>[a-z-]+) -->\n)?(?P<indent> *)```(?P<language>[a-z]*)\n"
    r"(?P<code>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    check: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for number, match in enumerate(
            BLOCK.finditer(re.sub(r"^ +(<!-- check)", r"\1", text, flags=re.M)), 1
        ):
            lines = match["code"].splitlines()
            code = "\n".join(line.removeprefix(match["indent"]) for line in lines)
            found.append(Block(page.name, number, match["check"] or "", match["language"], code))
    return found


ALL = blocks()


def of(check: str) -> list[Block]:
    return [block for block in ALL if block.check == check]


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a shell block, split into words."""
    lines = block.code.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


def test_the_quickstart_names_every_program():
    page = (ROOT / "docs/README_QUICKSTART.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"The same programs from anywhere[^.]*\.", page)
    assert re.findall(r"`(\w+)`", sentence) == list(PROGRAMS)


def test_there_are_commands():
    assert len(of("run")) > 10 and len(of("needs-account")) > 5 and len(of("long")) > 5


@pytest.mark.parametrize("block", [b for b in ALL if b.language in CHECKED], ids=str)
def test_every_shell_block_says_how_it_is_checked(block):
    assert block.check in KINDS, f"put `<!-- check: … -->` before:\n{block.code}"


# ---------------------------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def url():
    """A server with the pocket model. It lives as long as this module's tests."""
    with LocalServer("--log-format", "off") as server:
        yield server.url
    assert server.exit_code == 0, "".join(server.output)


@pytest.mark.slow
@pytest.mark.parametrize("block", of("run"), ids=str)
def test_commands_that_run(block, url, tmp_path):
    code = block.code.replace("http://127.0.0.1:8000", url)
    code = code.replace("/tmp/", f"{tmp_path}/").replace(".venv/bin/python", "python")
    variables = {
        **environment(),
        "KOYEB_URL": url,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    if block.language == "python":
        command = [sys.executable, "-c", code]
    else:
        command = ["bash", "-euo", "pipefail", "-c", code]
    result = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, f"{code}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    assert result.stdout.strip(), f"nothing was printed by:\n{code}"
    assert '"error"' not in result.stdout, result.stdout[-2000:]


# ------------------------------------------------------------------------------ needs-account


@pytest.mark.parametrize("block", of("needs-account"), ids=str)
def test_commands_that_need_an_account(block):
    seen = 0
    for words in commands(block):
        for start in [i for i, word in enumerate(words) if word == "koyeb"]:
            check_koyeb(words[start:])
            seen += 1
    others = [words[0] for words in commands(block)]
    assert seen or all(word in ("pip", "export") for word in others), (
        f"nothing is checked: {others}"
    )


def check_koyeb(words: list[str]) -> None:
    """The command exists, and has every flag that is used; GPUs are in the region that is named."""
    command = next(" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in FLAGS)
    used = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert set(used) <= FLAGS[command], f"{command} has no {set(used) - FLAGS[command]}"
    options = dict(pairwise(words))
    if "--instance-type" in options:
        regions = {g.instance_type: g.regions for g in GPUS} | CPU_INSTANCES
        assert options["--regions"] in regions[options["--instance-type"]].split(", ")
        assert "API_KEY={{secret.api-key}}" in words, "an open server"
        assert options["--checks"] == "8000:http:/health"
        assert options["--checks-grace-period"] == "8000=900"
    for setting in [b for a, b in pairwise(words) if a == "--env"]:
        assert setting.partition("=")[0] in OPTION_VARIABLES, setting


OPTION_VARIABLES = {
    option.metadata["env"] or name.upper()
    for name, option in EngineConfig.__dataclass_fields__.items()
} | set(connect.ENDPOINTS)


def test_flags_that_guides_invent_are_refused():
    for wrong in ("--git-docker-context", "--health-check-path", "--scaling-min", "--env-secret"):
        with pytest.raises(AssertionError):
            check_koyeb(["koyeb", "apps", "init", "x", wrong, "y"])


# --------------------------------------------------------------------------------------- long


@lru_cache
def usage(*program: str) -> str:
    command = [sys.executable, *program, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("block", of("long"), ids=str)
def test_long_commands_name_what_exists(block):
    makefile = (ROOT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for words in commands(block):
        while re.match(r"[A-Z_]+=", words[0]):  # a variable for the command
            variable, words = words[0].partition("=")[0], words[1:]
            assert words[0] == "make" or variable in OPTION_VARIABLES, variable
        program = words[0].rpartition("/")[2]
        if program == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"make {words[1]}"
        elif program == "pytest":
            assert (ROOT / words[1]).exists()
        elif program == "python" and words[1] == "koyeb_api_server.py":
            EngineConfig.from_args(words[2:], environ={})  # raises for a flag that is none
        elif program == "python" and words[1:4] == ["-m", "pip", "install"]:
            wanted = re.findall(r"\[(\w+)\]", words[-1])
            assert wanted or words[4:] == ["."], f"nobody checks {words}"
            for extra in wanted:
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
        elif program == "python" and words[1:3] == ["-m", "examples.ray_serve"]:
            read(words[3:], "ray_serve")  # raises for a flag that is none
        elif program == "glasshouse":
            assert words[1] in PROGRAMS, f"glasshouse has no {words[1]}"
            for flag in [word for word in words if word.startswith("--")]:
                assert flag in usage("-m", "glasshouse", words[1]), f"{words[:2]} has no {flag}"
        elif program == "python":
            for flag in [word for word in words if word.startswith("--")]:
                assert flag in usage(words[1]), f"{words[1]} has no {flag}"
        else:
            pytest.fail(f"nobody checks {words}")
