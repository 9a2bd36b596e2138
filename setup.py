"""Choose what of the source tree is in the wheel; everything else is declared in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
ONLY = {
    "pocket": {"__init__"},  # the model, not what trained it
    "benchmarks": {  # what `glasshouse bench` runs
        *("__init__", "compare", "machine", "machine_folder", "run_engine", "run_transformers"),
        *("shapes", "workloads"),
    },
}
"""Package → the modules of it that are in the wheel. A package that isn't named is in it whole."""


class Build(build_py):
    """The usual build, with modules left out, and the guides that the live page links put in."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if entry[1] in ONLY.get(package, {entry[1]})]

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout's own docs/ are beside the engine
            return
        guide = Path(self.build_lib) / "engine" / "server" / "web" / "guide"
        guide.mkdir(parents=True, exist_ok=True)
        docs = ROOT / "docs"
        for page in [*docs.glob("*.md"), *docs.glob("images/**/*.svg")]:
            target = guide / page.relative_to(docs)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)


setup(cmdclass={"build_py": Build})
