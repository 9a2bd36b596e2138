"""A class votes: one vote a phone a question, counted for the teacher, closed at the reveal."""

from __future__ import annotations

import pytest

from engine.server.pupils import MOST_NAMES, ClassError
from engine.server.voting import MOST_CHARACTERS_SHOWN, MOST_CHOICES, Voting

ASKED = {"question": "Which one gives way?", "choices": ["the first", "the last", "the longest"]}


@pytest.fixture(scope="module")
def taught(run_server):
    with run_server(classroom=True, api_key=["secret"]) as server:
        found = server.http.get("/class/code", params={"origin": "http://10.0.0.7:8000"})
        server.code = found.json()["code"]
        yield server


def phone(number: int) -> str:
    return f"{number:016x}"


def choose(server, vote: int, who: str, choice: int, code: str = ""):
    """What a phone sends: without the API key."""
    body = {"code": code or server.code, "phone": who, "number": vote, "choice": choice}
    return server.http.post("/class/choose", json=body, headers={"Authorization": ""})


def seen(server, who: str) -> dict:
    query = {"code": server.code, "phone": who}
    answer = server.http.get("/class/question", params=query, headers={"Authorization": ""})
    assert answer.status_code == 200
    return answer.json()


def test_phones_vote_once_and_see_the_votes_at_the_end(taught):
    vote = taught.http.post("/class/vote", json=ASKED).json()["number"]
    for number, choice in ((1, 2), (2, 2), (3, 1)):
        assert choose(taught, vote, phone(number), choice).json()["mine"] == choice
    again = choose(taught, vote, phone(3), 2)
    assert again.status_code == 409 and "has voted" in again.json()["error"]["message"]
    shown = seen(taught, phone(1))
    assert shown["question"] == ASKED["question"] and shown["mine"] == 2
    assert shown["counts"] == [] and shown["answer"] == 0  # before the reveal
    told = taught.http.get("/class/vote").json()
    assert told == {"number": vote, "open": True, "counts": [1, 2, 0], "phones": told["phones"]}
    joined = taught.http.get("/class/code", params={"origin": "http://a"}).json()["phones"]
    assert told["phones"] == joined >= 3  # voting is joining: a phone has looked before
    closed = taught.http.post("/class/vote/close", json={"number": vote, "answer": 2}).json()
    assert (closed["open"], closed["counts"]) == (False, [1, 2, 0])
    late = choose(taught, vote, phone(4), 2)
    assert late.status_code == 409 and "closed" in late.json()["error"]["message"]
    shown = seen(taught, phone(3))
    assert (shown["counts"], shown["answer"], shown["open"]) == ([1, 2, 0], 2, False)


def test_a_new_question_ends_the_one_before(taught):
    first = taught.http.post("/class/vote", json=ASKED).json()["number"]
    second = taught.http.post("/class/vote", json=ASKED).json()["number"]
    assert choose(taught, first, phone(1), 1).status_code == 409
    assert choose(taught, second, phone(1), 1).status_code == 200  # it may vote once on each
    gone = taught.http.post("/class/vote/close", json={"number": first, "answer": 1})
    assert gone.status_code == 409 and "not the one" in gone.json()["error"]["message"]
    assert seen(taught, phone(1))["open"] is True


def test_the_teachers_part_needs_the_key_and_the_phones_part_the_code(taught):
    nobody = {"Authorization": ""}
    for method, path, body in (
        ("POST", "/class/vote", ASKED),
        ("GET", "/class/vote", None),
        ("POST", "/class/vote/close", {"number": 1}),
    ):
        assert taught.http.request(method, path, json=body, headers=nobody).status_code == 401
    vote = taught.http.post("/class/vote", json=ASKED).json()["number"]
    assert choose(taught, vote, phone(9), 1, code="WRONG").status_code == 403
    query = {"code": "WRONG", "phone": phone(9)}
    assert taught.http.get("/class/question", params=query, headers=nobody).status_code == 403
    assert taught.http.get("/class/vote").json()["counts"] == [0, 0, 0]


@pytest.mark.parametrize(
    "who, choice, said",
    [("Ada", 1, "16 digits"), (phone(1), 0, "from 1 to 3"), (phone(1), 4, "from 1 to 3")],
    ids=["no phone", "too small", "too large"],
)
def test_a_vote_that_is_none_is_refused(taught, who, choice, said):
    vote = taught.http.post("/class/vote", json=ASKED).json()["number"]
    answer = choose(taught, vote, who, choice)
    assert answer.status_code == 409 and said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "asked",
    [
        {**ASKED, "choices": ["only one"]},
        {**ASKED, "choices": ["x"] * (MOST_CHOICES + 1)},
        {**ASKED, "question": "x" * (MOST_CHARACTERS_SHOWN + 1)},
        {**ASKED, "choices": ["x", "x" * (MOST_CHARACTERS_SHOWN + 1)]},
    ],
    ids=["one choice", "too many", "a long question", "a long choice"],
)
def test_what_a_class_is_asked_is_bounded(taught, asked):
    assert taught.http.post("/class/vote", json=asked).status_code in (400, 422)


def test_the_number_of_votes_is_bounded():
    voting = Voting()
    voting.ask("?", ["a", "b"])
    for number in range(MOST_NAMES):
        voting.choose(1, phone(number), 1)
        voting.for_phone(phone(number))
    with pytest.raises(ClassError, match="the most"):
        voting.choose(1, phone(MOST_NAMES), 1)
    voting.for_phone(phone(MOST_NAMES))
    voting.for_phone("no phone")
    assert voting.num_phones == MOST_NAMES
    assert voting.vote.counts == [MOST_NAMES, 0]


def test_an_answer_that_is_no_choice_closes_nothing():
    voting = Voting()
    voting.ask("?", ["a", "b"])
    with pytest.raises(ClassError, match="2 choices"):
        voting.close(1, 3)
    assert voting.vote.open


def test_without_the_flag_there_is_no_vote(server):
    for method, path, body in (
        ("POST", "/class/vote", ASKED),
        ("GET", "/class/vote", None),
        ("POST", "/class/vote/close", {"number": 1}),
        ("GET", "/class/question?code=ABCDE", None),
        ("POST", "/class/choose", {"code": "A", "phone": phone(1), "number": 1, "choice": 1}),
    ):
        answer = server.http.request(method, path, json=body)
        assert answer.status_code == 404 and "--classroom" in answer.text, path
