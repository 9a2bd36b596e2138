"""List the flags of those Koyeb commands that the pages use.

From its published reference (koyeb-cli v5.10, docs/reference.md; `volumes` and `compose` from its
source, pkg/koyeb): names only. Flags that every command has (--help, --token, …) are left out.
"""

from __future__ import annotations

from typing import NamedTuple


class Price(NamedTuple):
    """State what an instance type costs, in dollars an hour, and who said so when."""

    instance_type: str
    dollars: float
    source: str


_DOCUMENTS = "a copy of Koyeb's documents without a date"
_LISTED = "a [copy](https://github.com/api-evangelist/koyeb) of the price page, 2026-08-17"
_CATALOGUE = "Koyeb's catalogue of 2026-02-12 and control panel of 2026-06-30"
PRICES = (
    Price("eco-large", 0.0288, _CATALOGUE),
    Price("gpu-nvidia-rtx-4000-sff-ada", 0.50, _DOCUMENTS),
    Price("gpu-nvidia-l4", 0.70, _DOCUMENTS),
    Price("gpu-nvidia-rtx-a6000", 0.75, _LISTED),
    Price("gpu-nvidia-l40s", 1.20, _LISTED),
    Price("gpu-nvidia-a100", 1.60, _LISTED),
    Price("gpu-nvidia-h100", 2.50, _LISTED),
)

# CPU types that the pages use, and the regions that have them.
CPU_INSTANCES = {"eco-large": "fra, was, sin"}

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
