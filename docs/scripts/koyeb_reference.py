"""Flags of Koyeb's command line, of the commands that the pages use.

From its published reference (koyeb-cli v5.10, docs/reference.md; `volumes` and `compose` from its
source, pkg/koyeb): names only. Flags that every command has (--help, --token, …) are left out.
"""

from __future__ import annotations

_SERVICE = {
    "--autoscaling-concurrent-requests",
    "--checks",
    "--checks-grace-period",
    "--deep-sleep-delay",
    "--deployment-strategy",
    "--env",
    "--instance-type",
    "--light-sleep-delay",
    "--max-scale",
    "--min-scale",
    "--ports",
    "--regions",
    "--routes",
    "--scale",
    "--type",
    "--volumes",
    "--wait",
    "--wait-timeout",
}
_GIT = {
    "--git",
    "--git-branch",
    "--git-builder",
    "--git-docker-dockerfile",
    "--git-no-deploy-on-push",
    "--git-workdir",
}
_ARCHIVE = {"--archive-builder", "--archive-docker-dockerfile", "--archive-ignore-dir"}

FLAGS: dict[str, set[str]] = {
    "koyeb login": set(),
    "koyeb apps init": _SERVICE | _GIT,
    "koyeb apps list": set(),
    "koyeb apps delete": set(),
    "koyeb deploy": _SERVICE | _ARCHIVE | {"--app"},
    "koyeb compose": {"--verbose"},
    "koyeb services create": _SERVICE | _GIT | {"--app"},
    "koyeb services update": _SERVICE | _GIT | {"--app", "--name", "--override", "--skip-build"},
    "koyeb services logs": {"--app", "--instance", "--since", "--tail", "--type"},
    "koyeb services pause": {"--app"},
    "koyeb services resume": {"--app"},
    "koyeb secrets create": {"--type", "--value", "--value-from-stdin"},
    "koyeb secrets delete": set(),
    "koyeb volumes create": {"--read-only", "--region", "--size", "--snapshot"},
    "koyeb volumes delete": set(),
}
