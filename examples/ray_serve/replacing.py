"""Replace what runs, as SIGHUP does."""

from __future__ import annotations

import asyncio

from examples.ray_serve.settings import Settings


async def replaced(settings: Settings) -> None:
    """Replace the engines, as SIGHUP does."""
    from examples.ray_serve.application import deploy_engines  # behind `running`: it imports Ray

    await asyncio.to_thread(deploy_engines, settings)


async def routed(settings: Settings) -> None:
    """Replace the engines and the door, since a router keeps the settings that it began with."""
    from examples.ray_serve.application import deploy_door

    await replaced(settings)
    await asyncio.to_thread(deploy_door, settings)
