"""Print pyproject.toml's lower bounds as pip constraints: `numpy>=2.0` becomes `numpy==2.0`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
BOUND = re.compile(r"([A-Za-z0-9_-]+)>=([0-9.]+)(;.*)?")


def lowest() -> list[str]:
    """One constraint for each dependency. Raises ValueError for one without a lower bound."""
    constraints = []
    for dependency in tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]:
        bound = BOUND.fullmatch(dependency)
        if not bound:
            raise ValueError(f"pyproject.toml: {dependency!r} has no plain lower bound (name>=1.2)")
        constraints.append(f"{bound[1]}=={bound[2]}{bound[3] or ''}")
    return constraints


if __name__ == "__main__":
    print("\n".join(lowest()))
