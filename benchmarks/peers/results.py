"""Turn single runs into medians, ratios and the table, and join sessions.

A session is one call of the command. Ratios are formed within a session only, where the systems
took turns: repeat by repeat, so that a change of the machine's speed affects both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from benchmarks.workloads import Run, Workload

ENGINE = "Glasshouse"
PLACE = ("shape", "dtype", "workload", "transport")


def row(run: Run, work: Workload, **labels: object) -> dict:
    """Return one run as it is kept: seconds, tokens, and what it was."""
    return {
        **labels,
        "workload": work.name,
        "total_s": run.total_s,
        "first_token_s": run.first_token_s,
        "ends_s": run.ends_s,
        "output_tokens": work.num_output,
        "prompt_tokens": sum(len(job.prompt) for job in work.jobs),
        "steps": run.num_steps,
    }


def speed(row: dict) -> float:
    """Return the tokens/s a workload is judged by.

    Decoded (W1), of the prompt (W4), output (W2, W3).
    """
    if row["workload"] == "W1":
        return (row["output_tokens"] - 1) / (row["total_s"] - row["first_token_s"])
    if row["workload"] == "W4":
        return row["prompt_tokens"] / row["total_s"]
    return row["output_tokens"] / row["total_s"]


def merge(old: list[dict], new: list[dict]) -> list[dict]:
    """Merge rows: a newer session's replace an older one's for the same system and place.

    Our own older rows stay as long as a peer's stand beside them.
    """
    rows = [*old, *new]
    newest = {
        (_place(rows_[0]), system): max(r["session"] for r in rows_)
        for (_, system), rows_ in _grouped(rows, lambda r: (_place(r), r["system"])).items()
    }
    beside = {(place, session) for (place, system), session in newest.items() if system != ENGINE}
    return [
        r
        for r in rows
        if newest[_place(r), r["system"]] == r["session"]
        or (r["system"] == ENGINE and (_place(r), r["session"]) in beside)
    ]


def summary(rows: list[dict]) -> list[dict]:
    """Return a line for every system at every place.

    Medians, least and most, and our ratio to it.
    """
    lines = []
    for place, here in _grouped(rows, _place).items():
        systems = _grouped(here, lambda r: r["system"])
        for system in sorted(systems, key=lambda name: (name != ENGINE, name)):
            session = max(r["session"] for r in systems[system])
            runs = [r for r in systems[system] if r["session"] == session]
            ours = [r for r in systems.get(ENGINE, []) if r["session"] == session]
            line = {**dict(zip(PLACE, place)), "system": system, "session": session}
            line |= _figures(runs)
            if system != ENGINE and ours:
                line |= _ratio(ours, runs)
            lines.append(line)
    return lines


def _figures(runs: list[dict]) -> dict:
    speeds = [speed(run) for run in runs]
    ends = sorted(end for run in runs for end in run["ends_s"])
    return {
        "tokens_per_s": statistics.median(speeds),
        "spread": [min(speeds), max(speeds)],
        "ttft_ms": 1e3 * statistics.median(run["first_token_s"] for run in runs),
        "p50_s": ends[len(ends) // 2],
        "p99_s": ends[min(len(ends) - 1, int(0.99 * len(ends)))],
        "runs": len(runs),
    }


def _ratio(ours: list[dict], theirs: list[dict]) -> dict:
    """Return ours over theirs: of the medians; and the least and most of the repeats both had."""
    by_repeat = {run["repeat"]: speed(run) for run in ours}
    pairs = [by_repeat[run["repeat"]] / speed(run) for run in theirs if run["repeat"] in by_repeat]
    medians = [statistics.median(map(speed, runs)) for runs in (ours, theirs)]
    ratio = medians[0] / medians[1]
    return {
        "engine_is": ratio,
        "engine_is_spread": [min([*pairs, ratio]), max([*pairs, ratio])],
    }


def markdown(lines: list[dict], sessions: dict[str, dict]) -> str:
    """Write the table, with the machine and the versions above it."""
    out = []
    for number in sorted({line["session"] for line in lines}):
        session = sessions[number]
        versions = ", ".join(
            f"{name} ({', '.join(f'{k} {v}' for k, v in sorted(parts.items()))})"
            for name, parts in sorted(session["versions"].items())
            if parts
        )
        out.append(
            f"{number}: {session['cpu']}, {session['threads']} threads; {versions}. Other load"
            f" while all systems slept: at most {100 * session['idle_cores']:.0f} % of a core."
        )
        out += [f"  Left out: {why}" for why in session["left_out"]]
        out.append("")
    out += [
        "W1: decode tokens/s of one request; W2, W3: output tokens/s of 16 and 64 requests at once;"
        " W4: prompt tokens/s of 1,024 tokens. In process and over HTTP are compared each with"
        " itself. In brackets: the least and the most of the repeats.",
        "",
        "| shape | dtype | workload | | system | tokens/s | first token ms | p50 / p99 s |"
        " Glasshouse is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    out += [_table_row(line) for line in lines]
    return "\n".join(out) + "\n"


def _table_row(line: dict) -> str:
    ratio = ""
    if "engine_is" in line:
        low, high = line["engine_is_spread"]
        ratio = f"**{line['engine_is']:.2f}×** ({low:.2f}–{high:.2f})"
    low, high = line["spread"]
    cells = [
        *(line[name] for name in PLACE),
        line["system"],
        f"{line['tokens_per_s']:,.1f} ({low:,.0f}–{high:,.0f})",
        f"{line['ttft_ms']:.1f}",
        f"{line['p50_s']:.2f} / {line['p99_s']:.2f}",
        ratio,
    ]
    return f"| {' | '.join(cells)} |"


def _place(row: dict) -> tuple:
    return tuple(row[name] for name in PLACE)


def _grouped(rows: Iterable[dict], key: Callable[[dict], tuple]) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for r in rows:
        groups.setdefault(key(r), []).append(r)
    return groups
