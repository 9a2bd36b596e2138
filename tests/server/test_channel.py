"""The channel: messages come whole and in order, however the stream is cut; its end is seen."""

import itertools
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.server.link.channel import Channel, Closed, Frames, framed


@given(messages=st.lists(st.binary(max_size=300)), cuts=st.lists(st.integers(0, 2000)))
def test_messages_survive_any_cut(messages, cuts):
    stream = b"".join(map(framed, messages))
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    frames, got = Frames(), []
    for start, end in itertools.pairwise(places):
        got += frames.feed(stream[start:end])
    assert got == messages


@pytest.fixture
def pair():
    ours, theirs = (Channel(end, bytes) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_message_larger_than_the_sockets_buffer_comes_whole(pair):
    here, there = pair
    large = bytes(range(256)) * 20_000  # 5 MB
    sender = threading.Thread(target=lambda: (here.send(large), here.send(b"next"), here.close()))
    sender.start()
    got = []
    while (messages := there.receive(wait=True)) is not None:
        got += messages
    sender.join()
    assert got == [large, b"next"]


def test_without_waiting_nothing_is_an_empty_list_and_the_end_is_none(pair):
    here, there = pair
    assert there.receive(wait=False) == []
    here.send(b"last words")
    here.close()
    assert there.receive(wait=False) == [b"last words"]
    assert there.receive(wait=False) is None
    assert there.receive(wait=True) is None


def test_the_end_is_seen_when_the_other_side_left_messages_unread(pair):
    here, there = pair
    here.send(b"never read")
    there.close()
    assert here.receive(wait=True) is None  # the kernel says "connection reset" here
    with pytest.raises(Closed):
        here.send(b"to nobody")
