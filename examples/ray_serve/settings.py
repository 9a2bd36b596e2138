"""Read the command line: our options, and those of each replica's own server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.config import ConfigError, EngineConfig

ROOM_FOR_PAGES = 16
"""Requests that a replica takes beyond its seats: pages that watch, health checks, metrics."""


@dataclass(frozen=True)
class Settings:
    """Say how many replicas there are, what each gets, and what its server is told."""

    flags: list[str]  # of each server
    num_seats: int
    shutdown_timeout_s: float
    api_key: str  # one that the servers take, "" for none
    replicas: int
    max_replicas: int
    cpus: float  # of each replica
    gpus: float
    host: str
    port: int
    affinity: bool = True

    def engine_options(self) -> dict[str, Any]:
        """Return what Ray Serve is told about the engines."""
        options: dict[str, Any] = {
            # More wait in front of all replicas, where any of them can take them.
            "max_ongoing_requests": self.num_seats + ROOM_FOR_PAGES,
            "max_queued_requests": 8 * self.num_seats * self.max_replicas,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
            "health_check_period_s": 2,
            "health_check_timeout_s": 30,
            "graceful_shutdown_wait_loop_s": 0.5,
            "graceful_shutdown_timeout_s": self.shutdown_timeout_s + 2,
            "request_router_config": {
                "request_router_class": "examples.ray_serve.router:PrefixRouter",
                "request_router_kwargs": {
                    "enough": max(1, self.num_seats // 2),
                    "affinity": self.affinity,
                },
            },
        }
        if self.max_replicas == self.replicas:
            return {**options, "num_replicas": self.replicas}
        options["autoscaling_config"] = {
            "min_replicas": self.replicas,
            "max_replicas": self.max_replicas,
            "look_back_period_s": 20,
            "upscale_delay_s": 10,
            "downscale_delay_s": 300,  # a replica that ends takes its cache with it
            "policy": {"policy_function": "examples.ray_serve.scaling:policy"},
        }
        return options

    def door_options(self) -> dict[str, Any]:
        """Return what Ray Serve is told about the door, which only waits."""
        return {
            "num_replicas": 1,
            "max_ongoing_requests": 100_000,
            "ray_actor_options": {"num_cpus": 0},
            "graceful_shutdown_timeout_s": self.shutdown_timeout_s + 2,
        }


def read(argv: Sequence[str] | None, prog: str) -> Settings:
    """Read a command line. Raises `ConfigError` for options that the servers would refuse."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="All others go to each replica's server: koyeb_api_server.py --help lists them.",
        allow_abbrev=False,
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--host", default="127.0.0.1", help="where clients are answered")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=2, help="how many, at least")
    parser.add_argument(
        "--max-replicas", type=int, default=0, help="at most, as load comes; 0: no autoscaling"
    )
    parser.add_argument("--gpus", type=float, default=0.0, help="of each replica")
    parser.add_argument("--cpus", type=int, default=0, help="of each replica; 0: an equal share")
    ours, flags = parser.parse_known_args(argv)
    most = max(ours.replicas, ours.max_replicas)
    if ours.replicas < 1:
        parser.error(f"--replicas is {ours.replicas}; it must be at least 1.")
    config = EngineConfig.from_args(flags, prog=prog)
    for flag, given in (
        ("--uds", config.uds),
        ("--ssl-certfile", config.ssl_certfile),
        ("--classroom", config.classroom),
        ("--api-server-count", config.api_server_count > 1),
    ):
        if given:
            raise ConfigError(
                f"{flag} can't be used here: clients reach the door, not the replicas' servers."
            )
    cpus = ours.cpus or max(1, cores // most)
    if not ours.gpus and not config.cpu_threads:
        flags = [*flags, "--cpu-threads", str(cpus)]
    return Settings(
        flags=flags,
        num_seats=config.max_num_seqs,
        shutdown_timeout_s=config.shutdown_timeout,
        api_key=config.api_key[0] if config.api_key else "",
        replicas=ours.replicas,
        max_replicas=most,
        cpus=cpus,
        gpus=ours.gpus,
        host=ours.host,
        port=ours.port,
    )
