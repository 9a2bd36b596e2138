"""Questions to transformers: where they are asked, what is kept, and when it is asked again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from engine.models import asking
from engine.models.asking import AskingError, ask, small_files

HERE = "tests.models.test_asking"


def echo(arguments):
    """Answers what it was asked, and which modules the process that answers has."""
    if arguments.get("fail"):
        raise ValueError("no such thing")
    if arguments.get("refuse"):
        return {"error": "not this"}, {}
    process = {"pid": os.getpid(), "torch": sys.modules.get("torch") is not None}
    return {"said": arguments, **process}, {"data": b"\x00\xff" * 3}


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A cache of its own, and no transformers in this process, whoever imported it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "transformers", raising=False)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    return path


def put(file, **arguments):
    return ask(f"{HERE}:echo", arguments, None if file is None else [file])


def test_another_process_answers_once(file):
    first = put(file, a=1)
    assert first.values["said"] == {"a": 1} and first.files == {"data": b"\x00\xff" * 3}
    assert first.values["pid"] != os.getpid() and not first.values["torch"]
    assert put(file, a=1) == first
    assert put(file, a=1, hf_token="secret").values["pid"] == first.values["pid"]
    assert put(file, a=2).values["pid"] != first.values["pid"]
    file.write_text("{ }")
    assert put(file, a=1).values["pid"] != first.values["pid"]


def test_an_answer_that_is_not_whole_is_asked_for_again(file, tmp_path):
    first = put(file)
    (kept,) = (tmp_path / "cache" / "glasshouse" / "answers").iterdir()
    (kept / "data").write_bytes(b"cut")
    second = put(file)
    assert second.files == first.files and second.values["pid"] != first.values["pid"]
    assert put(file) == second


def test_nothing_is_kept_of_unknown_files_of_refusals_and_of_failures(file, tmp_path):
    assert put(None).values["pid"] != put(None).values["pid"]
    assert put(file, refuse=True).values == {"error": "not this"}
    with pytest.raises(AskingError, match="could not be asked: ValueError: no such thing"):
        put(file, fail=True)
    assert list((tmp_path / "cache" / "glasshouse" / "answers").iterdir()) == []


def test_without_a_cache_it_is_asked_all_the_same(file, tmp_path, monkeypatch):
    (tmp_path / "full").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    assert put(file, a=1).values["said"] == {"a": 1}


def test_only_so_many_answers_are_kept(file, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "ANSWERS_KEPT", 2)
    for number in range(4):
        put(file, a=number)
    assert len(list((tmp_path / "cache" / "glasshouse" / "answers").iterdir())) <= 3


def test_where_transformers_is_imported_it_is_asked_there(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", json)
    assert put(file).values["pid"] == os.getpid()


def test_a_secret_is_on_no_command_line(monkeypatch, file):
    seen = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: seen.append(a) or real(*a, **k))
    put(file, hf_token="hf_abc")
    assert seen and "hf_abc" not in str(seen)


def test_the_small_files_are_all_that_text_is_made_of(tmp_path):
    names = ["tokenizer.json", "vocab.txt", "tokenizer.model", "a.jinja", "more/b.jinja"]
    for name in [*names, "model.safetensors", "more/c.json"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert {str(p.relative_to(tmp_path)) for p in small_files(tmp_path)} == set(names)
