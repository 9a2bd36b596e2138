"""Fill computed parts into the documents: `python -m docs.scripts.fill`.

A page marks a place with `<!-- filled: NAME -->` and `<!-- end -->`; the text between becomes what
the function of that name below returns. The figures in docs/images/ are written, too. Everything
comes from the records, from engine.fit, from engine.config, from the table of fields and from the
pocket model's report; nothing is typed.
"""

# ruff: noqa: E501 - table headings
from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from clients.table import clients_table
from docs.scripts import learner_questions, pocket_card
from docs.scripts.figures import blocks_figure, seats_figure
from docs.scripts.glossary import cited
from docs.scripts.glossary_terms import PAPERS
from docs.scripts.headline import readme_lines
from docs.scripts.koyeb_reference import PRICES
from docs.scripts.overview_memory import growth_figure, slots_figure, tables_figure
from docs.scripts.overview_steps import (
    chunks_figure,
    curve_figure,
    draw_figure,
    kernels_figure,
    lanes_figure,
    overlap_figure,
)
from docs.scripts.performance import RESULTS
from docs.scripts.questions import reserving
from docs.scripts.reader import Record, trace_output
from docs.scripts.record import LENGTHS
from docs.scripts.server import ROOT
from engine.config.table import options_table
from engine.fit.estimate import GIB, Plan, make_plan
from engine.server.answering.field import REFUSED, Field
from engine.server.answering.fields import ROUTES, TABLES
from engine.trace import events as ev
from engine.trace.command import run_command
from engine.trace.wording import ranges, size
from examples.ray_serve.table import checked_table, limits_table

