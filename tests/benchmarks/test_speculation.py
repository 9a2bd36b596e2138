"""The table of what proposals gain has a line for each kind, also where nothing was proposed."""

from __future__ import annotations

from benchmarks.speculation import KINDS, Case, markdown


def test_the_table():
    about = {"plain_s": 2.0, "proposing_s": 1.0, "tokens": 100}
    cases = [
        Case("JSON", "greedy", 1, steps=40, proposed=80, accepted=60, best_steps=30, **about),
        Case(
            "JSON",
            "greedy",
            1,
            steps=60,
            proposed=20,
            accepted=15,
            best_steps=50,
            same=False,
            **about,
        ),
        Case("all kinds", "greedy", 64, steps=100, **about),
    ]
    text = markdown(cases, 100, 3)
    assert "| JSON | greedy | 1 | 75% of 100 | 2.00 | 2.50 | 50 | 100 | 2.00 × | 1 of 2 |" in text
    assert (
        "| all kinds | greedy | 64 | none proposed | 1.00 | – | 50 | 100 | 2.00 × | 1 of 1 |"
        in text
    )


def test_each_kind_has_prompts():
    prompts = [prompt for kind in KINDS.values() for prompt in kind()]
    assert len(set(prompts)) == len(prompts) == 5 * len(KINDS)
    assert all(20 < len(prompt) < 2000 for prompt in prompts)
