"""Serve a model with several replicas: `python -m examples.ray_serve --replicas 2 --model …`.

SIGHUP replaces the replicas one by one, and no request is lost: each reads its `--config` file
again. SIGTERM and Ctrl-C end all when the open requests are answered.
"""

from __future__ import annotations

import importlib.util
import signal
import sys

from engine.config import ConfigError
from engine.trace.command import run_command
from examples.ray_serve.settings import read

PROG = "ray_serve"


def main() -> int:
    """Run until a signal says otherwise. Returns 2 for impossible options."""
    try:
        settings = read(None, PROG)
    except ConfigError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("ray") is None:
        print(f"{PROG}: Ray isn't installed: pip install -e '.[ray]'", file=sys.stderr)
        return 2
    from examples.ray_serve.cluster import running

    told = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
    with running(settings):
        print(f"Glasshouse listens on http://{settings.host}:{settings.port}", flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, told)
        while signal.sigwait(told) == signal.SIGHUP:
            from examples.ray_serve.application import deploy_engines

            deploy_engines(settings)
            print("All replicas are new.", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
