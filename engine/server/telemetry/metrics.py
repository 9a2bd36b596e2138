"""Serve /metrics: Prometheus' text format, with the names and labels of vLLM's dashboards.

What those names call a request is one *sequence* here: a request with n = 3 succeeds three times.
`glasshouse:` names are our own: they separate what the one "cache usage" merges.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.core.messages import CoreRequest, KVShape, StepStats
from engine.server.telemetry.process import ProcessSeries
from engine.server.telemetry.series import Counted, Histogram, Numbers, SeriesSet
from engine.server.telemetry.spec_decode import SpecDecodeSeries
from engine.text.request_text import RequestText

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
    20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
_N = (1, 2, 5, 10, 20, 50, 100)
_PREEMPTIONS = (0, 1, 2, 3, 4, 5, 10, 20)
_ANSWER_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
PROBES = frozenset({"/metrics", "/health", "/load", "/ping", "/version"})
"""Paths that machines poll: their many answers would hide those to people."""


class Metrics:
    """Hold all series of one server."""

    def __init__(self, config: EngineConfig):
        self.config = config
        self.labels = {"model_name": config.model_name, "engine": "0"}
        self.series = SeriesSet(self.labels)
        self.cache_info = SeriesSet(self.labels)  # empty until the model is loaded
        self._last_step = 0
        self._told_step = 0
        self._stats = StepStats()
        self.http = HttpSeries()
        self.process = ProcessSeries()
        self.observe_answer = self.http.observe
        self.block_size = 0  # unknown until the model is loaded

        self.running = self._gauge("num_requests_running", "Sequences that run.")
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait for their turn.")
        self.events_lost = self.series.counter(
            "glasshouse:events_lost", "Events of the record that one of its readers couldn't take."
        )
        self.waiting_by_reason = self.series.gauge(
            "vllm:num_requests_waiting_by_reason",
            "The same by reason: here all of them wait for capacity, in order.",
            ("reason",),
            [("capacity",), ("deferred",)],
        )
        sleeping = self.series.gauge(
            "vllm:engine_sleep_state",
            "1 for the state that the engine is in: here it is always awake.",
            ("sleep_state",),
            [("awake",), ("weights_offloaded",), ("discard_all",)],
        )
        sleeping.set(1, ("awake",))
        self.kv_usage = self._gauge(
            "kv_cache_usage_perc",
            "Share of the KV blocks that some request references, 0 to 1; cached blocks that "
            "nobody references are free.",
        )
        self.kv_blocks = self._by_state("kv_blocks", "KV blocks by state.")
        self.kv_tokens = self._by_state("kv_tokens", "The same, as room for tokens.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of started requests.")
        self.cached_tokens = self._counter(
            "prompt_tokens_cached", "Of them, tokens whose K/V were in the prefix cache."
        )
        self.by_source = self.series.counter(
            "vllm:prompt_tokens_by_source",
            "The same, by where the K/V come from.",
            ("source",),
            [("local_compute",), ("local_cache_hit",), ("external_kv_transfer",)],
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_hits = self._counter("prefix_cache_hits", "Of them, tokens found.")
        self.preemptions = self._counter("num_preemptions", "Preemptions.")
        self.success = self.series.counter(
            "vllm:request_success",
            "Sequences that ended, by reason.",
            ("finished_reason",),
            [("stop",), ("length",), ("abort",), ("error",)],
        )

        self.ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.")
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens.")
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time of a sequence's later tokens."
        )
        self.e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.")
        self.queue_time = self._histogram("request_queue_time_seconds", "Waiting for admission.")
        self.inference = self._histogram(
            "request_inference_time_seconds", "First admission to last token."
        )
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "First admission to first token."
        )
        self.decode = self._histogram("request_decode_time_seconds", "First to last token.")
        self.n_prompt = self._histogram("request_prompt_tokens", "Prompt tokens.", _TOKENS)
        self.n_generation = self._histogram(
            "request_generation_tokens", "Generated tokens.", _TOKENS
        )
        self.n_max_generation = self._histogram(
            "request_max_num_generation_tokens", "The longest of a request's n answers.", _TOKENS
        )
        self.n_preemptions = self._histogram(
            "request_num_preemptions", "How often a request was preempted.", _PREEMPTIONS
        )
        self.params_n = self._histogram("request_params_n", "The parameter n.", _N)
        self.params_max_tokens = self._histogram(
            "request_params_max_tokens", "The parameter max_tokens.", _TOKENS
        )
        self.step_tokens = self._histogram(
            "iteration_tokens_total",
            "Tokens generated in a step, and the computed ones of prompts that it completed.",
            _STEP_TOKENS,
        )
        asked = config.speculation
        self.spec_decode = (
            SpecDecodeSeries(self.series, asked.num_speculative_tokens) if asked else None
        )

    def counted(self) -> list[Counted]:
        """Return what was counted, for `text` in another server process."""
        return [self.series.counted(), self.http.series.counted()]

    def text(self, others: Sequence[list[Counted]] = (), pids: Sequence[int] = ()) -> bytes:
        """Write all series.

        `others`: what other server processes of this engine counted; `pids`: those that run.
        """
        self._set_gauges(self._stats)
        return b"".join(
            [
                self.series.text([other[0] for other in others]),
                self.cache_info.text(),
                self.http.series.text([other[1] for other in others]),
                self.process.text(pids),
            ]
        )

    def set_cache(self, kv: KVShape) -> None:
        """Set the labels that describe the KV cache, of a series that is always 1."""
        self.block_size = kv.block_size
        config = self.config
        facts = {
            "block_size": kv.block_size,
            "cache_dtype": config.kv_cache_dtype,
            "enable_prefix_caching": config.enable_prefix_caching,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
            "num_cpu_blocks": kv.num_host_blocks,
            "num_gpu_blocks": kv.num_blocks,
            "num_gpu_blocks_override": config.num_gpu_blocks_override,
            "prefix_caching_hash_algo": "blake2b",
            "sliding_window": None,
            "swap_space": config.swap_space,
        }
        told = {name: str(value) for name, value in facts.items()}
        self.cache_info = SeriesSet({**self.labels, **told})
        self.cache_info.gauge("vllm:cache_config_info", "The KV cache.").set(1)

    def observe_step(self, stats: StepStats) -> None:
        """Take the state after a step, which `text()` shows from now on.

        Its counts are added once, however often that state is sent.
        """
        self._stats = stats
        if stats.told_step != self._told_step:
            self._told_step = stats.told_step
            if stats.tokens_told:
                self.step_tokens.observe(stats.tokens_told)
            if self.spec_decode is not None:
                self.spec_decode.observe(stats)
        if stats.step == self._last_step:
            return
        self._last_step = stats.step
        if stats.num_preemptions:
            self.preemptions.inc(stats.num_preemptions)
        if stats.prefix_queries:
            self.prefix_queries.inc(stats.prefix_queries)
            self.prefix_hits.inc(stats.prefix_hits)

    def _set_gauges(self, stats: StepStats) -> None:
        self.running.set(stats.num_running)
        self.waiting.set(stats.num_waiting)
        self.waiting_by_reason.set(stats.num_waiting, ("capacity",))
        self.kv_usage.set(stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0)
        never_used = stats.blocks_total - stats.blocks_used - stats.blocks_cached_free
        blocks = {
            "used": stats.blocks_used,
            "cached_free": stats.blocks_cached_free,
            "never_used": never_used,
        }
        for state, number in blocks.items():
            self.kv_blocks.set(number, (state,))
            self.kv_tokens.set(number * self.block_size, (state,))

    def count_success(self, reason: str) -> None:
        self.success.inc(1, (reason,))

    def count_prompt(self, num_tokens: int, num_cached: int) -> None:
        """Count the prompt of a request that has begun, of which `num_cached` tokens were
        cached."""
        self.prompt_tokens.inc(num_tokens)
        self.cached_tokens.inc(num_cached)
        self.by_source.inc(num_cached, ("local_cache_hit",))
        self.by_source.inc(num_tokens - num_cached, ("local_compute",))

    def next_token(self, since_last_s: float) -> None:
        """Count one more token of a sequence, which has some already."""
        self.generation_tokens.inc()
        self.inter_token.observe(since_last_s)

    # ---------------------------------------------------------------------------- making the series

    def _gauge(self, name: str, text: str) -> Numbers:
        return self.series.gauge(f"vllm:{name}", text)

    def _counter(self, name: str, text: str) -> Numbers:
        return self.series.counter(f"vllm:{name}", text)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...] = _SECONDS) -> Histogram:
        return self.series.histogram(f"vllm:{name}", text, bounds)

    def _by_state(self, name: str, text: str) -> Numbers:
        states = [("used",), ("cached_free",), ("never_used",)]
        return self.series.gauge(f"glasshouse:{name}", text, ("state",), states)


class RequestClock:
    """Time one request's sequences: the core's times, and when their tokens arrive."""

    def __init__(self, metrics: Metrics, request: CoreRequest, text: RequestText):
        self.metrics = metrics
        self.arrival_s = request.arrival_ns / 1e9
        self.text = text
        self.first_s: dict[int, float] = {}  # by index: time of its first token, CLOCK_MONOTONIC
        self.last_s: dict[int, float] = {}
        metrics.params_n.observe(request.params.n)
        if request.params.max_tokens is not None:
            metrics.params_max_tokens.observe(request.params.max_tokens)

    def tokens(self, index: int, number: int, now: float) -> None:
        """Book `number` tokens of a sequence, arrived `now` (`time.monotonic`)."""
        metrics = self.metrics
        metrics.generation_tokens.inc(number)
        last = self.last_s.get(index)
        if last is None:
            self.first_s[index] = now
            metrics.ttft.observe(now - self.arrival_s)
            if index == 0:
                self._prompt_computed()
                metrics.prefill.observe(max(0.0, now - self.text.first_scheduled_ns / 1e9))
        else:
            metrics.inter_token.observe(now - last)
        self.last_s[index] = now

    def finished(self, index: int, reason: str) -> None:
        """Book the end of a sequence."""
        metrics = self.metrics
        now = time.monotonic()
        number = len(self.text.sequences[index].token_ids)
        metrics.count_success(reason)
        metrics.e2e.observe(now - self.arrival_s)
        metrics.inference.observe(max(0.0, now - self.text.first_scheduled_ns / 1e9))
        metrics.n_prompt.observe(len(self.text.prompt_token_ids))
        metrics.n_generation.observe(number)
        if index == 0 and index not in self.first_s:  # max_tokens 0, or nothing could be drawn
            self._prompt_computed()
        if index in self.first_s:
            decode_s = self.last_s[index] - self.first_s[index]
            metrics.decode.observe(decode_s)
            if number > 1:
                metrics.per_token.observe(decode_s / (number - 1))
        if self.text.finished:
            longest = max(len(sequence.token_ids) for sequence in self.text.sequences)
            metrics.n_max_generation.observe(longest)
            metrics.n_preemptions.observe(self.text.num_preemptions)

    def aborted(self) -> None:
        """Book the end of the sequences that haven't ended otherwise."""
        for sequence in self.text.sequences:
            if sequence.finish_reason is None:
                self.metrics.count_success("abort")

    def _prompt_computed(self) -> None:
        usage = self.text.usage
        self.metrics.count_prompt(usage.prompt_tokens, usage.cached_tokens)
        self.metrics.queue_time.observe(self.text.queued_ns / 1e9)


class HttpSeries:
    """Count HTTP answers and their times by route, as vLLM's dashboards query them.

    Each is counted when it is over; a stream's time is that of the whole stream.
    """

    def __init__(self) -> None:
        self.series = SeriesSet({})
        self._requests = self.series.counter(
            "http_requests",
            "Answers by route, method and class of status; probes are left out.",
            ("handler", "method", "status"),
        )
        self._seconds = self.series.histograms(
            "http_request_duration_seconds",
            "Time from a request to the end of its answer.",
            _ANSWER_SECONDS,
            ("handler", "method"),
        )

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer. `route`: as declared, so that there are few; "none" without one."""
        if route not in PROBES:
            self._requests.inc(1, (route, method, f"{status // 100}xx"))
            self._seconds.observe(seconds, (route, method))
