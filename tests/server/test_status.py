"""Health, metrics, tokenizer, models, key, queue limit, record."""

from __future__ import annotations

import json
import re
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.server.link import engine_client
from tests.server.fake_engine import fake
from tests.server.tiny_tokenizer import ASSISTANT, END, TH, USER

HI = [{"role": "user", "content": "hi"}]

GAUGES = "num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info"
COUNTERS = (
    "prompt_tokens generation_tokens prefix_cache_queries prefix_cache_hits num_preemptions "
    "request_success"
)
HISTOGRAMS = (
    "time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds "
    "request_time_per_output_token_seconds request_queue_time_seconds request_prefill_time_seconds "
    "request_inference_time_seconds request_decode_time_seconds request_prompt_tokens "
    "request_generation_tokens request_max_num_generation_tokens request_params_n "
    "request_params_max_tokens iteration_tokens_total"
)


def metrics(server) -> dict:
    """Families by name, with the values of their samples."""
    answer = server.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families: dict, name: str, **labels: str) -> float:
    for family in families.values():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise KeyError(name)


def test_metrics_have_the_names_and_labels_that_dashboards_query(server):
    server.complete("a", max_tokens=2)
    families = metrics(server)
    for names, kind in ((GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")):
        for name in names.split():
            family = families[f"vllm:{name}"]
            assert family.type == kind
            for sample in family.samples:
                assert sample.labels["model_name"] == "tiny" and sample.labels["engine"] == "0"
    text = server.http.get("/metrics").text
    for name in COUNTERS.split():
        assert re.search(rf"^vllm:{name}_total\{{", text, re.MULTILINE), name


def test_metrics_count_what_happened(run_server):
    with run_server() as fresh:
        fresh.complete("hello", max_tokens=7)
        fresh.complete("hello", max_tokens=3, n=2)
        fresh.wait_until_idle()
        families = metrics(fresh)
        assert value(families, "vllm:prompt_tokens_total") == 10
        assert value(families, "vllm:generation_tokens_total") == 13
        assert value(families, "vllm:request_success_total", finished_reason="length") == 3
        assert value(families, "vllm:prefix_cache_queries_total") == 10
        assert value(families, "vllm:time_to_first_token_seconds_count") == 3
        assert value(families, "vllm:inter_token_latency_seconds_count") == 6 + 2 + 2
        assert value(families, "vllm:request_params_n_sum") == 3
        assert value(families, "vllm:request_max_num_generation_tokens_sum") == 10
        assert value(families, "vllm:iteration_tokens_total_sum") == 5 + 7 + 5 + 2 * 3
        assert value(families, "vllm:iteration_tokens_total_count") == 7 + 3
        assert value(families, "vllm:kv_cache_usage_perc") == 0
        info = families["vllm:cache_config_info"].samples[0].labels
        assert info["block_size"] == "16" and info["num_gpu_blocks"] == "256"
        blocks = [
            value(families, "glasshouse:kv_blocks", state=state)
            for state in ("used", "cached_free", "never_used")
        ]
        assert blocks[0] == 0 and sum(blocks) == 256


def test_a_prompt_without_an_answer_is_counted_too(run_server):
    """Harnesses ask for the log-probabilities of nothing but prompts."""
    with run_server() as fresh:
        for n in (1, 2):
            fresh.complete("hello", max_tokens=0, echo=True, logprobs=1, n=n)
        fresh.wait_until_idle()
        families = metrics(fresh)
        assert value(families, "vllm:prompt_tokens_total") == 10
        local = "vllm:prompt_tokens_by_source_total"
        assert value(families, local, source="local_compute") == 10
        assert value(families, "vllm:request_queue_time_seconds_count") == 2
        assert value(families, "vllm:iteration_tokens_total_sum") == 10  # none was drawn
        assert value(families, "vllm:request_success_total", finished_reason="length") == 3
        # Such a prompt is computed whatever is cached: nothing is looked up.
        assert value(families, "vllm:prefix_cache_queries_total") == 0


def test_each_sequence_of_a_client_that_leaves_is_counted(run_server):
    with run_server(step_s=0.02) as slow:
        for n in (1, 3):
            body = {"prompt": "a", "max_tokens": 400, "stream": True, "n": n}
            with slow.http.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())
        slow.wait_until_idle()
        families = metrics(slow)
        assert value(families, "vllm:request_success_total", finished_reason="abort") == 1 + 3
        aborted = [line for line in slow.http.get("/trace").text.splitlines()
                   if json.loads(line)["kind"] == "request.aborted"]  # fmt: skip
        assert len(aborted) == 1 + 3


def test_a_request_that_the_core_refuses_has_not_ended(run_server):
    with run_server(max_num_seqs=2) as small:
        assert small.refusal(prompt="a", n=3, max_tokens=2)["param"] == "n"
        families = metrics(small)
        for reason in ("stop", "length", "abort", "error"):
            assert value(families, "vllm:request_success_total", finished_reason=reason) == 0


def test_metrics_time_what_a_request_waited_for(run_server):
    with run_server(step_s=0.05) as slow:
        slow.complete("hello", max_tokens=5)
        families = metrics(slow)
        ttft = value(families, "vllm:time_to_first_token_seconds_sum")
        decode = value(families, "vllm:request_decode_time_seconds_sum")
        e2e = value(families, "vllm:e2e_request_latency_seconds_sum")
        assert 0.05 <= ttft < 0.5 and 0.2 <= decode < 1
        assert e2e == pytest.approx(ttft + decode, abs=0.02)


def test_health_while_loading(run_server):
    with run_server(load=fake(load_s=1.5), wait=False) as young:
        answer = young.http.get("/health")
        assert answer.status_code == 503 and answer.json()["status"] == "loading"
        assert int(answer.headers["retry-after"]) > 0
        assert young.http.get("/ping").status_code == 503
        assert young.http.get("/version").status_code == 200
        refused = young.http.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        stages = set()
        while (answer := young.http.get("/health")).status_code == 503:
            stages.add(answer.json()["detail"])
            time.sleep(0.01)
        assert "pretending to load" in stages
        assert answer.json()["status"] == "ready"
        assert young.http.get("/ping").status_code == 200


@pytest.mark.timeout(60)
def test_an_engine_that_still_loads_is_not_waited_for(run_server, monkeypatch):
    """It would read the order to end only when it is ready, and has nothing to answer."""
    monkeypatch.setattr(engine_client, "EXIT_TIMEOUT_S", 1000.0)
    with run_server(load=fake(load_s=1000.0), wait=False) as young:
        while young.http.get("/health").json()["detail"] != "pretending to load":
            time.sleep(0.01)


def test_models(server):
    (card,) = server.http.get("/v1/models").json()["data"]
    assert card["id"] == "tiny" and card["max_model_len"] == 512
    assert card["root"] == server.service.config.model
    assert server.http.get("/v1/models/tiny").json()["id"] == "tiny"
    assert server.http.get("/v1/models/a/b").status_code == 404


def test_tokenize_and_back(server):
    text = "the café 🙂"
    answer = server.http.post("/tokenize", json={"prompt": text}).json()
    assert answer["tokens"] == [TH, *text.encode()[2:]]
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 512
    back = server.http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}
    chat = server.http.post("/tokenize", json={"messages": HI, "return_token_strs": True}).json()
    assert chat["tokens"] == [USER, *b"hi", END, ASSISTANT]
    assert chat["token_strs"] == ["<|user|>", "h", "i", "<|end|>", "<|assistant|>"]
    assert server.refusal("/tokenize")["message"].endswith("either prompt or messages.")
    assert server.refusal("/detokenize", tokens=[-1])["param"] == "tokens"


