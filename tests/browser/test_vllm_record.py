"""The page folds a record of vLLM as Python does: blocks are taken in any order."""

from __future__ import annotations

from engine.trace.__main__ import main
from engine.trace.files import to_jsonl
from tests.browser.room_page import until
from tests.contrib.test_vllm_viewer import preempted

__all__ = ["preempted"]  # the fixture


def test_the_page_shows_a_record_of_vllm(open_room, preempted, tmp_path):
    record, room = tmp_path / "vllm.jsonl", tmp_path / "room.html"
    record.write_bytes(to_jsonl(preempted.told()))
    assert main(["page", str(record), "-o", str(room)]) == 0
    page = open_room(room.as_uri())
    until(page, "room.record.lines.length > 0 && room.record.lastStep === 4")
    replay = preempted.folded()
    for step in (1, 2, 3, 4):
        page.evaluate(f"room.goToStep({step})")
        shown = page.evaluate("room.record.state.toDict()")
        wanted = replay.state_at(step).to_dict()
        for one in (shown, wanted):
            one["free_queue"] = sorted(one["free_queue"])  # of which nobody knows the order
        assert shown == wanted
    assert page.evaluate("room.record.broken") == ""
    assert "M parameters" not in page.inner_text("#engine")
