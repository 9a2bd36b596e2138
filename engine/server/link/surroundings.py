"""Read what the engine runs on, at its start: versions, device, driver, cores, memory."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import torch

from engine import __version__
from engine.config import EngineConfig
from engine.trace.events import EngineStarted
from engine.worker.host import free_memory, physical_cores, pick_device

PACKAGES = ("torch", "transformers", "triton")


def surroundings(config: EngineConfig) -> EngineStarted:
    """Make the event that opens the engine's record. Secrets in the options are blanked."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # triton is installed only beside CUDA
    return EngineStarted(
        version=__version__, config=config.public(), versions=versions, machine=_machine(config)
    )


def _machine(config: EngineConfig) -> dict[str, str | int]:
    device = pick_device(config.device)
    free_gib = free_memory().num_bytes / 2**30
    machine: dict[str, str | int] = {
        "device": str(device),
        "cores": physical_cores(),
        "memory": f"{free_gib:.1f} GiB free",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        machine["capability"] = f"{properties.major}.{properties.minor}"
        machine["driver"] = _driver()
    return machine


def _driver() -> str:
    """Return the GPU driver's version from nvidia-smi; "unknown" if it can't be asked."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    answer = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return answer.stdout.strip().partition("\n")[0] or "unknown"