def test_key(run_server):
    with run_server(api_key="open-sesame") as guarded:
        with httpx.Client(base_url=guarded.url) as stranger:
            for path in ("/health", "/ping", "/version"):
                assert stranger.get(path).status_code == 200
            paths = ["/v1/models", "/metrics", "/load", "/trace", "/openapi.json", "/nothing"]
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "open-sesame"},
            ):
                for path in paths:
                    answer = stranger.get(path, headers=headers)
                    assert answer.status_code == 401 and answer.json()["error"]["code"] == 401
                answer = stranger.post("/v1/completions", json={"prompt": "a"}, headers=headers)
                assert answer.status_code == 401
            strange = stranger.get("/load", headers={b"Authorization": b"Bearer \xff\xfe"})
            assert strange.status_code == 401
        guarded.complete("a", max_tokens=1)


def test_queue_limit(run_server):
    with run_server(step_s=0.02, max_num_seqs=1, max_num_queued_reqs=2) as narrow:
        body = {"prompt": "hello", "max_tokens": 400, "stream": True}
        streams = []
        for _ in range(3):  # one runs, two wait
            stream = narrow.http.stream("POST", "/v1/completions", json=body)
            assert stream.__enter__().status_code == 200
            streams.append(stream)
            time.sleep(0.1)
        answer = narrow.http.post("/v1/completions", json=body)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == 503
        assert int(answer.headers["retry-after"]) > 0
        assert narrow.http.get("/load").json()["num_requests_waiting"] == 2
        for stream in streams:
            stream.__exit__(None, None, None)
        narrow.wait_until_idle()
        narrow.complete("a", max_tokens=1)


