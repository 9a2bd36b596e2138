"""Read a record, offline, without torch: `python -m engine.trace COMMAND FILE`.

The commands are annotate, replay, page, perfetto, diff, life and why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from engine.trace.columns import RichPrinter
from engine.trace.command import run_command
from engine.trace.diff import where_they_part
from engine.trace.events import AnyEvent
from engine.trace.files import RecordError, read_all, read_jsonl
from engine.trace.html_page import room_with
from engine.trace.life import life_of, requests_of
from engine.trace.names import Names
from engine.trace.outcome import outcome, what_followed
from engine.trace.perfetto import to_perfetto
from engine.trace.printable import printable, printable_json
from engine.trace.replay import Replay, ReplayError
from engine.trace.sequences import request_of
from engine.trace.side_by_side import side_by_side
from engine.trace.story import Story
from engine.trace.why import why_in_words, why_slow
from engine.trace.wording import count, ranges


class _Problem(Exception):
    """Tell the person who typed the command what was wrong with it."""


def main(argv: Sequence[str] | None = None, name: str = "python -m engine.trace") -> int:
    """Run one command, and return its exit status.

    0: fine. 1: the records differ. 2: an error, described on stderr.
    """
    arguments = _parser(name).parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except BrokenPipeError:
        raise  # not an error of the output: `run_command` handles it
    except (RecordError, ReplayError, _Problem) as problem:
        print(printable(f"error: {problem}"), file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
    return 2


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description="Read a record that --trace-file or /trace gave. `python -m engine.whatif` runs"
        " its requests again under other settings.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("file", type=Path, help="a record, one JSON object a line")
        sub.set_defaults(command=command)
        return sub

    annotate = add("annotate", _annotate, "Tell the record as a story, or every event in one line.")
    annotate.add_argument("--request", metavar="ID", help="only lines about this request")
    annotate.add_argument("--all", action="store_true", help="every event: nothing is joined")
    replay = add(
        "replay", _replay, "Rebuild pool, tables and queues from the events, and show them."
    )
    replay.add_argument("--step", type=int, help="after this step (default: at the end)")
    replay.add_argument("--json", action="store_true", help="the whole state as JSON")
    page = add("page", _page, "Write one HTML file: the live page with this record, for a browser.")
    page.add_argument("-o", "--output", type=Path, required=True, help="file to write (room.html)")
    perfetto = add("perfetto", _perfetto, "Write Chrome Trace Event JSON for ui.perfetto.dev.")
    perfetto.add_argument(
        "-o", "--output", type=Path, help="file to write (default: standard output)"
    )
    diff = add(
        "diff",
        _diff,
        "Find the first decision in which two records differ, and what followed (not times).",
    )
    diff.add_argument("other", type=Path, help="the record to compare with")
    diff.add_argument(
        "-o", "--output", type=Path, help="folder for a page that shows both side by side"
    )
    life = add("life", _life, "The life of one request as JSON.")
    life.add_argument("request", help="the request's id, or its short name in the log (req-7)")
    why = add("why", _why, "Why a request was slow: one cause for each part of its time.")
    why.add_argument("request", help="the request's id, or its short name in the log (req-7)")
    why.add_argument("--json", action="store_true", help="the parts in nanoseconds, as JSON")
    return parser


def _annotate(arguments: argparse.Namespace) -> int:
    events = read_all(arguments.file)
    wanted = _request(events, arguments.request) if arguments.request else ""
    story = Story(with_summaries=not wanted, joined=not arguments.all)
    lines = [*story.tell(events), *story.end()]
    if wanted:
        lines = [line for line in lines if request_of(line.request_id) == wanted]
    RichPrinter(sys.stdout)(lines)
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    replay, names = Replay(), Names()
    for event in read_jsonl(arguments.file):
        replay.fold(event)
        names.see(event)
    if arguments.step is not None:
        try:
            replay.state_at(arguments.step)
        except KeyError as error:
            raise _Problem(error.args[0]) from None
    replay.check()
    state = replay.state
    if arguments.json:
        _write(msgspec.json.format(msgspec.json.encode(state.to_dict()), indent=1) + b"\n", None)
        return 0
    free = len(state.free_queue)
    kept = sum(not state.references[block] for block in state.hashes)
    print(f"after step {state.step}, {count(replay.position, 'event')}; every invariant holds")
    print(
        f"blocks: {state.num_blocks - free:,} used, {kept:,} cached and free, {free - kept:,} "
        f"empty, of {state.num_blocks:,} ({state.block_size} tokens each); "
        f"host: {len(state.host_blocks_used):,} of {state.num_host_blocks:,} used"
    )
    if state.ordered:
        print(f"next to be taken: {ranges(list(state.free_queue)) or 'none'}")
    for title, queue in (("running", state.running), ("waiting", state.waiting)):
        print(f"{title}: {len(queue):,}")
        for _rank, name in queue:
            table = ranges(state.tables.get(name, []), most=12) or "none"
            computed = count(state.sequences[name].num_computed_tokens, "token")
            print(f"  {printable(names.name(name))}: {computed} in the cache, blocks {table}")
    return 0


def _page(arguments: argparse.Namespace) -> int:
    _write(room_with(read_all(arguments.file), arguments.file.name), arguments.output)
    print(f"{arguments.output}: open it in a browser")
    return 0


def _perfetto(arguments: argparse.Namespace) -> int:
    _write(to_perfetto(read_jsonl(arguments.file)), arguments.output)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    one, other = read_all(arguments.file), read_all(arguments.other)
    found = where_they_part(one, other)
    if found is None:
        print("the records make the same decisions")
        return 0
    followed = what_followed(outcome(one), outcome(other))
    print(printable("\n".join([found.text, *followed])))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        page = arguments.output / "index.html"
        for name, content in side_by_side(
            (one, arguments.file.name), (other, arguments.other.name), found, followed
        ).items():
            _write(content, arguments.output / name)
        print(f"{page}: open it in a browser")
    return 1


def _life(arguments: argparse.Namespace) -> int:
    events = read_all(arguments.file)
    life = life_of(events, _request(events, arguments.request))
    _write(msgspec.json.format(msgspec.json.encode(life), indent=1) + b"\n", None)
    return 0


def _why(arguments: argparse.Namespace) -> int:
    events = read_all(arguments.file)
    told = why_slow(events, _request(events, arguments.request))
    assert told is not None, "requests_of knows only requests that the record has"
    if arguments.json:
        _write(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n", None)
    else:
        print(printable("\n".join(why_in_words(told, Names.of(events)))))
    return 0


def _request(events: list[AnyEvent], wanted: str) -> str:
    """Return the id that was meant: the name itself, or the request with this short name."""
    known = requests_of(events)
    if wanted in known:
        return wanted
    story = Story(with_summaries=False)
    for line in story.tell(events):
        if line.name == wanted and line.request_id in known:
            return line.request_id
    shown = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
    raise _Problem(f"the record has no request {wanted!r}; it has {shown or 'none at all'}")


def _write(output: bytes, path: Path | None) -> None:
    if path is None:
        sys.stdout.buffer.write(printable_json(output.decode()).encode())
        sys.stdout.buffer.flush()
    else:
        path.write_bytes(output)


if __name__ == "__main__":
    run_command(main)
