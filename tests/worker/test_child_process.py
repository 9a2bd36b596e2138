"""How further processes are started, and that they end with the one that started them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.child_process import ROOT, command_of


def run(command: list[str], **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def test_files_of_the_current_folder_hide_none_of_pythons(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in an interactive Python
    assert run([sys.executable, "-m", "queue"], cwd=tmp_path).returncode != 0
    assert run(command_of("queue"), cwd=tmp_path).returncode == 0


def test_a_module_is_found_where_this_process_has_it_and_gets_its_arguments(tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text("import engine, sys; print(*sys.argv[1:], engine.__file__)")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if path != ROOT)])
    ran = run(command_of("told", 3, "a b"), cwd="/", env={})
    assert ran.stdout.startswith("3 a b ") and ran.stdout.strip().endswith("engine/__init__.py")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")
@pytest.mark.parametrize("parent, lives", [(1, True), (2, False)])
def test_the_parent_may_be_process_1(parent, lives):
    """As in a container. One whose parent is another by now has lost its own."""
    program = (
        "import os; from engine.child_process import end_with_parent; os.getppid = lambda: 1;"
        f" end_with_parent({parent}); print('lives')"
    )
    ran = run([sys.executable, "-c", program], cwd=ROOT)
    assert (ran.stdout.strip(), ran.returncode) == (("lives", 0) if lives else ("", 1))