def test_trace_is_bounded_and_in_order(run_server):
    with run_server(trace_buffer=50) as small:
        small.complete("hello", max_tokens=100)
        time.sleep(0.2)
        events = [json.loads(line) for line in small.http.get("/trace").text.splitlines()]
        assert events.pop(0)["kind"] == "engine.snapshot"
        assert len(events) == 50
        core = [event["seq"] for event in events if event.get("src") != "server"]
        assert core == sorted(core)


def test_trace_file_holds_both_processes_events(run_server, tmp_path):
    path = tmp_path / "trace.jsonl"
    with run_server(trace_file=str(path)) as recorded:
        recorded.complete("hello", max_tokens=3)
    kinds = {json.loads(line)["kind"] for line in path.read_text().splitlines()}
    assert {"request.received", "request.tokenized", "request.finished", "step.finished"} <= kinds


def test_trace_without_text(run_server):
    with run_server(trace_text="off", trace="full") as private:
        private.complete("my secret", max_tokens=2, stop=["zzzz"])
        time.sleep(0.2)
        record = private.http.get("/trace").text
        assert "request.finished" in record
        assert "secret" not in record and "zzzz" not in record
        assert "token_ids" not in record and "text.tokens" not in record


def test_what_is_refused_or_warned_of_tells_no_text(run_server):
    """Errors may quote what they are about, as the client's own answers do."""
    tool = {"name": "a", "parameters": {"properties": {"b": {"type": "my secret"}}}}
    forced = {"tools": [{"type": "function", "function": tool}], "tool_choice": "required"}
    schema = {"type": "string", "format": "my secret"}
    with run_server(trace_text="off") as private:
        for body in (
            {"structured_outputs": {"json": {"type": "my secret"}}},
            {"structured_outputs": {"regex": "(my secret"}},
            {"structured_outputs": {"json": schema}},
            {"messages": HI, **forced},
        ):
            route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            private.http.post(route, json={"prompt": "a", "max_tokens": 2, **body})
        time.sleep(0.2)
        record = private.http.get("/trace").text
    assert record.count("request.refused") == 4 and "engine.warning" in record
    assert "secret" not in record


def test_a_record_says_how_its_tokens_read(run_server):
    with run_server() as server:
        server.complete("hello", max_tokens=2, trace="full")
        server.complete("quiet", max_tokens=2)
        server.wait_until_idle()
        time.sleep(0.2)
        events = [json.loads(line) for line in server.http.get("/trace").text.splitlines()]
    texts: dict[int, str] = {}
    for event in events:
        if event["kind"] == "text.tokens":
            texts |= event["texts"]
    prompts = [e.get("token_ids") for e in events if e["kind"] == "request.tokenized"]
    assert "".join(texts[str(token)] for token in prompts[0]) == "hello"
    assert prompts[1] is None  # only who asked for it is recorded in full
