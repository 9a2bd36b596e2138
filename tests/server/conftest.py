"""A real server on a real port, with a real engine process, in which only the model is fake."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from engine.config import EngineConfig
from tests.server.fake_engine import fake
from tests.server.running_server import RunningServer
from tests.server.tiny_tokenizer import save_tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    folder.mkdir()
    save_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def run_server(tokenizer_folder):
    """`with run_server(step_s=…, heartbeat_s=…, **config) as server:`"""

    @contextmanager
    def run(load=None, heartbeat_s=10.0, wait=True, step_s=0.0, num_blocks=256, **config):
        options = EngineConfig(model=str(tokenizer_folder), log_format="off", **config)
        server = RunningServer(
            options, load or fake(step_s=step_s, num_blocks=num_blocks), heartbeat_s
        )
        try:
            if wait:
                server.wait()
            yield server
        finally:
            server.close()

    return run


@pytest.fixture(scope="session")
def server(run_server):
    """One quick server for all tests that don't change it."""
    with run_server() as running:
        yield running
