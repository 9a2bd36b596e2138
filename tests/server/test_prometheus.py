"""A real Prometheus scrapes /metrics with the key, and what vLLM's dashboards ask has an answer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from tests.server.test_status import metrics, value

pytestmark = pytest.mark.slow

KEY = "open-sesame"
MINE = 'job="glasshouse",model_name="tiny",engine="0"'
RATE = "[1m]"

HISTOGRAMS = (
    "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds", "vllm:request_inference_time_seconds",
    "vllm:request_prompt_tokens", "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens", "vllm:request_params_n",
    "vllm:request_params_max_tokens", "vllm:request_num_preemptions", "vllm:iteration_tokens_total",
)  # fmt: skip
COUNTERS = (
    "vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total", "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total",
)  # fmt: skip
GAUGES = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
)  # fmt: skip


def questions() -> list[str]:
    """What the dashboards that vLLM ships ask of each series, in words of our own."""
    asked = [f"sum by (model_name) (rate({name}{{{MINE}}}{RATE}))" for name in COUNTERS]
    asked += [f"max by (instance, engine) ({name}{{{MINE}}})" for name in GAUGES]
    for name in HISTOGRAMS:
        buckets = f"sum by (le) (rate({name}_bucket{{{MINE}}}{RATE}))"
        asked.append(f"histogram_quantile(0.95, {buckets})")
        asked.append(f"rate({name}_sum{{{MINE}}}{RATE}) / (rate({name}_count{{{MINE}}}{RATE}) > 0)")
    asked += [
        f'max(vllm:engine_sleep_state{{{MINE},sleep_state="awake"}}) == 1',
        f'sum(vllm:num_requests_waiting_by_reason{{{MINE},reason="capacity"}})',
        f'sum(vllm:num_requests_waiting_by_reason{{{MINE},reason="deferred"}})',
        f"sum by (finished_reason) (rate(vllm:request_success_total{{{MINE}}}{RATE}))",
        f"sum by (source) (rate(vllm:prompt_tokens_by_source_total{{{MINE}}}{RATE}))",
        "sum by (status) (rate(http_requests_total{job='glasshouse'}[1m]))",
        "sum by (handler) (rate(http_requests_total{job='glasshouse',method='POST'}[1m]))",
        "sum by (handler) (rate(http_request_duration_seconds_sum{job='glasshouse'}[1m]))",
        "http_requests_total{handler='/v1/completions',method='POST',status='2xx'} > 0",
        "http_requests_total{handler='none',method='GET',status='4xx'} > 0",
        "rate(process_cpu_seconds_total{job='glasshouse'}[1m])",
        "process_resident_memory_bytes{job='glasshouse'} > 1e7",
        "process_virtual_memory_bytes > process_resident_memory_bytes",
        "time() - process_start_time_seconds{job='glasshouse'} > 0",
        "process_open_fds{job='glasshouse'} / process_max_fds{job='glasshouse'} < 1",
        f'vllm:cache_config_info{{{MINE},block_size="16",num_gpu_blocks="256",cache_dtype="auto",'
        'enable_prefix_caching="True",gpu_memory_utilization="0.9"} == 1',
        "up{job='glasshouse'} == 1",
    ]
    return asked


class Prometheus:
    """The program of Debian's package `prometheus`, which scrapes one server."""

    def __init__(self, folder, server):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = folder / "prometheus.yml"
        config.write_text(
            "scrape_configs:\n"
            "- job_name: glasshouse\n"
            "  scrape_interval: 1s\n"
            f"  authorization: {{credentials: {KEY}}}\n"
            f"  static_configs: [{{targets: ['{server.url.removeprefix('http://')}']}}]\n"
            "- job_name: stranger\n"
            "  scrape_interval: 1s\n"
            "  metrics_path: /metrics\n"
            f"  static_configs: [{{targets: ['{server.url.removeprefix('http://')}']}}]\n"
        )
        flags = (f"--config.file={config}", f"--storage.tsdb.path={folder}/data")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}"],
                stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"},
            )  # fmt: skip
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def ask(self, query: str) -> list:
        answer = self.http.get("/api/v1/query", params={"query": query})
        if answer.status_code == 503:  # it has begun to listen, and isn't ready yet
            return []
        assert answer.json()["status"] == "success", answer.text
        found = answer.json()["data"]["result"]
        return [one for one in found if one["value"][1] != "NaN"]

    def wait_for(self, query: str) -> list:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if found := self.ask(query):
                    return found
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        raise TimeoutError(f"{query}: no data. {self.log.read_text()[-1000:]}")

    def close(self) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def scraped(run_server, tmp_path_factory):
    if shutil.which("prometheus") is None:
        pytest.skip("needs the program of Debian's package prometheus")
    with run_server(api_key=KEY) as server:
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), server)
        try:
            done = 0
            while done < 3:  # rates need a rise between two scrapes
                before = prometheus.wait_for("count_over_time(up{job='glasshouse'}[1h])")
                server.complete("a prompt of two blocks, so that it is cached", max_tokens=20)
                server.http.get("/nowhere")
                seen = int(before[0]["value"][1])
                prometheus.wait_for(f"count_over_time(up{{job='glasshouse'}}[1h]) > {seen + 1}")
                done += 1
            yield prometheus
        finally:
            prometheus.close()


@pytest.mark.parametrize("query", questions())
def test_a_question_of_the_dashboards_has_an_answer(scraped, query):
    assert scraped.wait_for(query)


def test_without_the_key_nothing_is_scraped(scraped):
    assert scraped.wait_for("up{job='stranger'} == 0")
    assert not scraped.ask("vllm:num_requests_running{job='stranger'}")


def test_prometheus_finds_nothing_wrong_with_the_text(server):
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool of Debian's package prometheus")
    server.complete("a", max_tokens=1)
    text = server.http.get("/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert b"error" not in done.stderr.lower(), done.stderr.decode()


def test_cached_tokens_and_preemptions_are_counted(run_server):
    with run_server(num_blocks=8, preemption_mode="recompute") as small:
        prompt = "a prompt of more than two blocks of sixteen"
        for _ in range(2):
            small.complete(prompt, max_tokens=1)
        small.complete(["abc", "def", "ghi", "jkl"], max_tokens=40, ignore_eos=True)
        families = metrics(small)
        cached = value(families, "vllm:prompt_tokens_cached_total")
        assert (
            cached
            == 32
            == value(families, "vllm:prompt_tokens_by_source_total", source="local_cache_hit")
        )
        computed = value(families, "vllm:prompt_tokens_by_source_total", source="local_compute")
        assert cached + computed == value(families, "vllm:prompt_tokens_total")
        requests = value(families, "vllm:request_num_preemptions_count")
        assert requests == 6
        assert value(families, "vllm:request_num_preemptions_sum") == value(
            families, "vllm:num_preemptions_total"
        ) > 0  # fmt: skip


def test_labels_are_escaped(run_server):
    with run_server(served_model_name='a "b" \\ c') as quoted:
        families = metrics(quoted)
        value(families, "vllm:num_requests_running", model_name='a "b" \\ c')
