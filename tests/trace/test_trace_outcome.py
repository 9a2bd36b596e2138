"""Two records of the same arrivals side by side: what followed from the decision that differs."""

from __future__ import annotations

from engine.trace.__main__ import main
from engine.trace.files import read_all
from engine.trace.outcome import outcome, what_followed
from tests.trace.test_import_rules import ROOT

RECORDS = ROOT / "docs" / "records"


def test_the_same_crowd_that_swapped_and_that_computed_again(capsys):
    one, other = RECORDS / "crowd.jsonl", RECORDS / "crowd-recompute.jsonl"
    assert main(["diff", str(one), str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("decision") and "mode swap" in lines[1]
    assert "mode recompute" in lines[2]
    at = lines.index("what followed (first → second):")
    first, second = outcome(read_all(one)), outcome(read_all(other))
    steps = [line for line in lines[at:] if line.startswith("  steps:")]
    if first.totals["steps"] == second.totals["steps"]:
        assert not steps
    else:
        assert f"{first.totals['steps']} → {second.totals['steps']}" in steps[0]
    computed = second.totals["tokens computed"] - first.totals["tokens computed"]
    assert f"({computed:+,})" in "\n".join(lines[at:])


def test_both_records_on_one_page(tmp_path, capsys):
    one, other = RECORDS / "crowd.jsonl", RECORDS / "crowd-recompute.jsonl"
    assert main(["diff", str(one), str(other), "-o", str(tmp_path / "both")]) == 1
    page = (tmp_path / "both" / "index.html").read_text()
    assert 'src="first.html"' in page and 'src="second.html"' in page
    assert '"followed":["' in page and "Content-Security-Policy" in page
    for name in ("first", "second"):
        assert 'id="record"' in (tmp_path / "both" / f"{name}.html").read_text()
    assert "open it in a browser" in capsys.readouterr().out


def test_a_record_beside_itself_has_nothing_to_tell():
    events = read_all(RECORDS / "crowd.jsonl")
    told = what_followed(outcome(events), outcome(events))
    assert told[1:] == ["  8 requests of 8 got every step at the same time"]


def test_a_request_that_ends_later_is_named():
    events = read_all(RECORDS / "crowd.jsonl")
    one, other = outcome(events), outcome(events)
    other.fates[3].ended += 7
    other.fates[3].preemptions = 9
    before, name = one.fates[3], one.fates[3].name
    line = f"  {name}: ended in step {before.ended} → {before.ended + 7}, preempted"
    assert any(told.startswith(line) for told in what_followed(one, other))
