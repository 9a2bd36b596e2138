"""A step's accepted tokens are one stroke of the timeline, as tall as they are many."""

from __future__ import annotations

import pytest

from engine.trace.__main__ import main
from tests.browser.room_page import ROOT, until

RECORD = ROOT / "docs" / "records" / "repeats.jsonl"
STROKE = """(step) => {
  const { scale, sizes, rowHeight, canvas } = room.timeline, ratio = devicePixelRatio;
  const x = (scale.begin(step) + scale.end(step)) / 2;
  const pixels = canvas.getContext("2d")
    .getImageData(x * ratio, sizes.axis * ratio, 1, rowHeight * ratio).data;
  const at = (y) => String(pixels.slice(4 * y, 4 * y + 4));
  const rows = Array.from({ length: pixels.length / 4 }, (_, y) => at(y));
  const middle = rows[Math.floor(rows.length / 2)];
  return { tall: rows.filter((colour) => colour === middle).length / ratio, x,
           y: sizes.axis + rowHeight / 2 };
}"""


@pytest.fixture
def page(open_room, tmp_path):
    path = tmp_path / "repeats.html"
    assert main(["page", str(RECORD), "-o", str(path)]) == 0
    page = open_room(path.as_uri())
    until(page, "room.record.lines.length > 0")
    return page


def test_accepted_tokens_are_one_stroke(page):
    verified = page.evaluate("room.record.entries.filter((e) => e.kind === 'spec.verified')")
    best = max(verified, key=lambda event: event.get("num_accepted", 0))
    step, proposed, right = best["step"], best["num_proposed"], best["num_accepted"]
    page.evaluate(f"room.goToStep({step + 1})")
    until(page, f"room.timeline.view?.from < {step} && room.timeline.shown.length === 1")
    plain = next(n for n in range(step - 1, 0, -1) if all(e["step"] != n for e in verified))
    one, several = page.evaluate(STROKE, plain), page.evaluate(STROKE, step)
    assert several["tall"] > one["tall"] > 1
    page.hover("#timeline canvas", position={"x": several["x"], "y": several["y"]})
    tip = page.inner_text("#timeline .tip")
    assert f"decodes {1 + right} tokens: {right} of {proposed} proposed tokens right" in tip
    page.hover("#timeline canvas", position={"x": one["x"], "y": one["y"]})
    assert "decodes 1 token\n" in page.inner_text("#timeline .tip")
    page.evaluate(f"room.goToStep({step})")
    until(page, f"document.querySelector('#step h2').innerText.includes('Step {step}')")
    shown = page.inner_text("#step")
    assert f"1 decode · {proposed} proposed tokens checked · {1 + right} tokens drawn" in shown
    assert page.locator("#step .chips > *").all_inner_texts() == [f"req-1: {1 + right} tokens"]
    assert "forward" in shown and "draft" not in shown, "this engine has no draft model"
