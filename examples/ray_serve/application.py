"""Run two applications of Ray Serve: engines, and the door in front of them."""

# No `from __future__ import annotations`: FastAPI would have to find `Request` by its name, in a
# class that Ray has copied.
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import msgspec
from fastapi import FastAPI, Request
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError
from starlette.responses import Response

from engine.server.app import MAX_BODY_BYTES
from engine.server.http.bodies import BodyLimit
from engine.server.http.errors import ApiError, unavailable
from examples.ray_serve.door import REPLICA, answer
from examples.ray_serve.own_server import OwnServer
from examples.ray_serve.relay import Asked, EngineLost, Head, relay
from examples.ray_serve.scaling import load_of
from examples.ray_serve.settings import Settings

ENGINES = "engines"  # the application's name
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"]
LAST_WORDS_S = 2.0  # in which the errors of a lost server's requests reach the door


@serve.deployment(name="Engine")
class Engine:
    """Be a replica: one Glasshouse server, and the way to it."""

    async def __init__(self, flags: list[str], shutdown_timeout_s: float, api_key: str):
        self.name = serve.get_replica_context().replica_id.unique_id
        self._num_open = 0
        self._ending = False
        self.server = OwnServer(flags, shutdown_timeout_s, api_key)
        await self.server.start()
        self._watching = asyncio.create_task(self._end_with_server())

    async def relay(self, asked: Asked) -> AsyncIterator[Head | bytes]:
        """Yield the server's answer: its head, then the events of a stream."""
        if asked.replica not in ("", self.name):
            error = ApiError(404, f"There is no replica {asked.replica!r} now; / leads to one.")
            kind = [(b"content-type", b"application/json")]
            yield Head(error.status, kind, msgspec.json.encode(error.body()))
            return
        self._num_open += 1
        try:
            async for part in relay(self.server.client, asked):
                if isinstance(part, Head):
                    part.headers.append((REPLICA, self.name.encode()))
                yield part
        finally:
            self._num_open -= 1

    async def check_health(self) -> None:
        """Raise unless the server takes requests. Called by Ray, which replaces a sick replica."""
        await self.server.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the load. Called by Ray."""
        return load_of(await self.server.load())

    async def _end_with_server(self) -> None:
        """End this process when its server has ended, so that Ray starts another at once."""
        await self.server.process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                while self._num_open:
                    await asyncio.sleep(0.01)
        if not self._ending:
            os._exit(1)

    async def __del__(self) -> None:
        """Stop the server. Called by Ray when no request is left, or the time is over."""
        self._ending = True
        await self.server.stop()


_app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
_app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)


@serve.deployment(name="Door")
@serve.ingress(_app)
class Door:
    """Answer clients: the requests that Ray's HTTP proxy passes on."""

    def __init__(self) -> None:
        engines = serve.get_deployment_handle("Engine", app_name=ENGINES)
        self._engines = engines.options(method_name="relay", stream=True)

    @_app.api_route("/{path:path}", methods=METHODS)
    async def any_route(self, http: Request) -> Response:
        """Answer any request, by one of the engines."""
        return await answer(http, self._ask)

    async def _ask(self, asked: Asked) -> AsyncIterator[Head | bytes]:
        try:
            async for part in self._engines.remote(asked):
                yield part
        except BackPressureError:
            raise unavailable(
                "All replicas are busy, and the queue before them is full.", 1
            ) from None
        except (EngineLost, RayError) as error:
            raise ApiError(
                502,
                "The replica that worked on this request was lost before its answer was complete. "
                "Other replicas go on: send it again.",
            ) from error


def deploy_engines(settings: Settings) -> None:
    """Start the engines, or replace those that run one by one; return when all are ready.

    Raises RuntimeError when they can't start.
    """
    engines = Engine.options(**settings.engine_options())
    serve.run(
        engines.bind(settings.flags, settings.shutdown_timeout_s, settings.api_key),
        name=ENGINES,
        route_prefix=None,
    )


def deploy_door(settings: Settings) -> None:
    """Start the door. It is an application of its own, since a deployment replaces all of one."""
    serve.run(Door.options(**settings.door_options()).bind(), name="door", route_prefix="/")
