"""Be the engine process that `engine_start` starts."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys

from engine.child_process import end_with_parent


def main() -> None:
    """Take over the channels and the config, and run the engine until it ends."""
    parent_pid, alive, record, *orders = map(int, sys.argv[1:])
    end_with_parent(parent_pid)
    # A terminal or a platform signals the whole group: the server decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in (alive, record, *orders):
        os.set_inheritable(number, False)  # else they would stay open in what this process starts
    config, load = pickle.load(sys.stdin.buffer)

    # Only now, since a signal that came during these imports would end this process.
    from engine.server.link.engine_process import load_worker, run_engine
    from engine.server.link.engine_start import Ends

    ends = Ends([socket.socket(fileno=number) for number in orders], socket.socket(fileno=record))
    run_engine(config, ends, load or load_worker)


if __name__ == "__main__":
    main()
