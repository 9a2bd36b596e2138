"""The engine's loop for several server processes, without processes."""

from __future__ import annotations

import contextlib
import socket

import pytest

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.server.link import shared_loop, wire
from engine.server.link.channel import Channel, Frames, framed
from engine.server.link.shared_loop import SharedLoop
from engine.trace.recorder import Recorder
from tests.server.fake_engine import FakeExecutor


class Asker:
    """A server's end of a channel."""

    def __init__(self, end):
        self.end, self.frames, self.number = end, Frames(), 0
        self.unread = []
        end.setblocking(False)

    def add(self, request_id, max_tokens=4, n=1):
        self.number += 1
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, n=n)
        request = CoreRequest(
            request_id=request_id, prompt_token_ids=[97], params=params, eos_token_ids=[]
        )
        self.send(wire.Add(self.number, request))
        return self.number

    def send(self, order):
        self.end.sendall(framed(wire.encode(order)))

    def read(self):
        with contextlib.suppress(BlockingIOError):
            while data := self.end.recv(2**16):
                self.unread += map(wire.decode_news, self.frames.feed(data))

    def news(self):
        self.read()
        got, self.unread = self.unread, []
        return got

    def refusals(self):
        return [r for n in self.news() if isinstance(n, wire.Booked) for r in n.refused]


