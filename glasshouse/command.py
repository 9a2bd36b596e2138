"""Choose the program that the first word names, and hand it the other words.

Each program is imported only when it is chosen. The engine process imports this file again when the
server spawns it, so nothing heavy may be imported above.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from engine import __version__
from engine.trace.command import run_command

CLASS_FLAGS = (
    *("--num-gpu-blocks-override", "192"),  # 3,072 tokens: a grid whose squares can be seen
    *("--max-num-seqs", "12"),
    *("--max-num-batched-tokens", "128"),  # so that longer prompts are computed in parts
    "--classroom",
)
"""What makes a pool so small that a dozen requests fill it, and wait, and are preempted."""

Program = Callable[[Sequence[str], str], int]
"""Runs with its arguments and the name to show in messages; returns the exit code."""


def serve(argv: Sequence[str], name: str) -> int:
    from engine.server.command import main

    return main(argv, name)


def classroom(argv: Sequence[str], name: str) -> int:
    try:
        return serve([*CLASS_FLAGS, *argv], name)
    finally:
        if {"-h", "--help"}.intersection(argv):
            print(f"\n{name} is glasshouse serve {' '.join(CLASS_FLAGS)}; flags of yours win.")


def chat(argv: Sequence[str], name: str) -> int:
    import test_client

    checks = any(word.partition("=")[0] in ("--test", "--json") for word in argv)
    return test_client.main(argv if checks else ["--interactive", *argv], name)


def lab(argv: Sequence[str], name: str) -> int:
    from lab.command import main

    return main(argv, name)


def plan(argv: Sequence[str], name: str) -> int:
    from engine.fit.__main__ import main

    return main(argv, name)


def quantize(argv: Sequence[str], name: str) -> int:
    from engine.quantize.__main__ import main

    return main(argv, name)


def trace(argv: Sequence[str], name: str) -> int:
    from engine.trace.__main__ import main

    return main(argv, name)


def whatif(argv: Sequence[str], name: str) -> int:
    from engine.whatif.__main__ import main

    return main(argv, name)


def bench(argv: Sequence[str], name: str) -> int:
    from benchmarks.compare import main

    return main(argv, name)


PROGRAMS: dict[str, tuple[Program, str]] = {
    "serve": (serve, "start the OpenAI-compatible server"),
    "class": (classroom, "start the server with a small pool, to teach with its live page"),
    "chat": (chat, "chat with a running server in the terminal; with --test, test it"),
    "lab": (lab, "show each optimisation: predicted, run on this machine, measured, drawn"),
    "plan": (plan, "say which GPU fits a model, and why"),
    "quantize": (quantize, "make a quantized model, and say what it costs"),
    "trace": (trace, "read a record: annotate, replay, page, perfetto, diff, life, why"),
    "whatif": (whatif, "run a record's requests again under other settings, on simulated time"),
    "bench": (bench, "measure the engine beside transformers on this machine"),
}


def usage() -> str:
    """What `glasshouse --help` prints."""
    lines = [f"  {name:10}{text}" for name, (_, text) in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: glasshouse COMMAND [options]",
            "",
            f"Glasshouse {__version__}: an LLM serving engine you can see through.",
            "",
            *lines,
            "",
            "`glasshouse COMMAND --help` lists a command's options.",
        ]
    )


def run(argv: Sequence[str]) -> int:
    """Run the program that `argv` names; returns its exit code, 2 if there is none."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"glasshouse {__version__}")
        return 0
    if argv[0] not in PROGRAMS:
        names = ", ".join(PROGRAMS)
        print(f"glasshouse: there is no command {argv[0]!r}; there are {names}", file=sys.stderr)
        return 2
    program, _ = PROGRAMS[argv[0]]
    return program(argv[1:], f"glasshouse {argv[0]}")


def main() -> NoReturn:
    """Run the command that was typed, and end this process with its exit code."""
    run_command(lambda: run(sys.argv[1:]))
