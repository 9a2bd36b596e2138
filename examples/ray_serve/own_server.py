"""Start a replica's own Glasshouse server, ask how it is, and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from examples.ray_serve.relay import EngineLost

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 1800.0  # a large model may have to be fetched first
_POLL_S = 0.1


class OwnServer:
    """Run a server on a Unix socket of its own, which only this user's processes reach."""

    def __init__(self, flags: Sequence[str], shutdown_timeout_s: float, api_key: str = ""):
        """Prepare a server with options as on its command line; `start` starts it.

        api_key: one that the server takes, for what is asked of it here. Clients' requests bring
        their own.
        """
        self._flags = flags
        self._shutdown_timeout_s = shutdown_timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._folder = tempfile.mkdtemp(prefix="glasshouse-")
        self._socket = f"{self._folder}/server"
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=self._socket, limits=httpx.Limits(max_connections=None)
            ),
            base_url="http://replica",
            timeout=None,
        )

    async def start(self) -> None:
        """Start the server, and return when it takes requests. Raises `EngineLost` if it ends.

        The kernel ends it with the thread that calls this, so that thread must live on.
        """
        command = [sys.executable, "-m", "examples.ray_serve.child", str(os.getpid())]
        self.process = await asyncio.create_subprocess_exec(
            *command, "--uds", self._socket, *self._flags, cwd=ROOT
        )
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await self.client.get("/health")).status_code == 200:
                        return
                if self.process.returncode is not None:
                    raise EngineLost(f"The server ended at its start ({self.process.returncode}).")
                await asyncio.sleep(_POLL_S)

    async def check(self) -> None:
        """Raise `EngineLost` unless the server takes requests."""
        try:
            health = await self.client.get("/health", timeout=10)
        except httpx.TransportError as error:
            raise EngineLost(f"{type(error).__name__}: {error}") from None
        if health.status_code != 200:
            raise EngineLost(health.text)

    async def load(self) -> dict[str, Any]:
        """Return what the server says of its load. Raises `httpx.HTTPStatusError`."""
        answer = await self.client.get("/load", timeout=10, headers=self._headers)
        return answer.raise_for_status().json()

    async def stop(self) -> None:
        """End the server when its open requests are answered, or its time is over."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), self._shutdown_timeout_s + 5)
            except TimeoutError:
                self.process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
