"""The guides as the live page shows them: rendered, safe, and without a dead link."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

import pytest

from engine.server import guide

LINK = re.compile(r'(?:href|src)="([^"]+)"')


@pytest.fixture(scope="module")
def known(server):
    """Fetch an address once: its status and text."""
    found: dict[str, tuple[int, str]] = {}

    def fetch(path: str) -> tuple[int, str]:
        if path not in found:
            answer = server.http.get(path)
            found[path] = answer.status_code, answer.text
        return found[path]

    return fetch


def test_no_link_of_a_guide_is_dead(known):
    """Pages, drawings, files of source, and the places within them."""
    checked = 0
    for name in sorted(guide.pages()):
        status, text = known(f"/guide/{name}")
        assert status == 200 and "<h1 id=" in text, name
        for link in LINK.findall(text):
            if "://" in link:
                continue
            path, fragment = urlsplit(urljoin(f"/guide/{name}", link))[2::2]
            status, target = known(path)
            assert status == 200, (name, link)
            assert not fragment or f'id="{fragment}"' in target, (name, link)
            checked += 1
    assert checked > 100


def test_a_file_of_source_is_text(known):
    status, text = known("/guide/source/engine/core/scheduler.py")
    assert status == 200 and "def schedule" in text and '<li id="L1">' in text
    links = [link for link in LINK.findall(text) if "://" not in link]
    for link in links:
        assert known(urljoin("/guide/source/engine/core/scheduler.py", link))[0] == 200, link


@pytest.mark.parametrize(
    "path",
    [
        "nothing.md",
        "source/setup.py",
        "source/engine/../setup.py",
        "source//etc/passwd",
        "..%2f..%2fsetup.py",
        "images/nothing.svg",
    ],
)
def test_nothing_else_is_served(known, path):
    assert known(f"/guide/{path}")[0] == 404


def test_a_link_that_leads_out_is_plain_text():
    page = guide.page("LOG_GUIDE.md")
    assert "docs/records, which a server wrote" in page and 'href="records"' not in page
    assert "<!--" not in page
