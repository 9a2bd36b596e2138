"""Draw figures from records, as SVG that is legible on light and dark pages."""

# ruff: noqa: E501 - table headings
from __future__ import annotations

from docs.scripts.reader import Record
from engine.rounding import ceil_div
from engine.trace import events as ev

WIDTH, LEFT, RIGHT = 860, 90, 40
STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-size: 14px; font-weight: 600 }
.axis { stroke: #8c959f; stroke-width: 1; fill: none }
.prefill { fill: #bc4c00 } .decode { fill: #0969da } .wait { fill: #8c959f; fill-opacity: .35 }
.used { stroke: #0969da } .reserved { stroke: #bc4c00 } .filled { stroke: #1a7f37 }
.shared { fill: #1a7f37 } .kept { fill: #0969da; fill-opacity: .3 } .own { fill: #0969da }
.first { fill: #1a7f37 } .reserved-fill { fill: #8250df }
.empty { fill: #8c959f; fill-opacity: .18 } .free { fill: #8c959f; fill-opacity: .45 }
.on { font-size: 10px; fill: #fff } .small { font-size: 11px } .link { stroke: #8c959f; fill: none }
.line { stroke-width: 2; fill: none } .limit { stroke: #8c959f; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) {
text { fill: #b1bac4 }
.prefill { fill: #f0883e } .decode { fill: #58a6ff } .wait { fill: #8b949e; fill-opacity: .35 }
.shared { fill: #3fb950 } .kept { fill: #58a6ff; fill-opacity: .3 } .own { fill: #58a6ff }
.on { fill: #0d1117 } .first { fill: #3fb950 } .reserved-fill { fill: #a371f7 }
.used { stroke: #58a6ff } .reserved { stroke: #f0883e } .filled { stroke: #3fb950 }
}
</style>"""


def seats_figure(record: Record) -> str:
    """Draw requests × steps: when each waited, computed its prompt, and decoded."""
    plans = record.all(ev.StepPlanned)
    requests = [event.request_id for event in record.all(ev.RequestQueued)]
    first_step = {event.request_id: max(1, event.step) for event in record.all(ev.RequestQueued)}
    step_width = (WIDTH - LEFT - RIGHT) / max(plan.step for plan in plans)
    height = 96 + 26 * len(requests)
    seats = record.first(ev.EngineStarted).config["max_num_seqs"]
    out = [text(LEFT, 22, f"{len(requests)} requests on {seats} seats, as recorded", "title")]
    for index, request in enumerate(requests):
        y = 40 + 26 * index
        rows = [(p.step, r) for p in plans for r in p.rows if r.request_id == request]
        begin, end = rows[0][0], rows[-1][0]
        out.append(text(8, y + 13, request.removeprefix("chatcmpl-")))
        out.append(_bar("wait", first_step[request], begin, y, step_width))
        prompt_end = max(step for step, row in rows if row.num_tokens > 1)
        out.append(_bar("prefill", begin, prompt_end + 1, y, step_width))
        out.append(_bar("decode", prompt_end + 1, end + 1, y, step_width))
        drawn = sum(row.samples for _step, row in rows)
        out.append(text(LEFT + (end + 1) * step_width + 4, y + 13, f"{drawn}"))
    y = 40 + 26 * len(requests)
    out.append(f'<path class="axis" d="M{LEFT} {y} H{WIDTH - RIGHT}"/>')
    for step in range(0, plans[-1].step + 1, 20):
        out.append(text(LEFT + step * step_width, y + 16, str(step), anchor="middle"))
    out.append(text(LEFT, y + 34, "steps; grey: waits, orange: prompt, blue: one token a step"))
    return svg(height, out)


def blocks_figure(record: Record) -> str:
    """Draw blocks by step: used, with tokens in them, and if each sequence reserved its most."""
    sized = record.first(ev.EngineKvSized)
    most = ceil_div(sized.max_model_len, sized.block_size)
    used, full, reserved = [], [], []
    for plan in record.all(ev.StepPlanned):
        state = record.replay.state_at(plan.step)
        running = [name for _rank, name in state.running]
        tokens = sum(state.sequences[name].num_computed_tokens for name in running)
        used.append((plan.step, sum(r > 0 for r in state.references)))
        full.append((plan.step, tokens / sized.block_size))
        reserved.append((plan.step, most * len(running)))
    top = max(count for _step, count in reserved)
    plot, height = 220, 320
    base = 40 + plot

    def path(points: list[tuple[int, float]], style: str) -> str:
        last = points[-1][0]
        xs = [LEFT + (WIDTH - LEFT - RIGHT) * step / last for step, _count in points]
        ys = [base - plot * count / top for _step, count in points]
        drawn = " ".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
        return f'<path class="line {style}" d="M{drawn}"/>'

    limit = base - plot * sized.num_blocks / top
    out = [
        text(LEFT, 22, f"KV blocks step by step, on a pool of {sized.num_blocks}", "title"),
        f'<path class="axis" d="M{LEFT} 40 V{base} H{WIDTH - RIGHT}"/>',
        f'<path class="line limit" d="M{LEFT} {limit:.1f} H{WIDTH - RIGHT}"/>',
        text(LEFT - 8, limit + 4, f"pool {sized.num_blocks}", anchor="end"),
        text(LEFT - 8, 46, str(top), anchor="end"),
        text(LEFT - 8, base, "0", anchor="end"),
        path(reserved, "reserved"),
        path(used, "used"),
        path(full, "filled"),
        text(LEFT, base + 22, "orange: what reserving the longest sequence for each running one would take"),
        text(LEFT, base + 38, "blue: blocks used; green: blocks' worth of tokens in them"),
    ]  # fmt: skip
    return svg(height, out)


def _bar(style: str, begin: int, end: int, y: int, step_width: float) -> str:
    x, width = LEFT + begin * step_width, max(0, end - begin) * step_width
    return f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" rx="2"/>'


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    """Make a text, at its baseline."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{words}</text>'


def svg(height: float, parts: list[str]) -> str:
    """Make a whole picture, WIDTH wide."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">'
    return "\n".join([head, STYLE, *parts, "</svg>", ""])
