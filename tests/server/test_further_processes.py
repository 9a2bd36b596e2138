"""How the first server process holds the others: programs that only sleep stand for them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engine.config import EngineConfig
from engine.server import api_servers
from engine.server.api_servers import ApiServers
from engine.server.ending import Server
from engine.server.link import control
from engine.server.link.channel import Frames, framed
from engine.server.service import Service

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's alone")


class Sleeper:
    """A process that computes nothing, with a control socket that the test reads and writes."""

    def __init__(self, target, args, name):
        self.name, self.ends = name, args[2]

    def start(self):
        self.popen = subprocess.Popen(["sleep", "600"])
        self.pid = self.popen.pid
        self.sentinel = os.pidfd_open(self.pid)
        self.control = self.ends.control.dup()
        self.control.setblocking(False)

    def told(self):
        """What it was told."""
        try:
            data = self.control.recv(2**16)
        except BlockingIOError:
            data = b""
        return [control.decode_order(message) for message in Frames().feed(data)]

    def tell(self, answer):
        self.control.send(framed(control.encode(answer)))

    def is_alive(self):
        return self.popen.poll() is None

    @property
    def exitcode(self):
        return self.popen.poll()

    def kill(self):
        self.popen.kill()

    def join(self):
        self.popen.wait()


@pytest.fixture
def sleepers(monkeypatch):
    """Those that were made, in order."""
    made = []

    def process(target, args, name):
        made.append(Sleeper(target, args, name))
        return made[-1]

    context = SimpleNamespace(Process=process)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(api_servers, "EXIT_S", 0.0)
    yield made
    for sleeper in made:
        if hasattr(sleeper, "popen"):
            sleeper.kill()
            sleeper.join()
            os.close(sleeper.sentinel)
            sleeper.control.close()


@pytest.fixture
def several():
    """What makes the other processes of a server with `count`, and what starts them."""
    opened = []

    def make(count, timeout_s=60.0):
        config = EngineConfig(api_server_count=count, engine_timeout=timeout_s)
        listeners = [socket.socket() for _ in range(count - 1)]
        pairs = [socket.socketpair() for _ in range(count - 1)]
        opened.extend([*listeners, *(end for pair in pairs for end in pair)])
        engine = SimpleNamespace(other_ends=[end for end, _ in pairs], pid=1)
        hub = SimpleNamespace(listen=opened.append)
        servers = ApiServers(config, listeners, print)
        return servers, lambda: servers.start(engine, hub, False)

    yield make
    for end in opened:
        end.close()


@pytest.fixture
def make_service():
    """A service whose engine isn't started."""
    made = []

    def make(**options):
        made.append(Service(EngineConfig(log_format="off", **options)))
        return made[-1]

    yield make
    for service in made:
        client = service.client
        service.hub.close()
        for end in (
            client.engine.end, client.engine.record_end, *client.engine.other_ends,
            *client.engine._its_ends.orders, client.engine._its_ends.record,
        ):  # fmt: skip
            end.close()


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_process_that_answers_nothing_is_killed(sleepers, several):
    servers, start = several(2)

    async def run():
        died = asyncio.get_running_loop().create_future()
        servers.on_death = died.set_result
        await start()
        [sleeper], [other] = sleepers, servers._others
        for _ in range(200):  # before it takes requests it may take any time
            other.tick(1.0)
        assert not sleeper.told()
        sleeper.tell(control.Up())
        await until(lambda: servers.are_up)
        for _ in range(3):  # it is asked, and answers late
            for _ in range(50):
                other.tick(1.0)
            await until(lambda: sleeper.told() == [control.Ask()])
            sleeper.tell(control.ProcessCounts(1, 0, 0, []))
            await until(lambda: other._heard)
        assert sleeper.is_alive() and not died.done()
        for _ in range(63):
            other.tick(1.0)
        told = await asyncio.wait_for(died, 60)
        assert told == "API server process 2 was killed by SIGKILL."
        await servers.stop()

    asyncio.run(run())


def test_all_are_watched_without_being_asked_for(sleepers, several):
    servers, start = several(3, timeout_s=0.05)

    async def run():
        died = asyncio.get_running_loop().create_future()
        servers.on_death = died.set_result
        await start()
        sleepers[1].tell(control.Up())
        assert "process 3" in await asyncio.wait_for(died, 60)
        assert sleepers[0].is_alive()
        await servers.stop()

    asyncio.run(run())


def test_one_that_begins_while_the_server_ends_is_ended(sleepers, several, monkeypatch):
    servers, start = several(3)
    begin = Sleeper.start

    def begin_and_end(sleeper):
        begin(sleeper)
        asyncio.get_running_loop().call_soon(servers.end, "SIGTERM")

    monkeypatch.setattr(Sleeper, "start", begin_and_end)

    async def run():
        await start()
        [sleeper] = sleepers  # no further one was started
        await until(lambda: not sleeper.is_alive())
        await servers.stop()

    asyncio.run(run())


@pytest.mark.timeout(60)
def test_the_server_ends_without_waiting_for_those_that_are_not_up(sleepers, several, make_service):
    """Those that are up answer what they have; the others would take no order for seconds."""
    servers, start = several(3)
    service = make_service(api_server_count=3, shutdown_timeout=600.0)
    service.others = servers

    async def run():
        await start()
        sleepers[0].tell(control.Up())
        await until(lambda: servers._others[0].is_up)
        server = Server(service)
        server._loop = asyncio.get_running_loop()
        server.start_draining("SIGTERM")
        await until(lambda: not sleepers[1].is_alive())
        assert sleepers[0].is_alive() and not server.should_exit
        await until(lambda: sleepers[0].told() == [control.End("SIGTERM")])
        sleepers[0].popen.kill()  # it ends before it has answered all
        await until(lambda: server.should_exit)
        assert server.num_lost == 1  # nothing of the one that wasn't up
        await servers.stop()

    asyncio.run(run())


def test_a_server_whose_processes_can_not_start_fails(
    sleepers, monkeypatch, make_service, tokenizer_folder
):
    begin = Sleeper.start

    def begin_unless_last(sleeper):
        if sleeper.name == "API server 3":
            raise OSError("no more processes")
        begin(sleeper)

    monkeypatch.setattr(Sleeper, "start", begin_unless_last)
    service = make_service(model=str(tokenizer_folder), api_server_count=3)
    listeners = [socket.socket(), socket.socket()]
    service.others = ApiServers(service.config, listeners, print)
    failures = []
    service.on_failure = failures.append

    async def run():
        await service._load_text()
        assert service.state == "failed"
        assert "can't be started: no more processes" in service.detail
        assert failures == [service.detail]
        await service.others.stop()
        assert len(sleepers) == 2 and not sleepers[0].is_alive()

    asyncio.run(run())
    for listener in listeners:
        listener.close()


def test_the_others_get_no_longer_than_the_first_process_had(monkeypatch, make_service):
    """The time of the own answers counts: all are told at once."""
    service = make_service(api_server_count=2, shutdown_timeout=50.0)
    service.others = SimpleNamespace(num_running=1, num_with_losses=0)
    server = Server(service)
    now_s = 100.0
    server._loop = SimpleNamespace(time=lambda: now_s)
    service.open.add("an answer")

    async def sleep(seconds):
        nonlocal now_s
        now_s += 5.0
        if now_s == 140.0:
            service.open.clear()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(server._drain("SIGTERM"))
    assert 150.0 < now_s < 165.0
    assert server.should_exit and server.num_lost == 1
