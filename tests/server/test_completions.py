from __future__ import annotations

from fake_engine import expected_text


def test_a_completion_is_whole(server):
    answer = server.complete("hello", max_tokens=8, model="tiny")
    choice = answer["choices"][0]
    assert choice["text"] == expected_text(b"hello", 8)
    assert choice["finish_reason"] == "length" and choice["stop_reason"] is None
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
