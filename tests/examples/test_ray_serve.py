"""The Ray Serve example itself: its command line, and what it survives where Ray is installed."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys

import pytest

from docs.scripts.server import ROOT
from engine.config import ConfigError
from examples.ray_serve.check import SCENES, arguments
from examples.ray_serve.settings import ROOM_FOR_PAGES, read
from examples.ray_serve.table import NAMES, USERS, checked_table, limits_table, results

HAS_RAY = importlib.util.find_spec("ray") is not None


def test_a_command_line_is_divided_between_ray_and_the_servers():
    settings = read(["--replicas", "2", "--cpus", "1", "--max-num-seqs", "8"], "x")
    assert settings.flags == ["--max-num-seqs", "8", "--cpu-threads", "1"]
    assert (settings.host, settings.replicas, settings.num_seats) == ("127.0.0.1", 2, 8)
    options = settings.engine_options()
    assert options["num_replicas"] == 2 and "autoscaling_config" not in options
    assert options["max_ongoing_requests"] == 8 + ROOM_FOR_PAGES
    # Ray waits longer than the server does, whose answers would be cut otherwise.
    assert options["graceful_shutdown_timeout_s"] > settings.shutdown_timeout_s
    scaled = read(["--max-replicas", "5"], "x").engine_options()
    assert "num_replicas" not in scaled
    bounds = scaled["autoscaling_config"]
    assert (bounds["min_replicas"], bounds["max_replicas"]) == (2, 5)


def test_what_a_server_would_refuse_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="--max-num-seqs is 0"):
        read(["--max-num-seqs", "0"], "x")


@pytest.mark.parametrize(
    "flags", ["--uds x", "--ssl-certfile x --ssl-keyfile x", "--classroom", "--api-server-count 2"]
)
def test_what_clients_of_a_replica_can_not_reach_is_refused(flags):
    with pytest.raises(ConfigError, match=flags.split()[0]):
        read(flags.split(), "x")


def test_the_check_takes_scenes_and_what_the_command_takes():
    ours, settings = arguments(["--port", "8123", "--scene", "update", "--scene", "cost"])
    assert ours.scene == ["update", "cost"] and set(SCENES) == set(NAMES)
    assert (settings.port, settings.replicas, settings.num_seats) == (8123, 2, 8)


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_command_says_how_to_get_it():
    command = [sys.executable, "-m", "examples.ray_serve"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "pip install -e '.[ray]'" in done.stderr


def test_the_tables_come_from_the_results():
    kept = results()
    assert kept and set(kept) <= set(NAMES)
    text = checked_table()
    for figures in kept.values():
        assert all(f"{figure:,}" in text for figure in figures.values())
    assert all(f"| {users:,} |" in limits_table() for users in USERS)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAS_RAY, reason="Ray isn't installed: pip install -e '.[ray]'")
def test_replicas_may_die_and_be_replaced(tmp_path):
    """The command fails by itself when a request is lost, repeated, or cut without an error."""
    file = tmp_path / "results.json"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "examples.ray_serve.check", "--port", port]
    scenes = ["server-killed", "replica-killed", "update"]
    for scene in scenes:
        command += ["--scene", scene]
    done = subprocess.run(
        [*command, "--results", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(file.read_text("utf-8"))) == set(scenes)
