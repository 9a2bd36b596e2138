"""Put the breakdown of a request's time into words, one line a cause."""

from __future__ import annotations

from typing import Any

from engine.trace.names import Names
from engine.trace.wording import count, duration

_MEANING = {
    "tokenizing": "its text became tokens",
    "to the engine": "on its way to the engine process",
    "not recorded": "before the record begins",
    "prefill": "its prompt was computed",
    "decode": "its tokens were computed",
    "sampling": "tokens were drawn",
    "recording": "draws were recorded (level full)",
    "loop": "the loop planned, booked and sent around its steps",
    "detokenizing": "its last token became text",
    "sending": "the rest of the answer was given to the network",
}
_FOR = {
    "seats": "a seat",
    "blocks": "blocks",
    "budget": "room in the step's budget",
    "preemption": "the end of a step that preempted",
}


SMALL = 0.005  # of the whole: causes below are told together


def why_in_words(told: dict[str, Any], names: Names) -> list[str]:
    """Return the lines: the whole, then its causes with their shares, largest first."""
    whole = told["whole_ns"]
    until = "to its last byte" if _answered(told) else "until it ended"
    if not told["ended"]:
        until = "until the record's end; it hasn't ended"
    first = told["first_token_ns"]
    after = f"; its first token was drawn after {duration(first / 1e3)}" if first else ""
    lines = [f"{names.name(told['request_id'])}: {duration(whole / 1e3)} {until}{after}"]
    small = 0
    for part in together(told["parts"]):
        if part["ns"] < SMALL * whole:
            small += part["ns"]
        else:
            lines.append(_line(part["ns"], whole, part["cause"], sentence(part, names)))
    if small:
        lines.append(_line(small, whole, "smaller causes", ""))
    return lines


def _line(ns: int, whole: int, cause: str, text: str) -> str:
    return f"  {duration(ns / 1e3):>8} {ns / whole:>6.1%}  {cause:<15}  {text}".rstrip()


def together(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the parts of the same cause for different requests, and sort by time, longest first."""
    joined: dict[tuple[str, str], dict[str, Any]] = {}
    for part in sorted(parts, key=lambda part: -part["ns"]):
        key = part["cause"], part["for"]
        if key not in joined:
            joined[key] = {**part, "who": list(part["who"])}
            continue
        whole = joined[key]
        for name in ("ns", "before_first_token_ns", "steps"):
            whole[name] += part[name]
        whole["who"] += [who for who in part["who"] if who not in whole["who"]]
    return sorted(joined.values(), key=lambda part: -part["ns"])


def sentence(part: dict[str, Any], names: Names) -> str:
    """Say what a part of the time went to, and who caused it."""
    cause, who = part["cause"], [names.name(name) for name in part["who"]]
    listed = ", ".join(who[:3]) + (f" and {len(who) - 3} more" if len(who) > 3 else "")
    what_for = _FOR.get(part["for"], part["for"])
    why = f" ({names.plain(part['why'])})" if part["why"] else ""
    if cause == "queued":
        by = f", behind or beside {listed}" if who and part["for"] != "the next step" else ""
        return f"waited for {what_for}{by}{why}"
    if cause == "preempted":
        by = f", so that {listed} could go on" if who else ""
        return f"its blocks were given back{by}; it waited for {what_for}"
    if cause == "recompute":
        return "computed again what the preemption" + (f" for {listed}" if who else "") + " lost"
    if cause == "swap":
        return f"blocks of {listed or 'its own'} were copied from or to the host"
    if cause == "others' prompts":
        return f"chunks of {listed} made {count(part['steps'], 'step')} of it longer"
    if cause == "left out":
        return f"{count(part['steps'], 'step')} had no token of it; most were of {listed}"
    return _MEANING[cause]


def _answered(told: dict[str, Any]) -> bool:
    return any(part["cause"] in ("sending", "detokenizing") for part in told["parts"])
