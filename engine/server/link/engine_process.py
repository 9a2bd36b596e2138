"""Run the engine process: the core and the worker, apart from HTTP and text.

It loads the model, then runs its loop (`engine_loop`, with several servers `shared_loop`). It ends
on `Stop`, on a failure, and with its parent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from loguru import logger

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.garbage_collection import collector_off, quiet_collector
from engine.core.named_scheduler import named_scheduler
from engine.models.fitting_options import check_fitting
from engine.models.hub import find_draft, find_model
from engine.one_line import one_line
from engine.server import logs
from engine.server.link import wire
from engine.server.link.channel import Channel, Closed
from engine.server.link.engine_loop import EngineLoop
from engine.server.link.engine_start import Ends, Load
from engine.server.link.shared_loop import SharedLoop
from engine.trace.files import unpack
from engine.trace.packing_recorder import PackingRecorder
from engine.trace.recorder import Recorder

Progress = Callable[[str], None]
DOING = {
    "download": "downloading",
    "convert": "converting",
    "load": "loading the weights of",
}


def load_worker(config: EngineConfig, recorder: Recorder, progress: Progress) -> Any:
    """Load the model and return the real executor."""

    def bytes_done(what: str, done: int, total: int) -> None:
        share = done / total if total else 1.0
        progress(f"{DOING[what]} {config.model}: {share:.0%} of {total / 1e6:,.0f} MB")

    # Before importing torch, which takes seconds: report a missing model, and what it can't do.
    folder = find_model(
        config.model, config.revision, config.hf_token, bytes_done, config.download_dir
    )
    find_draft(config, bytes_done)
    check_fitting(config, folder)
    progress("importing torch")
    # NumPy's BLAS, which nothing here uses, takes a buffer for each thread: 40 MB on two cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with collector_off():
        from engine.server.link.surroundings import surroundings
        from engine.worker.model_runner import ModelRunner

    recorder.record(surroundings(config))
    runner = ModelRunner(config, recorder)
    if runner.platform.must_compile():
        progress(f"compiling the kernels for this CPU, then loading {config.model}")
    else:
        progress(f"loading {config.model}")
    runner.load(bytes_done)
    if not config.async_scheduling:
        runner.cores.hold()  # until this process ends; its loop runs on this thread
    return runner


def run_engine(config: EngineConfig, ends: Ends, load: Load) -> None:
    """Run the process. Each failure is sent as one `Failed` message; then the exit code is 1."""
    logs.configure(config)
    servers = [Channel(end, wire.decode_order) for end in ends.orders]
    events = Channel(ends.record, unpack)
    recorder = PackingRecorder(events.send, config.trace, text=config.trace_text == "on")
    failed = False
    try:
        scheduler = named_scheduler(config.scheduler_cls)  # before the model: typos come first
        executor = load(config, recorder, Stages(servers[0]))
        core = EngineCore(config, executor, recorder, scheduler)
        cores = getattr(executor, "cores", None)
        _tell_all(servers, wire.Ready(executor.kv, cores.own_cpus if cores else []))
        with quiet_collector():
            loop = EngineLoop(core, servers[0]) if len(servers) == 1 else SharedLoop(core, servers)
            loop.run()
        core.close()
        if getattr(executor, "others", None) is not None:
            executor.close()
    except Closed:
        failed = True
    except Exception as error:
        failed = True
        message = what_failed(error)
        if not type(error).__module__.startswith("engine."):  # an unforeseen error
            logger.error("{}", "".join(traceback.format_exception(error)))
        with contextlib.suppress(Closed):
            recorder.flush()  # what led to it comes before the server's word that it failed
            _tell_all(servers, wire.Failed(message))
    recorder.close()
    sys.exit(1 if failed else 0)


def _tell_all(servers: list[Channel[wire.Order]], news: wire.News) -> None:
    """Tell each server. Raises `Closed` if the first one is gone."""
    message = wire.encode(news)
    for server in servers[1:]:  # one that hangs, or has ended, holds nobody up
        server.keep(message)
        with contextlib.suppress(Closed):
            server.flush()
    servers[0].send(message)


class Stages:
    """Report the progress of loading to the server, at most every `EVERY_S`; from any thread."""

    EVERY_S = 0.2

    def __init__(self, server: Channel[wire.Order]):
        self.server = server
        self._lock = threading.Lock()
        self._last_s = 0.0

    def __call__(self, stage: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last_s >= self.EVERY_S:
                self._last_s = now
                self.server.send(wire.encode(wire.Loading(stage)))


def what_failed(error: BaseException) -> str:
    """Describe an error for a person, in one line. The engine's own errors are such lines
    already."""
    text = one_line(error, 1000) or "no message"
    ours = type(error).__module__.startswith("engine.") or isinstance(error, OSError)
    return text if ours else f"{type(error).__name__}: {text}"
