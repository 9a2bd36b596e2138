#!/usr/bin/env python3
"""Start the server: `python koyeb_api_server.py --port …`; `--help` lists every option."""

from __future__ import annotations

import os
import sys

from engine.config import ConfigError, EngineConfig


def main() -> int:
    """The exit code: 0 ended as told, 1 the engine failed, 2 the options are impossible."""
    # Here and not above: the engine process imports this file again, and needs none of the server.
    from engine.server.lifecycle import serve

    try:
        return serve(EngineConfig.from_args())
    except ConfigError as error:
        print(f"koyeb_api_server: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; Python would take seconds to tear down what it imported
