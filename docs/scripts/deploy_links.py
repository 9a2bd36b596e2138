"""Fill the addresses that depend on where this repository is: `make deploy-links`.

The deploy button and the commands for Koyeb name a repository on GitHub; the site of rooms has its
address at GitHub Pages. Both follow from the git remote. Until somebody runs this, they say
ORG/REPO. Running it again, also after the repository was moved, writes them again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

from docs.scripts.server import ROOT
from engine.trace.command import run_command

FILES = ("README.md", "docs/STEP_BY_STEP_KOYEB.md", "docs/KOYEB_DEPLOYMENT_GUIDE.md")

_REMOTE = re.compile(r"github\.com[:/]+([\w.-]+)/([\w.-]+?)(?:\.git)?/?$")
# The text around a repository's name where it is filled; nothing else is changed.
_BUTTON = re.compile(r"(app\.koyeb\.com/deploy\?\S*?repository=)[\w.-]+%2F[\w.-]+")
_SITE = re.compile(r"https://[\w-]+\.github\.io/[\w.-]+/")
_COMMANDS = re.compile(r"((?:--git |GIT_REPOSITORY=)github\.com/)[\w.-]+/[\w.-]+")


def filled(text: str, repository: str) -> str:
    """Put a repository (`owner/name`) into every address of a page that depends on it."""
    owner, name = repository.split("/")
    text = _BUTTON.sub(lambda match: match[1] + quote(repository, safe=""), text)
    text = _SITE.sub(f"https://{owner.lower()}.github.io/{name}/", text)
    return _COMMANDS.sub(lambda match: match[1] + repository, text)


def repository_of(remote_url: str) -> str:
    """The `owner/name` in a git remote's address. Raises ValueError if it isn't one of GitHub."""
    found = _REMOTE.search(remote_url.strip())
    if found is None:
        raise ValueError(
            f"{remote_url.strip()!r} is no repository of GitHub; say which: --repository OWNER/NAME"
        )
    return f"{found[1]}/{found[2]}"


def main() -> int:
    """Write the addresses; return 2 if the repository is unknown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", metavar="OWNER/NAME", help="default: the git remote's")
    parser.add_argument("--remote", default="origin", help="git remote that says it [origin]")
    arguments = parser.parse_args()
    repository = arguments.repository
    if repository is None:
        asked = subprocess.run(
            ["git", "remote", "get-url", arguments.remote], cwd=ROOT, capture_output=True, text=True
        )
        if asked.returncode:
            parser.error(
                f"git has no remote {arguments.remote!r} here; add one, or say which repository"
                " this is: --repository OWNER/NAME"
            )
        try:
            repository = repository_of(asked.stdout)
        except ValueError as error:
            parser.error(str(error))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        parser.error(f"--repository is {repository!r}; it must be OWNER/NAME")
    for name in FILES:
        path = Path(ROOT / name)
        before = path.read_text(encoding="utf-8")
        after = filled(before, repository)
        path.write_text(after, encoding="utf-8")
        print(f"{name}: {'written' if after != before else 'is up to date'}")
    return 0


if __name__ == "__main__":
    run_command(main)
