from __future__ import annotations

from tests.server.tiny_tokenizer import ASSISTANT, END, USER

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
PROMPT = [USER, *b"hi", END, ASSISTANT]


def chat(server, messages=HI, **fields):
    answer = server.http.post(CHAT, json={"messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_answer_is_whole(server):
    answer = chat(server, max_completion_tokens=6, return_token_ids=True, model="tiny")
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["prompt_token_ids"] == PROMPT
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == bytes(choice["token_ids"]).decode()
    assert choice["finish_reason"] == "length" and choice["logprobs"] is None
    assert answer["usage"]["prompt_tokens"] == 5 and answer["usage"]["completion_tokens"] == 6


def test_the_answer_may_fill_the_context(server):
    assert chat(server)["usage"]["total_tokens"] == 512


def test_max_completion_tokens_wins(server):
    answer = chat(server, max_completion_tokens=3, max_tokens=9)
    assert answer["usage"]["completion_tokens"] == 3


def test_content_parts(server):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    answer = chat(server, [{"role": "user", "content": parts}], max_tokens=1, return_token_ids=True)
    assert answer["prompt_token_ids"] == [USER, *b"h\ni", END, ASSISTANT]


def test_the_last_message_can_be_continued(server):
    messages = [*HI, {"role": "assistant", "content": "Well"}]
    answer = chat(
        server, messages, max_tokens=1, continue_final_message=True, return_token_ids=True
    )
    assert answer["prompt_token_ids"] == [USER, *b"hi", END, ASSISTANT, *b"Well"]


def test_logprobs(server):
    answer = chat(server, max_tokens=3, logprobs=True, top_logprobs=2)
    choice = answer["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    for entry in content:
        assert entry["bytes"] == list(entry["token"].encode())
        assert len(entry["top_logprobs"]) == 2
        assert entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"])
    bare = chat(server, max_tokens=3, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in bare] == [[], [], []]


def test_prompt_logprobs(server):
    answer = chat(server, max_tokens=1, prompt_logprobs=1)
    assert answer["prompt_logprobs"][0] is None
    assert [list(p) for p in answer["prompt_logprobs"][1:]] == [[str(t)] for t in PROMPT[1:]]


def test_unknown_model(server):
    error = server.refusal(CHAT, status=404, messages=HI, model="other")
    assert error["param"] == "model"


def test_tool_calls_of_earlier_answers_reach_the_template(run_server):
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
    )
    with run_server(chat_template=template) as server:
        for arguments in ('{"city": "Bern"}', {"city": "Bern"}):
            call = {
                "id": "1",
                "type": "function",
                "function": {"name": "f", "arguments": arguments},
            }
            messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
            body = {"messages": messages, "max_tokens": 2, "return_token_ids": True}
            answer = server.http.post("/v1/chat/completions", json=body).json()
            assert bytes(answer["prompt_token_ids"]) == b"hiBern"
        call["function"]["arguments"] = "{"
        error = server.refusal("/v1/chat/completions", messages=messages)
        assert error["param"] == "messages.1.tool_calls.0.function.arguments"