PAGES = [ROOT / "README.md", ROOT / "pocket/README.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGES = ROOT / "docs" / "images"
MEASURED = ROOT / "benchmarks" / "results" / "intel-xeon-processor-amx"
PLACE = re.compile(r"(<!-- filled: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

PLANNED = (  # model, tokens of a sequence, sequences at once
    ("facebook/opt-125m", 2048, 32),
    ("facebook/opt-1.3b", 2048, 16),
    ("HuggingFaceTB/SmolLM2-1.7B", 4096, 8),
    ("Qwen/Qwen3-0.6B", 8192, 8),
    ("meta-llama/Llama-3.2-1B", 8192, 16),
    ("meta-llama/Llama-2-7b-hf", 4096, 4),
    ("meta-llama/Llama-3.1-8B", 8192, 2),
    ("meta-llama/Llama-3.1-8B", 8192, 16),
    ("mistralai/Mistral-7B-v0.3", 8192, 8),
    ("Qwen/Qwen3-8B", 32768, 8),
)


def instances() -> str:
    """List which GPU holds which model, as engine.fit finds it."""
    lines = [
        "| model | weights | KV a token | sequences × tokens | KV cache | needed | smallest that fits |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, length, concurrency in PLANNED:
        plan = make_plan(model, length, concurrency)
        gpu = plan.choice()
        lines.append(
            f"| `{model}` | {_gib(plan.shape.weight_bytes)} | {size(plan.kv_bytes_per_token)}"
            f" | {concurrency} × {length:,} | {_gib(plan.kv_bytes)} | {_gib(plan.needed)}"
            f" | {_named(plan, gpu)} |"
        )
    return "\n".join(lines)


def _named(plan: Plan, gpu) -> str:
    return f"`{gpu.instance(plan.ranks)}` ({gpu.regions})" if gpu else "none of the list"


DIVIDED = (  # model, tokens of a sequence, sequences at once
    ("Qwen/Qwen3-8B", 32768, 16),
    ("meta-llama/Llama-3.1-70B", 8192, 8),
)


def shares() -> str:
    """List what each rank of a divided model holds, as engine.fit finds it."""
    lines = [
        "| model | GPUs | weights of each | KV a token | sequences × tokens | needed of each | smallest by these sums |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, length, concurrency in DIVIDED:
        for ranks in (1, 2, 4, 8):
            plan = make_plan(model, length, concurrency, ranks=ranks)
            lines.append(
                f"| `{model}` | {ranks} | {_gib(plan.shape.weight_bytes)} | {size(plan.kv_bytes_per_token)}"
                f" | {concurrency} × {length:,} | {_gib(plan.needed)} | {_named(plan, plan.choice())} |"
            )
    return "\n".join(lines)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"


def numbers() -> str:
    """Write figures for the first screen: how much there is to read, how fast and how right it
    is."""
    core = sorted((ROOT / "engine" / "core").glob("*.py"))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in core)
    return (
        f"**{lines:,} lines** decide ([engine/core](engine/core), an evening's reading) ·"
        f" **{len(ev.ALL_EVENTS)} kinds** of events tell it ([docs/LOG_GUIDE.md](docs/LOG_GUIDE.md)).\\\n"
        + readme_lines(RESULTS)
    )


def prices() -> str:
    """List what instances cost, and where that was read."""
    lines = ["| type | $ an hour | according to |", "|---|---|---|"]
    lines += [f"| `{p.instance_type}` | {p.dollars:g} | {p.source} |" for p in PRICES]
    return "\n".join(lines) + "\n"


def life() -> str:
    """List the steps of one short request: what was computed, its table, what was drawn."""
    record = Record("tour")
    request = record.id_of("first")
    finished = record.first(ev.RequestFinished, lambda e: e.request_id == request)
    lines = [
        "| step | tokens computed | positions | block table | token drawn | log-probability |",
        "|---|---|---|---|---|---|",
    ]
    for plan in record.all(ev.StepPlanned):
        row = next((row for row in plan.rows if row.request_id == request), None)
        if row is None:
            continue
        before_end = next(
            i for i, e in enumerate(record.events)
            if isinstance(e, ev.StepFinished) and e.step == plan.step
        )  # fmt: skip
        first = next(i for i, e in enumerate(record.events) if e is plan)
        table: list[int] = []
        for position in range(first, before_end + 1):  # the last one frees it within the step
            table = record.replay.seek(position).tables.get(request) or table
        drawn = record.first(ev.SampleDrawn, lambda e, s=plan.step: e.step == s)
        last = row.start + row.num_tokens - 1
        where = str(row.start) if row.num_tokens == 1 else f"{row.start}–{last}"
        lines.append(
            f"| {plan.step} | {row.num_tokens} | {where} | {ranges(table)} | {drawn.token_id}"
            f" | {drawn.logprob:.2f} |"
        )
    size = record.first(ev.EngineKvSized).block_size
    prompt = finished.num_prompt_tokens
    full, rest = divmod(prompt, size)
    more = " and begin one more, in which the drawn ones follow" if rest else ""
    told = [
        f"It ended because: {finished.why} (`finish_reason`: `{finished.reason}`). A block holds {size}"
        f" tokens: the prompt's {prompt} fill {full} of them{more}."
    ]
    return "\n".join([*lines, "", *told])


def paging() -> str:
    """Compare paging with reserving, counted in two records."""
    lines = [
        "| record | sequences running | blocks used | of their slots filled | blocks if reserved | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("tour", "seats", "crowd"):
        record = Record(name)
        block_size = record.first(ev.EngineKvSized).block_size
        plan, used, tokens, reserved, running = reserving(record)
        lines.append(
            f"| [{name}](records/{name}.jsonl), step {plan.step} | {running} | {used}"
            f" | {tokens / (used * block_size):.0%} | {reserved} | {reserved / used:.1f} × |"
        )
    return "\n".join(lines)


def batching() -> str:
    """Compare the steps of continuous batching with those that batches of three would need."""
    record = Record("seats")
    seats = record.first(ev.EngineStarted).config["max_num_seqs"]
    taken = len(record.all(ev.StepFinished))
    groups = [LENGTHS[i : i + seats] for i in range(0, len(LENGTHS), seats)]
    static = sum(max(group) for group in groups)
    tokens = sum(LENGTHS)
    drawn = sum(e.num_output_tokens for e in record.all(ev.RequestFinished))
    if drawn != tokens:
        raise LookupError(f"{record.name} drew {drawn} tokens, not {tokens}; record it again.")
    words = " + ".join(str(max(group)) for group in groups)
    return "\n".join(
        [
            f"| way | steps for {tokens} tokens of {len(LENGTHS)} requests on {seats} seats | tokens a step |",
            "|---|---|---|",
            f"| continuous: recorded | {taken} | {tokens / taken:.2f} |",
            f"| static, in groups of {seats}: counted, {words} | {static} | {tokens / static:.2f} |",
        ]
    )


def replayed() -> str:
    """Return what `replay` prints for the record of the crowd."""
    output = trace_output(["replay", str(Record("crowd").path), "--step", "20"])
    return f"```text\n{output}\n```"


def grade() -> str:
    """Return what `make grade` prints of a folder with three steps done and a fourth begun."""
    from course.catalogue import COURSE
    from course.grade import begin, told
    from course.grade import grade as graded

    solutions = ROOT / "tests" / "exercises" / "solutions"
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "exercises"
        begin(folder)
        for name in ("reading", "slots", "pool"):
            (folder / f"{name}.py").write_bytes((solutions / f"{name}.py").read_bytes())
        waste = (solutions / "waste.py").read_text(encoding="utf-8")
        counted_twice = waste.replace("max(inside, tokens", "(inside + tokens")
        (folder / "waste.py").write_text(counted_twice, encoding="utf-8")
        lines = told(graded(folder, COURSE), folder)
    output = "\n".join(lines).replace(os.path.relpath(folder), "exercises")
    return f"```text\n{output}\n```"


def fields() -> str:
    """List what is done with each field of a request, by body, a table for each API."""
    return "\n\n".join(_fields(bodies, table) for bodies, table in TABLES)


def _fields(bodies: tuple[str, ...], table: tuple[Field, ...]) -> str:
    heads = [f"| field | {' | '.join(ROUTES[body] for body in bodies)} | |"]
    heads.append("|---" * (len(bodies) + 2) + "|")
    rows = (
        f"| `{field.name}` | {' | '.join(_verdict(field, body) for body in bodies)} | {field.note} |"
        for field in table
    )
    return "\n".join([*heads, *rows])


def _verdict(field: Field, body: str) -> str:
    verdict = field.verdict(body) or "–"
    if verdict == REFUSED and field.passes:
        verdict += f" ({', '.join(f'`{json.dumps(value)}`' for value in field.passes)})"
    return verdict


def one_group() -> str:
    """Draw one group of weights through each quantized format."""
    from docs.scripts import formats  # torch, which no other place needs

    return formats.one_group()


def exactness() -> str:
    """Count how exactly each quantized format is read."""
    from docs.scripts import formats

    return formats.exactness()


PAPERS_OF = {
    "prefill": ("attention", "scaling"),
    "memory": ("paged",),
    "batching": ("orca",),
    "chunks": ("sarathi", "sarathi-serve"),
    "load": ("distserve", "tail"),
    "preemption": ("paged", "fastserve"),
    "prefix": ("sglang",),
    "sampling": ("top-k", "top-p", "min-p", "philox"),
    "forms": ("outlines",),
    "kernels": ("flash", "online-softmax", "roofline", "triton"),
    "bits": ("gptq", "awq", "fp8"),
    "many": ("megatron", "gpipe", "splitwise"),
}
"""Which papers a section of ARCHITECTURE_OVERVIEW names: keys of the glossary's PAPERS."""


def papers(section: str) -> str:
    """Cite the papers of a section."""
    return "\n".join(f"- {cited(PAPERS[key])}" for key in PAPERS_OF[section])


def divided() -> str:
    """Return what dividing a model takes, as it was measured on the first machine that did."""
    return sorted(RESULTS.glob("*/tensor_parallel.md"))[0].read_text(encoding="utf-8").strip()


PLACES: dict[str, Callable[[], str]] = {
    "instances": instances,
    "shares": shares,
    "fields": fields,
    "options": options_table,
    "clients": clients_table,
    "ray-serve-checked": checked_table,
    "ray-serve-limits": limits_table,
    "life": life,
    "paging": paging,
    "batching": batching,
    "numbers": numbers,
    "prices": prices,
    **{f"papers-{section}": partial(papers, section) for section in PAPERS_OF},
    "replayed": replayed,
    "grade": grade,
    "twenty": learner_questions.table,
    "one-group": one_group,
    "exactness": exactness,
    "divided": divided,
    "pocket-measured": pocket_card.measured,
    "pocket-trained": pocket_card.trained,
    "pocket-corpus": pocket_card.corpus,
}


def filled(text: str) -> str:
    """Fill every place of a page. Raises KeyError for a name without a function."""
    return PLACE.sub(lambda found: f"{found[1]}{PLACES[found[2]]()}\n{found[4]}", text)


def figures() -> dict[Path, str]:
    """Return the figures: file → SVG."""
    crowd, forks, overlap, shared, tour = map(Record, ("crowd", "forks", "async", "shared", "tour"))
    budgets = {name: Record(name.replace(" ", "-")) for name in ("at once", "chunks")}
    lanes = "Eight requests on a pool of 20 blocks: who waits, who is preempted"
    found = "After prefix hits: the tables of five requests with one long instruction"
    forked = "After a fork: four answers to one prompt, each writes into a block of its own"
    drawn = {
        "blocks": blocks_figure(crowd),
        "seats": seats_figure(Record("seats")),
        "growth": growth_figure(tour, "six-0"),
        "slots": slots_figure(crowd, 20, "crowd-0"),
        "chunks": chunks_figure(budgets, "reads", "long"),
        "lanes": lanes_figure(crowd, lanes),
        "prefix": tables_figure(shared, shared.all(ev.BlockShared)[-1].step, found),
        "forks": tables_figure(forks, forks.first(ev.BlockCopied).step, forked),
        "draw": draw_figure(tour, "warm"),
        "curve": curve_figure(crowd),
        "kernels": kernels_figure(Record("profile"), 3),
        "overlap": overlap_figure(overlap, 12, 19),
    }
    return {IMAGES / f"{name}.svg": svg for name, svg in drawn.items()}


def main() -> int:
    """Write all pages and figures."""
    IMAGES.mkdir(exist_ok=True)
    for path, svg in figures().items():
        path.write_text(svg, encoding="utf-8")
    for page in PAGES:
        if page.exists():
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
