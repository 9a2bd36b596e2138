"""The site of rooms, and the links that follow from the git remote."""

from __future__ import annotations

import re
import subprocess
import sys
from urllib.parse import parse_qs

import pytest
import yaml

from docs.scripts import deploy_links, site
from docs.scripts.reader import Record
from docs.scripts.server import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return folder, site.build(folder)


def test_every_room_is_there_and_small_enough(built):
    _folder, files = built
    assert {file.name for file in files} == {
        "index.html",
        "compare.html",
        *(f"{r.record}.html" for r in site.ROOMS),
    }
    assert all(file.stat().st_size < 5_000_000 for file in files)


def test_two_rooms_stand_beside_each_other(built):
    folder, _files = built
    page = (folder / "compare.html").read_text("utf-8")
    frames = re.findall(r'<iframe src="([^"]+)"', page)
    assert frames == [f"{name}.html" for name in site.COMPARED]
    assert all((folder / frame).is_file() for frame in frames)
    assert '"names":["crowd.jsonl","crowd-recompute.jsonl"]' in page
    assert 'href="compare.html"' in (folder / "index.html").read_text("utf-8")


def test_the_index_leads_to_moments_that_exist(built):
    folder, _files = built
    page = (folder / "index.html").read_text("utf-8")
    links = re.findall(r'href="([^"#]+)#([^"]+)"', page)
    assert len(links) == len(site.ROOMS)
    for name, fragment in links:
        assert (folder / name).is_file()
        wanted = {key: value for key, (value,) in parse_qs(fragment.replace("&amp;", "&")).items()}
        record = Record(name.removesuffix(".html"))
        record.replay.state_at(int(wanted["step"]))
        assert any(event.request_id == wanted["request"] for event in record.events)
    assert not re.findall(r'(?:src|href)="https?:', page), "nothing is fetched"


@pytest.mark.parametrize("room", site.ROOMS, ids=lambda room: room.title)
def test_three_sentences_a_room(room):
    text = room.find(Record(room.record)).sentences
    assert len(re.findall(r"[.](?: |$)", re.sub(r"\\d\\.\\d", "", text))) in (3, 4), text
    assert "chatcmpl" not in text


def test_the_site_needs_no_torch():
    code = "import sys; import docs.scripts.site; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_workflow_builds_what_make_builds():
    file = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    runs = [step["run"] for step in file["jobs"]["site"]["steps"] if "run" in step]
    assert "python -m docs.scripts.site site" in runs


@pytest.mark.parametrize(
    "remote",
    ["git@github.com:Ada-L/glass.house.git", "https://github.com/Ada-L/glass.house",
     "ssh://git@github.com/Ada-L/glass.house.git/"],
)  # fmt: skip
def test_a_remote_says_which_repository(remote):
    assert deploy_links.repository_of(remote) == "Ada-L/glass.house"


def test_links_are_filled_again_and_again():
    text = (ROOT / "README.md").read_text("utf-8")
    mine = deploy_links.filled(text, "Ada-L/glass.house")
    assert "repository=Ada-L%2Fglass.house&" in mine
    assert "https://ada-l.github.io/glass.house/" in mine
    assert "ORG" not in mine
    moved = deploy_links.filled(mine, "bea/other")
    assert "Ada" not in moved and "repository=bea%2Fother&" in moved
    for name in deploy_links.FILES[1:]:
        page = deploy_links.filled((ROOT / name).read_text("utf-8"), "bea/other")
        assert "github.com/bea/other" in page and "github.com/ORG" not in page
        assert page.count("https://github.com/api-evangelist/koyeb") == (
            (ROOT / name).read_text("utf-8").count("https://github.com/api-evangelist/koyeb")
        )


@pytest.mark.parametrize("wrong", ["https://gitlab.com/a/b.git", "nothing", "github.com/only"])
def test_other_remotes_are_refused(wrong):
    with pytest.raises(ValueError, match="--repository OWNER/NAME"):
        deploy_links.repository_of(wrong)
