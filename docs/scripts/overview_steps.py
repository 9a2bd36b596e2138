"""Draw what steps do, for ARCHITECTURE_OVERVIEW: chunks, lanes of requests, a draw, kernels."""

from __future__ import annotations

from docs.scripts.figures import LEFT, RIGHT, WIDTH, svg, text
from docs.scripts.overview_memory import box, short
from docs.scripts.reader import Record
from engine.trace import events as ev
from engine.whatif.step_times import StepTimes

ROOM = WIDTH - LEFT - RIGHT


def chunks_figure(records: dict[str, Record], reader: str, prompt: str) -> str:
    """Draw who waits for how much work: a stream's tokens while a long prompt is computed.

    The axis counts computed tokens, because times of the recorded runs are a busy machine's.
    """
    parts = {}
    for name, record in records.items():
        reads, long = record.id_of(reader), record.id_of(prompt)
        plans = record.all(ev.StepPlanned)
        shares = [{r.request_id: r.num_tokens for r in plan.rows} for plan in plans]
        own = [i for i, share in enumerate(shares) if share.get(long, 0) > 1]
        near = range(own[0] - 4, min(len(shares), own[-1] + 5))
        parts[name] = [(shares[i].get(reads, 0), shares[i].get(long, 0)) for i in near]
    whole = max(sum(a + b for a, b in steps) for steps in parts.values())
    scale = ROOM / whole
    title = "Somebody reads a stream, and a long prompt comes: at once, and in chunks"
    out = [text(LEFT, 22, title, "title")]
    y = 40.0
    for name, steps in parts.items():
        x, gap = float(LEFT), max(a + b for a, b in steps)
        budget = records[name].first(ev.StepPlanned).budget
        out.append(text(LEFT, y + 8, f"{name}, with a budget of {budget:,} tokens a step", "small"))
        out.append(text(LEFT - 8, y + 32, "the stream", "small", "end"))
        out.append(text(LEFT - 8, y + 58, "the prompt", "small", "end"))
        for _mine, its in steps:
            work = _mine + its
            if its > 1:
                out.append(box("prefill", x, y + 44, max(1.0, work * scale - 1), 18))
            elif its:
                out.append(box("decode", x, y + 44, 2, 18))
            x += work * scale
            out.append(box("decode", x - 1, y + 18, 2, 20))
        out.append(text(LEFT, y + 80, f"most that it waits for: {gap} tokens of work", "small"))
        y += 104
    note = (
        "from left to right: tokens computed, so about time; each blue mark is a token that the"
        " reader gets"
    )
    out.append(text(LEFT, y + 4, note))
    return svg(y + 16, out)


def lanes_figure(record: Record, title: str) -> str:
    """Draw requests × steps: waiting, prompt, decoding, preempted; a dot is a first token."""
    plans = record.all(ev.StepPlanned)
    requests = [event.request_id for event in record.all(ev.RequestQueued)]
    width = ROOM / plans[-1].step
    out = [text(LEFT, 22, title, "title")]
    preempted = {(e.request_id, e.step) for e in record.all(ev.RequestPreempted)}
    for index, request in enumerate(requests):
        y = 36 + 24 * index
        out.append(text(LEFT - 8, y + 13, short(request), "small", "end"))
        running = {p.step: row for p in plans for row in p.rows if row.request_id == request}
        first = min(step for step, row in running.items() if row.samples)
        away, begun, last = False, 1, ""
        for step in range(1, max(running) + 1):
            row = running.get(step)
            away = (away or (request, step) in preempted) and row is None
            style = "reserved-fill" if away else "wait"
            if row is not None:
                style = "prefill" if row.num_tokens > 1 or not row.samples else "decode"
            if last and style != last:
                out += [box(last, LEFT + (begun - 1) * width, y, (step - begun) * width - 0.6, 17)]
                begun = step
            last = style
        out += [box(last, LEFT + (begun - 1) * width, y, (step + 1 - begun) * width - 0.6, 17)]
        x = LEFT + first * width
        out.append(f'<circle class="first" cx="{x:.1f}" cy="{y + 8.5}" r="4"/>')
        out.append(text(x + 8, y + 12.5, f"{first}", "on"))
    y = 36 + 24 * len(requests)
    for step in range(0, plans[-1].step + 1, 20):
        out.append(text(LEFT + step * width, y + 12, str(step), "small", "middle"))
    note = (
        "by step; grey: waits, orange: prompt, blue: one token a step, purple: preempted; the dot"
        " is the first token, with its step"
    )
    return svg(y + 44, [*out, text(LEFT, y + 32, note)])