class Shared:
    """A loop, turned by hand, and two servers."""

    def __init__(self, **options):
        pairs = [socket.socketpair() for _ in range(2)]
        pairs[1][1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.ends = [end for pair in pairs for end in pair]
        self.events = []
        recorder = Recorder("steps", thread=False)
        recorder.subscribe(self.events.extend)
        self.recorder = recorder
        self.core = EngineCore(EngineConfig(**options), FakeExecutor(0, 256), recorder)
        self.loop = SharedLoop(self.core, [Channel(end, wire.decode_order) for _, end in pairs])
        self.first, self.second = (Asker(end) for end, _ in pairs)

    def turn(self, times=1):
        for _ in range(times):
            took = self.loop._take_orders(wait=False)
            if self.core.has_work and not self.loop.stopped:
                self.loop._tell_step(self.core.step())
            elif took:
                self.loop._tell_step([])
            if not self.loop.stopped:
                self.first.read()


@pytest.fixture
def shared(request):
    made = Shared(**getattr(request, "param", {}))
    yield made
    made.recorder.close()
    for end in made.ends:
        end.close()


def steps(news):
    return [n for n in news if isinstance(n, wire.Step)]


def tokens(news, request_id):
    outputs = [out for step in steps(news) for out in step.outputs]
    return [token for out in outputs if out.request_id == request_id for token in out.token_ids]


def test_each_server_gets_its_own_and_the_first_the_state(shared):
    shared.first.add("a")
    shared.second.add("b", max_tokens=6)
    shared.turn(8)
    of_first, of_second = shared.first.news(), shared.second.news()
    assert len(tokens(of_first, "a")) == 4 and not tokens(of_first, "b")
    assert len(tokens(of_second, "b")) == 6 and not tokens(of_second, "a")
    assert sum(isinstance(n, wire.Step) for n in of_first) == 6  # all steps, for /metrics
    assert not shared.loop._owners


@pytest.mark.parametrize("n, max_tokens", [(2, 4), (3, 4), (2, 0), (3, 1)])
def test_each_of_several_answers_has_its_end(shared, n, max_tokens):
    """All of them end in one step."""
    for server, name in ((shared.first, "a"), (shared.second, "b")):
        server.add(name, max_tokens, n)
    shared.turn(8)
    for server, name in ((shared.first, "a"), (shared.second, "b")):
        outputs = [out for news in steps(server.news()) for out in news.outputs]
        ends = [(out.request_id, out.index) for out in outputs if out.finish_reason]
        assert sorted(ends) == [(name, index) for index in range(n)]
    assert not shared.core.has_work and not shared.loop._owners


@pytest.mark.parametrize("shared", [{"max_num_seqs": 1}], indirect=True)
@pytest.mark.parametrize("first_works", [True, False])
def test_each_order_is_followed_by_news(shared, first_works):
    """Else its server would take the engine for hung, and refuse all."""
    if first_works:
        shared.first.add("runs", max_tokens=100)
        shared.turn()
    shared.second.add("waits")
    shared.turn()
    shared.second.news()
    for order in (wire.Abort("waits", "left"), wire.Finish("unknown", 0, "")):
        shared.second.send(order)
        shared.turn()
        assert len(steps(shared.second.news())) == 1
    shared.turn(5)
    assert not shared.second.news()  # it has asked for nothing, and it isn't woken for nothing


@pytest.mark.parametrize("shared", [{"max_num_seqs": 1}], indirect=True)
def test_one_whose_requests_wait_hears_that_the_engine_works(shared):
    shared.first.add("runs", max_tokens=100)
    shared.turn()
    shared.second.add("waits")
    shared.turn(2)
    shared.second.news()
    shared.loop.servers[1].told_s -= 2 * shared.loop._longest_silence_s
    shared.turn(2)
    [step] = steps(shared.second.news())
    assert not step.outputs and step.stats.num_waiting == 1


def test_one_that_reads_nothing_delays_nobody_and_misses_nothing(shared):
    shared.second.add("slow", max_tokens=400)
    shared.turn(200)
    shared.first.news()
    shared.first.add("quick", max_tokens=200)
    shared.turn(201)
    assert shared.loop.servers[1].channel.num_unsent > 0  # its socket is full
    assert len(tokens(shared.first.news(), "quick")) == 200
    got = []
    while shared.loop.servers[1].channel.num_unsent:
        got += shared.second.news()
        shared.turn()
    assert len(tokens(got + shared.second.news(), "slow")) == 400


def test_one_that_reads_nothing_for_long_is_given_up(shared, monkeypatch):
    monkeypatch.setattr(shared_loop, "MOST_UNSENT", 2**12)
    shared.second.add("slow", max_tokens=400)
    shared.turn(300)
    assert not shared.core.has_work and len(shared.loop.servers) == 1
    shared.first.add("slow", max_tokens=2)  # its ids are free
    shared.turn(3)
    assert len(tokens(shared.first.news(), "slow")) == 2


def test_an_id_belongs_to_one_server_while_it_is_open(shared):
    shared.first.add("mine", max_tokens=40)
    shared.turn()
    number = shared.second.add("mine")
    shared.second.send(wire.Abort("mine", "not its own"))
    shared.second.send(wire.Finish("mine", 0, ""))
    shared.turn()
    [refusal] = shared.second.refusals()
    assert refusal.number == number and refusal.param == "request_id" and not refusal.is_busy
    assert shared.core.has_work
    shared.first.send(wire.Abort("mine", "left"))
    shared.turn()
    shared.second.add("mine")
    shared.turn(5)
    assert len(tokens(shared.second.news(), "mine")) == 4


def test_what_an_ended_server_leaves_is_aborted(shared):
    shared.second.add("left", max_tokens=100)
    shared.turn(3)
    shared.second.end.close()
    shared.turn(2)
    assert not shared.core.has_work and not shared.loop._owners
    shared.recorder.flush()
    assert any(getattr(e, "why", "") == "its API server process has ended" for e in shared.events)
    shared.first.end.close()
    shared.turn()
    assert shared.loop.stopped


@pytest.mark.parametrize("shared", [{"max_num_queued_reqs": 2, "max_num_seqs": 1}], indirect=True)
def test_the_queues_limit_is_of_all(shared):
    shared.first.add("runs", max_tokens=50)
    shared.turn()
    for number, server in enumerate([shared.first, shared.second] * 2):
        server.add(f"r{number}")
    shared.turn()
    refused = [*shared.first.refusals(), *shared.second.refusals()]
    assert len(refused) == 2 and all(r.is_busy and "at most 2 may" in r.message for r in refused)
