"""Start a server whose model says what it is asked to, for agents' loops with a model so small.

Everything but the model's numbers is real: HTTP, the engine process, templates, the parsers of
calls. A message with `SAY:` is answered with what stands behind it, so that a script decides what a
model calls, and a tool's result what it answers then. Forms are compiled but hold nothing: scripts
say what fits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.worker.sampling.grammar_compiler import GrammarCompiler
from tests.server.running_server import RunningServer
from tests.server.scripted_engine import TOOLS_TEMPLATE, ScriptedExecutor
from tests.server.tiny_tokenizer import save_tiny_tokenizer

MAX_MODEL_LEN = 65536  # a token is a byte here, and agents' instructions are long


def load(config: Any, recorder: Any, progress: Any) -> ScriptedExecutor:
    """Make the executor, in the engine's process."""
    executor = ScriptedExecutor()
    executor.grammars = GrammarCompiler(executor.kv.vocab_size)
    executor.kv = msgspec.structs.replace(
        executor.kv, max_model_len=MAX_MODEL_LEN, num_blocks=2 * MAX_MODEL_LEN // 16
    )
    return executor


@contextmanager
def scripted_server(key: str, name: str) -> Iterator[str]:
    """Run such a server while the block runs, and give its URL."""
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_tokenizer(Path(folder))
        config = EngineConfig(
            model=folder, chat_template=TOOLS_TEMPLATE, api_key=key, served_model_name=name,
            log_format="off",
        )  # fmt: skip
        server = RunningServer(config, load)
        try:
            server.wait()
            yield server.url
        finally:
            server.close()