def draw_figure(record: Record, asked: str) -> str:
    """Draw one draw: the model's probabilities, what the parameters leave, and the number."""
    request = record.id_of(asked)
    drawn = record.first(ev.SampleDrawn, lambda e: e.request_id == request and e.num_kept > 1)
    texts = {k: v for e in record.all(ev.TextTokens) for k, v in e.texts.items()}
    shown = drawn.candidates[:6]
    title = (
        f"One draw: temperature {drawn.temperature:g}, top-k {drawn.top_k}, top-p {drawn.top_p:g}"
    )
    out = [text(LEFT, 22, title, "title")]
    room = ROOM - 150
    before = [2.718281828459045**c.logprob for c in shown]
    for index, (candidate, model) in enumerate(zip(shown, before, strict=True)):
        y = 36 + 34 * index
        name = texts.get(candidate.token_id, str(candidate.token_id))
        out.append(text(LEFT - 8, y + 17, f"“{name}”", "small", "end"))
        out.append(box("free", LEFT, y, model * room, 12))
        out.append(text(LEFT + model * room + 6, y + 10, f"{model:.3f}", "small"))
        after = candidate.probability
        out.append(box("decode" if after else "empty", LEFT, y + 14, after * room, 12))
        words = f"{after:.3f}" if after else "left out"
        out.append(text(LEFT + after * room + 6, y + 24, words, "small"))
    y = 36.0 + 34 * len(shown) + 10
    kept = sorted((c for c in shown if c.probability), key=lambda c: c.token_id)
    x = float(LEFT)
    for candidate in kept:
        share = candidate.probability * ROOM
        out.append(box("decode", x, y, share - 1.5, 18))
        name = texts.get(candidate.token_id, str(candidate.token_id))
        out.append(text(x + 4, y + 13, name.strip(), "on"))
        x += share
    mark = LEFT + drawn.uniform * ROOM
    out.append(f'<path class="line reserved" d="M{mark:.1f} {y - 5:.1f} V{y + 24:.1f}"/>')
    chosen = texts.get(drawn.token_id, str(drawn.token_id))
    note = f"the number {drawn.uniform:.3f}, from the seed and the position, falls on “{chosen}”"
    out += [
        text(LEFT, y + 40, note),
        text(LEFT, y + 56, "grey: the model's probability; blue: what the parameters leave of it"),
    ]
    return svg(y + 68, out)


