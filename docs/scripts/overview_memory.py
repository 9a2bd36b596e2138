"""Draw where keys and values lie, for ARCHITECTURE_OVERVIEW: growth, slots, tables that share."""

from __future__ import annotations

from docs.scripts.figures import LEFT, WIDTH, svg, text
from docs.scripts.reader import Record
from engine.trace import events as ev
from engine.trace.wording import ranges


def box(style: str, x: float, y: float, width: float, height: float) -> str:
    """Make a rectangle."""
    return (
        f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}"'
        f' height="{height:.1f}" rx="1.5"/>'
    )


def short(request_id: str) -> str:
    """Return a request's name without what the server put before it."""
    return request_id.removeprefix("chatcmpl-")


def growth_figure(record: Record, asked: str) -> str:
    """Draw positions × steps of one request: what a step computes, what the cache has by then."""
    request = record.id_of(asked)
    rows = [(p.step, row) for p in record.all(ev.StepPlanned) for row in p.rows
            if row.request_id == request]  # fmt: skip
    end = rows[-1][1].start + rows[-1][1].num_tokens
    cell, high = min(26.0, (WIDTH - LEFT - 20) / (end + 1)), 20
    prompt = record.first(ev.RequestQueued, lambda e: e.request_id == request).num_prompt_tokens
    title = f"A request of {prompt} prompt tokens: what each step computes, and what is kept"
    out = [text(LEFT, 22, title, "title")]
    for index, (step, row) in enumerate(rows):
        y = 36 + index * high
        out.append(text(LEFT - 8, y + 13, f"step {step - rows[0][0] + 1}", "small", "end"))
        for position in range(row.start + row.num_tokens):
            style = "kept" if position < row.start else "prefill" if index == 0 else "decode"
            out.append(box(style, LEFT + position * cell, y, cell - 2, high - 3))
        drawn = LEFT + (row.start + row.num_tokens) * cell
        if row.samples:
            out.append(
                f'<rect class="link" x="{drawn + 1:.1f}" y="{y + 1}" width="{cell - 4:.1f}"'
                f' height="{high - 5}" rx="1.5"/>'
            )
    y = 36 + len(rows) * high
    for position in range(0, end + 1, 4):
        out.append(text(LEFT + (position + 0.4) * cell, y + 12, str(position), "small", "middle"))
    note = (
        "by position; orange: the prompt, at once (prefill); blue: one token a step (decode); pale:"
        " read from the KV cache;"
    )
    out += [
        text(LEFT, y + 32, note),
        text(LEFT, y + 48, "outlined: the token that the step draws, which the next one computes"),
    ]
    return svg(y + 60, out)


def slots_figure(record: Record, step: int, asked: str) -> str:
    """Draw a sequence's table above the pool: which block each of its entries names."""
    state = record.replay.state_at(step)
    request = record.id_of(asked)
    table, size = state.tables[request], state.block_size
    tokens = state.sequences[request].num_computed_tokens
    num_blocks = len(state.references)
    columns = 10
    width = (WIDTH - LEFT - 30) / columns
    slot = (width - 8) / size

    def block_at(block: int) -> tuple[float, float]:
        return LEFT + block % columns * width, 170.0 + block // columns * 52

    title = f"One sequence of {tokens} tokens: its table, and where the blocks lie"
    out = [text(LEFT, 22, title, "title"), text(8, 56, "table")]
    owners = {b: name for name, blocks in state.tables.items() for b in blocks}
    for block in range(num_blocks):
        x, y = block_at(block)
        mine = block in table
        held = state.sequences[owners[block]].num_computed_tokens if block in owners else 0
        first = state.tables[owners[block]].index(block) * size if block in owners else 0
        for offset in range(size):
            full = first + offset < held
            style = ("own" if mine else "free") if full else "empty"
            out.append(box(style, x + offset * slot, y, slot - 0.7, 22))
        out.append(text(x, y + 35, f"block {block}", "small"))
    position = min(tokens - 1, 2 * size + 5)
    for index, block in enumerate(table):
        x = LEFT + index * (width + 40)
        begin, last = index * size, min(tokens, (index + 1) * size) - 1
        out.append(box("own", x, 38, width - 8, 26))
        out.append(text(x + (width - 8) / 2, 55, str(block), "on", "middle"))
        out.append(text(x, 80, f"positions {begin}–{last}", "small"))
        to_x, to_y = block_at(block)
        out.append(
            f'<path class="link" d="M{x + width / 2 - 4:.1f} 86 C{x + width / 2 - 4:.1f} 130'
            f' {to_x + width / 2 - 4:.1f} 126 {to_x + width / 2 - 4:.1f} {to_y - 4:.1f}"/>'
        )
    block = table[position // size]
    where = (
        f"position {position}: entry {position} ÷ {size} = {position // size}, so block {block};"
        f" {position % size} slots into it: slot {block} · {size} + {position % size} ="
        f" {block * size + position % size}"
    )
    y = 170 + -(-num_blocks // columns) * 52 + 14
    out += [
        text(LEFT, y, where),
        text(LEFT, y + 16, "grey: tokens of other sequences; pale: slots without a token"),
    ]
    return svg(y + 28, out)


def tables_figure(record: Record, step: int, title: str) -> str:
    """Draw the block tables of all running sequences: entries that several name are green."""
    state = record.replay.state_at(step)
    tables = {name: blocks for name, blocks in state.tables.items() if blocks}
    cell, high = 46, 26
    out = [text(LEFT + 30, 22, title, "title")]
    for index, (name, blocks) in enumerate(tables.items()):
        y = 36 + index * high
        out.append(text(LEFT + 22, y + 15, short(name), "small", "end"))
        for entry, block in enumerate(blocks):
            style = "shared" if state.references[block] > 1 else "own"
            x = LEFT + 30 + entry * cell
            out.append(box(style, x, y, cell - 4, high - 5))
            out.append(text(x + cell / 2 - 2, y + 15, str(block), "on", "middle"))
    y = 36 + len(tables) * high
    used = {block for blocks in tables.values() for block in blocks}
    named = sum(map(len, tables.values()))
    note = f"{named} entries name {len(used)} blocks ({ranges(sorted(used))})"
    out += [text(LEFT + 30, y + 16, f"green: named by several tables; {note}")]
    return svg(y + 28, out)
