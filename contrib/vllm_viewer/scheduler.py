"""Start vLLM with a scheduler that records what it does.

`vllm serve MODEL --scheduler-cls contrib.vllm_viewer.scheduler.RecordingScheduler`, with this
repository on PYTHONPATH and GLASSHOUSE_RECORD=record.jsonl. Made for vLLM 0.32, whose scheduler
interface isn't public: expect to follow each release.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterable
from typing import Any

from vllm import __version__
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec

from contrib.vllm_viewer.watch import Watch
from engine.trace.events import EngineKvSized, EngineModelLoaded
from engine.trace.files import JsonlWriter
from engine.trace.recorder import Recorder

RECORD = "GLASSHOUSE_RECORD"
NAMED = "vllm-record.jsonl"


class Recording:
    """Watch a scheduler of vLLM: a base for the classes below, before vLLM's own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._recorder = Recorder("steps")
        writer = JsonlWriter(os.environ.get(RECORD) or NAMED)
        self._recorder.subscribe(writer)
        atexit.register(self._recorder.close)
        pool = self.kv_cache_manager.block_pool
        groups = self.kv_cache_config.kv_cache_groups
        # Where a window slides, or layers differ, blocks come and go without being told.
        plain = len(groups) == 1 and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)
        self._watch = Watch(self._recorder.record, self._at, pool.blocks if plain else None)
        self._free = pool.get_num_free_blocks
        self._begin(groups[0].kv_cache_spec)

    def _at(self, step: int) -> None:
        self._recorder.step = step

    def _begin(self, spec: Any) -> None:
        model, cache = self.vllm_config.model_config, self.cache_config
        limits = self.scheduler_config
        config = {
            "model": model.model,
            "max_model_len": model.max_model_len,
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "scheduling_policy": str(limits.policy),
            "preemption_mode": "recompute",
            "enable_prefix_caching": bool(cache.enable_prefix_caching),
            "async_scheduling": bool(limits.async_scheduling),
            "block_size": self.block_size,
        }
        sized = EngineKvSized(
            num_blocks=self.kv_cache_config.num_blocks,
            block_size=self.block_size,
            bytes_per_block=spec.page_size_bytes * len(self._layers()),
            num_layers=len(self._layers()),
            num_kv_heads=getattr(spec, "num_kv_heads", 0),
            head_dim=getattr(spec, "head_size", 0),
            kv_dtype=str(cache.cache_dtype),
            max_model_len=model.max_model_len,
        )
        loaded = EngineModelLoaded(
            model=model.model,
            architecture=model.architecture,
            implementation="vLLM",
            dtype=str(model.dtype).removeprefix("torch."),
        )
        self._watch.begin(__version__, config, sized, loaded)

    def _layers(self) -> list[str]:
        return [
            name for group in self.kv_cache_config.kv_cache_groups for name in group.layer_names
        ]

    def _num_waiting(self) -> int:
        return self.get_request_counts()[1]

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        self._watch.queued(
            request, self._num_waiting(), str(self.scheduler_config.policy) != "fcfs"
        )

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: Any
    ) -> list[Any]:
        ended = super().finish_requests(request_ids, finished_status)
        self._watch.aborted(ended)
        return ended

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        started_ns = time.monotonic_ns()
        output = super().schedule(*arguments, **options)
        running, waiting = self.get_request_counts()
        budget = self.scheduler_config.max_num_batched_tokens
        self._watch.planned(output, started_ns, running, waiting, budget, self._free())
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        began_ns = time.monotonic_ns()
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._watch.finished(scheduler_output, began_ns)
        return outputs

    def reset_prefix_cache(self, *arguments: Any, **options: Any) -> bool:
        done = super().reset_prefix_cache(*arguments, **options)
        self._watch.forgotten()
        return done

    def shutdown(self) -> None:
        super().shutdown()
        self._recorder.close()


class RecordingScheduler(Recording, AsyncScheduler):
    """Schedule as vLLM does by default, and record it."""


class PlainRecordingScheduler(Recording, Scheduler):
    """Schedule as vLLM does with `--no-async-scheduling`, and record it."""