def curve_figure(record: Record) -> str:
    """Draw throughput against the gap between tokens, by the cost that the record's steps have."""
    times = StepTimes(record.events)
    step, _token, row, *_rest = times.cost
    if not (step > 0 and row > 0):
        raise LookupError(
            f"{record.name} has steps that cost {step:.0f} + {row:.1f} · n µs: its times are noise;"
            " record it again on a quiet machine."
        )
    most = max(shape[1] for shape, _us in times.steps)
    counts = (1, 2, 4, 8, 16, 32, 64)
    points = [(n, step + row * n, 1e6 * n / (step + row * n)) for n in counts]
    left, base, high = LEFT + 10, 236, 186
    widest, longest = 1e6 / row, points[-1][1]
    title = "Throughput against latency: more sequences in a step"
    out = [
        text(left, 22, title, "title"),
        f'<path class="axis" d="M{left} 44 V{base} H{WIDTH - RIGHT}"/>',
    ]
    room = WIDTH - RIGHT - left - 60
    places = [
        (left + room * rate / widest, base - high * gap / longest, n, gap, rate)
        for n, gap, rate in points
    ]
    line = " ".join(f"{x:.1f} {y:.1f}" for x, y, *_ in places)
    out.append(f'<path class="line used" d="M{line}"/>')
    limit = left + room
    out.append(f'<path class="line limit" d="M{limit:.1f} 44 V{base}"/>')
    out.append(text(limit - 6, base - 8, f"never more than {widest:,.0f}", "small", "end"))
    for x, y, n, gap, rate in places:
        out.append(f'<circle class="own" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        words = f"{n}: {rate:,.0f}/s, {gap:,.0f} µs" if n in (1, 8, 64) else f"{n}"
        out.append(text(x - 8 if n > 8 else x, y - 8, words, "small", "end" if n > 8 else "start"))
    note = (
        f"a step of n sequences takes {step:,.0f} + {row:,.1f} · n µs, as fitted to"
        f" {record.name.rsplit('/', 1)[1]} (up to {most} sequences; beyond, the same line goes on)"
    )
    out += [
        text(left - 8, 48, "gap between", "small", "end"),
        text(left - 8, 62, "tokens", "small", "end"),
        text(WIDTH - RIGHT, base + 16, "tokens a second, all sequences together", "small", "end"),
        text(LEFT, base + 40, note),
    ]
    return svg(base + 52, out)


def kernels_figure(record: Record, step: int) -> str:
    """Draw the kernels of one decode step end to end, each as long as it took."""
    launched = [k for k in record.all(ev.KernelLaunched) if k.step == step]
    total = sum(kernel.duration_us for kernel in launched)
    whole = record.first(ev.StepFinished, lambda e: e.step == step)
    names = sorted({k.name for k in launched}, key=lambda n: -_sum(launched, n))
    styles = ("decode", "prefill", "shared", "reserved-fill", "free")
    style = {name: styles[min(i, len(styles) - 1)] for i, name in enumerate(names)}
    title = f"The {len(launched)} kernels of one decode step, one after another"
    out, x = [text(LEFT, 22, title, "title")], float(LEFT)
    for kernel in launched:
        width = kernel.duration_us / total * ROOM
        out.append(box(style[kernel.name], x, 38, width - 0.8, 34))
        x += width
    x, y = float(LEFT), 98.0
    for name in names[:4]:
        out.append(box(style[name], x, y - 10, 12, 12))
        words = f"{name}: {_sum(launched, name) / total:.0%}"
        out.append(text(x + 17, y, words, "small"))
        x += 60 + 7 * len(words)
    out.append(text(x, y, "grey: the others", "small"))
    bytes_read = sum(kernel.num_bytes for kernel in launched)
    note = (
        f"{total:,.0f} µs of kernels, timed one by one; {bytes_read / 1e6:,.1f} MB are read and"
        f" written for {whole.num_tokens} token"
    )
    return svg(136, [*out, text(LEFT, 124, note)])


def _sum(launched: list[ev.KernelLaunched], name: str) -> float:
    return sum(kernel.duration_us for kernel in launched if kernel.name == name)


def overlap_figure(record: Record, first: int, last: int) -> str:
    """Draw when each step was planned and when it ended: the next plan doesn't wait."""
    plans = {e.step: e for e in record.all(ev.StepPlanned)}
    ends = {e.step: e for e in record.all(ev.StepFinished)}
    zero = plans[first].ts_ns
    scale = ROOM / (ends[last].ts_ns - zero)
    out = [text(LEFT, 22, "The overlapped loop: a step is planned while another computes", "title")]
    for step in range(first, last + 1):
        y = 36 + 24 * (step - first)
        begin, end = (LEFT + (e.ts_ns - zero) * scale for e in (plans[step], ends[step]))
        out.append(text(LEFT - 8, y + 13, f"step {step}", "small", "end"))
        out.append(box("kept", begin, y, end - begin, 17))
        out.append(box("prefill", begin, y, max(3, plans[step].schedule_us * 1e3 * scale), 17))
        out.append(box("decode", end - 2, y, 3, 17))
    y = 36 + 24 * (last - first + 1)
    note = "time from left; orange: planned, pale: launched and computed, blue: its tokens arrive"
    return svg(y + 28, [*out, text(LEFT, y + 16, note)])
