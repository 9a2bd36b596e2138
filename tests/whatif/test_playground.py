"""The playground of the site: a scheduler's policy, given as text, runs and gives a record."""

from __future__ import annotations

import json

from engine.trace.files import read_all
from engine.trace.replay import Replay
from engine.whatif.playground import play


def test_the_playground_gives_a_record_that_replays(tmp_path):
    answer = json.loads(play('{"blocks": 16, "requests": 12, "shared": 16}'))
    path = tmp_path / "record.jsonl"
    path.write_text(answer["record"])
    events = read_all(path)
    Replay.of(events).check()
    assert answer["rows"]["preemptions"] > 0 and answer["rows"]["tokens from the cache"] > 0
    for wrong, said in (
        ("{", "DecodeError"),
        ('{"block": 1}', "block"),
        ('{"seats": 0}', "--max-num-seqs"),
    ):
        assert said in json.loads(play(wrong))["error"]
    assert "no class Policy" in json.loads(play("{}", "x = 1"))["error"]
