"""Run the server as a command: options in, an exit code out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from engine.config import ConfigError, EngineConfig
from engine.models.errors import ModelError
from engine.models.fitting_options import check_local
from engine.server.lifecycle import serve
from engine.trace.command import write_any_text


def main(argv: Sequence[str] | None = None, name: str = "koyeb_api_server") -> int:
    """Run the server until it is told to end, then end this process.

    Returns 2 for impossible options, also for those that a model in a local folder can't take. Exit
    codes otherwise: 0 ended as told, 1 the engine failed.
    """
    write_any_text()
    try:
        config = EngineConfig.from_args(argv, prog=name)
        check_local(config)
        code = serve(config)
    except (ConfigError, ModelError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; Python would spend seconds on freeing its modules
