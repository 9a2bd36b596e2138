"""Start Ray for this process alone, and stop it with all that it started."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.ray_serve.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 100_000_000  # pieces of streams are small; a record of 100 MB still passes


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Start Ray, the engines and the door; at the end drain the engines and stop all of it.

    Ray's own ports listen on all interfaces, whatever it is told, and who reaches one runs code:
    so a token, which only this process and its children know, is asked for.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)  # where Ray's processes find this package
    # Read by Ray where it is imported.
    import ray
    from ray import serve

    from examples.ray_serve.application import deploy_door, deploy_engines

    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        ray.init(
            "local",
            num_cpus=int(settings.cpus * settings.max_replicas),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=folder,
        )
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.port},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        deploy_engines(settings)
        deploy_door(settings)
        yield
    finally:
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
