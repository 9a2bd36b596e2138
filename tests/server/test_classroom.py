"""A class: phones join by a code, ask one question at a time, and see their request's life."""

from __future__ import annotations

import time

import pytest

from engine.server.pupils import MOST_NAMES, ClassError, Classroom, address
from engine.trace.names import Names


@pytest.fixture(scope="module")
def taught(run_server):
    with run_server(classroom=True, api_key=["secret"], step_s=0.002) as server:
        yield server


@pytest.fixture(scope="module")
def code(taught):
    found = taught.http.get("/class/code", params={"origin": "http://10.0.0.7:8000"}).json()
    assert found["address"] == f"http://10.0.0.7:8000/class#{found['code']}"
    assert found["picture"].startswith("data:image/svg+xml")
    return found["code"]


def ask(server, **fields):
    """What a phone sends: without the API key."""
    return server.http.post("/class/ask", json=fields, headers={"Authorization": ""})


def test_a_phone_needs_the_code_and_no_key(taught, code):
    phone = {"name": "Ada", "question": "hello"}
    assert taught.http.get("/class", headers={"Authorization": ""}).status_code == 200
    assert ask(taught, code="WRONG", **phone).status_code == 403
    query = {"code": "WRONG", "name": "Ada"}
    refused = taught.http.get("/class/life", params=query, headers={"Authorization": ""})
    assert refused.status_code == 403
    # the code itself is for who has the key
    assert taught.http.get("/class/code", headers={"Authorization": ""}).status_code == 401
    answer = ask(taught, code=code.lower(), **phone)
    assert answer.status_code == 200 and answer.text.rstrip().endswith("data: [DONE]")


def test_its_request_has_its_name_and_its_life(taught, code):
    assert ask(taught, code=code, name="Ben", question="hello").status_code == 200
    deadline = time.monotonic() + 10
    lines: list[str] = []
    while not any("finished" in line for line in lines):
        assert time.monotonic() < deadline, lines
        life = taught.http.get("/class/life", params={"code": code, "name": "Ben"}).json()
        lines = life["lines"]
        time.sleep(0.05)
    assert life["open"] is False
    requests = taught.http.get("/trace/requests").json()["requests"]
    assert any(name.startswith("chatcmpl-as-Ben-") for name in requests)
    nobody = taught.http.get("/class/life", params={"code": code, "name": "Nobody"}).json()
    assert nobody == {"open": False, "lines": []}


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"name": "x1", "question": "hello"}, "1 to 12 letters"),
        ({"name": "", "question": "hello"}, "1 to 12 letters"),
        ({"name": "Cleo", "question": ""}, "question"),
        ({"name": "Cleo", "question": "x" * 301}, "question"),
    ],
    ids=["digits", "no name", "nothing", "too long"],
)
def test_what_a_phone_sends_is_bounded(taught, code, fields, said):
    answer = ask(taught, code=code, **fields)
    assert 400 <= answer.status_code < 500 and said in answer.json()["error"]["message"]


def test_a_phone_has_one_open_question_until_its_end(taught, code):
    """Also if its owner leaves in the middle: the next one may be asked then."""
    body = {"code": code, "name": "Dan", "question": "a long one"}
    with taught.http.stream("POST", "/class/ask", json=body) as answer:
        assert answer.status_code == 200
        second = ask(taught, code=code, name="Dan", question="and another")
        assert second.status_code == 409 and "open question" in second.json()["error"]["message"]
    deadline = time.monotonic() + 10
    while ask(taught, code=code, name="Dan", question="again").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_class_is_full(code):
    room = Classroom()
    letters = "ABCDEFGHIJ"
    for i in range(MOST_NAMES):
        room.ask(f"{letters[i // 10]}{letters[i % 10]}")
    with pytest.raises(ClassError, match="full"):
        room.ask("Late")


def test_without_the_flag_there_is_none(server):
    assert server.http.get("/class/code", params={"origin": "http://a"}).status_code == 204
    for path in ("/class", "/class/life?code=A&name=B"):
        answer = server.http.get(path)
        assert answer.status_code == 404 and "--classroom" in answer.text
    assert ask(server, code="A", name="B", question="c").status_code == 404


def test_two_of_the_same_name_are_told_apart():
    names = Names()
    first, second = (names.name(f"chatcmpl-as-Ada-{i:08x}") for i in range(2))
    assert first == "Ada" and second == "Ada-2"
    assert names.name("chatcmpl-somebody-else") == "req-3"


def test_phones_are_not_sent_to_the_teachers_own_machine():
    where = address("http://localhost:8000", "/api", "ABCDE")
    assert where.endswith(":8000/api/class#ABCDE")
    assert address("https://x.koyeb.app", "", "ABCDE") == "https://x.koyeb.app/class#ABCDE"
