// The block grid: every KV block, and whose it is.

import { colours, element, fit, ownerColour } from "./paint.js";
import { number, plural } from "./words.js";

const TALLEST = 300; // px, before it scrolls
const LONGEST_TEXT = 400; // characters of a block's tokens
const PROJECTED = 104, LARGEST = 52, COMMON = 26, SMALLEST = 4; // px of a block, gap included
const SMALL = 512; // blocks of a pool that is drawn as large as it can be

export class Grid {
  constructor(room, panel) {
    this.room = room;
    this.canvas = panel.querySelector("canvas");
    this.box = panel.querySelector(".grid-box");
    this.tip = panel.querySelector(".tip");
    this.reserve = panel.querySelector(".reserve");
    this.caption = panel.querySelector(".caption");
    this.drawn = null; // block → what was drawn there, as one number
    this.pointed = -1;
    this.canvas.addEventListener("pointermove", (event) => this.#point(this.#at(event)));
    this.canvas.addEventListener("pointerleave", () => this.#point(-1));
    this.canvas.addEventListener("click", (event) => this.#choose(this.#at(event)));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("blur", () => this.#point(-1));
  }

  redraw() {
    this.drawn = null;
  }

  update() {
    const { state } = this.room.record;
    const count = state.numBlocks;
    this.canvas.hidden = !count;
    if (!count) return this.#tellNothing();
    this.#layOut(count);
    this.owners = this.#owners(state);
    const { context, changed } = fit(this.canvas, this.width, this.rows * this.cell);
    if (changed || this.drawn?.length !== count) {
      this.drawn = new Float64Array(count).fill(-1);
      context.clearRect(0, 0, this.width, this.rows * this.cell);
    }
    for (let block = 0; block < count; block++) this.#draw(context, state, block);
    this.#tellReserve(state);
    if (this.pointed >= 0) this.#tell();
  }

  #tellNothing() {
    this.drawn = this.owners = this.laidOutFor = null;
    this.pointed = -1;
    this.tip.hidden = true;
    this.told = "";
    this.caption.textContent = this.room.nothingKnown;
    this.reserve.replaceChildren();
  }

  #layOut(count) {
    const width = this.box.clientWidth;
    const { presenting } = this.room;
    const high = presenting ? this.box.clientHeight : count <= SMALL ? TALLEST * 0.7 : TALLEST;
    const { laidOutFor: last } = this;
    if (width === last?.width && high === last.high && count === last.count) return;
    let cell = count > SMALL ? COMMON : presenting ? PROJECTED : LARGEST;
    while (cell > SMALLEST && Math.ceil(count / Math.floor(width / cell)) * cell > high) cell--;
    this.cell = cell;
    this.columns = Math.max(1, Math.floor(width / cell));
    this.rows = Math.ceil(count / this.columns);
    this.width = width;
    this.laidOutFor = { width, high, count };
    this.drawn = null;
  }

  /** block → its first owner (1-based), and the place in that one's table. */
  #owners(state) {
    const first = new Int32Array(state.numBlocks), place = new Int32Array(state.numBlocks);
    const names = [""];
    for (const [name, table] of state.tables) {
      const owner = names.push(name) - 1;
      for (let index = 0; index < table.length; index++) {
        const block = table[index];
        if (first[block]) continue;
        first[block] = owner;
        place[block] = index;
      }
    }
    return { first, place, names };
  }

  #filled(state, name, index) {
    const computed = state.sequences.get(name)?.computed;
    if (computed === undefined) return state.blockSize; // it ended; its blocks wait for the last step
    return Math.max(0, Math.min(state.blockSize, computed - index * state.blockSize));
  }

  #draw(context, state, block) {
    const { first, place, names } = this.owners;
    const { ledger, selection } = this.room;
    const shared = state.references[block] > 1;
    const chosen = shared && selection.request && state.tables.get(selection.request)?.includes(block);
    const owner = chosen ? selection.request : names[first[block]];
    const findable = state.hashes.has(block);
    const life = owner ? ledger.life(owner) : null;
    const filled = owner ? this.#filled(state, owner, place[block]) / state.blockSize : 0;
    const mine = !selection.request || owner === selection.request;
    const marked = block === selection.block || block === this.pointed;
    const code = (((life ? life.order + 1 : 0) * 2 + (shared ? 1 : 0)) * 64 +
          Math.round(filled * 15)) * 8 + (findable ? 4 : 0) + (mine ? 2 : 0) + (marked ? 1 : 0);
    if (this.drawn[block] === code) return;
    this.drawn[block] = code;
    const cell = this.cell;
    const x = (block % this.columns) * cell, y = Math.floor(block / this.columns) * cell;
    const gap = cell > 18 ? 3 : cell > 6 ? 2 : 1, size = cell - gap;
    const all = colours();
    context.clearRect(x, y, cell, cell);
    if (!life) {
      context.fillStyle = findable ? all.kept : all.empty;
      context.fillRect(x, y, size, size);
    } else {
      const strength = mine ? 1 : 0.3;
      context.fillStyle = ownerColour(life.hue, mine ? 0.3 : 0.1);
      context.fillRect(x, y, size, size);
      const high = Math.max(filled > 0 ? 1 : 0, Math.round(size * filled));
      context.fillStyle = ownerColour(life.hue, strength);
      context.fillRect(x, y + size - high, size, high);
      if (shared) this.#hatch(context, x, y, size, all.surface);
    }
    if (marked) {
      context.strokeStyle = all.ink;
      context.lineWidth = gap;
      context.strokeRect(x + gap / 2, y + gap / 2, size - gap, size - gap);
    }
  }

  #hatch(context, x, y, size, colour) {
    context.save();
    context.beginPath();
    context.rect(x, y, size, size);
    context.clip();
    context.strokeStyle = colour;
    context.lineWidth = Math.max(1.2, size / 7);
    context.beginPath();
    for (let offset = -size; offset < size; offset += Math.max(3, size / 2.5)) {
      context.moveTo(x + offset, y + size);
      context.lineTo(x + offset + size, y);
    }
    context.stroke();
    context.restore();
  }

  #tellReserve(state) {
    const { ledger } = this.room;
    const longest = ledger.facts["engine.kv_sized"]?.max_model_len;
    const { used, kept, empty } = state.pool;
    const per = (tokens) => Math.ceil(tokens / state.blockSize);
    let asked = 0, tokens = 0, knowsAsked = true;
    for (const { name, computed } of state.running) {
      const queued = ledger.life(name).queued;
      if (queued) asked += per((queued.num_prompt_tokens ?? 0) + (queued.max_tokens ?? 0));
      else knowsAsked = false;
      tokens += computed;
    }
    const running = state.running.length;
    const rows = [["paged, as here", used, `${number(tokens)} tokens in ${plural(running, "sequence")}`]];
    if (knowsAsked) rows.push(["reserving what each asked for", asked, "prompt + max_tokens"]);
    const whole = longest === state.numBlocks * state.blockSize; // the pool is smaller than the model's context
    if (longest) {
      rows.push([
        "reserving the longest allowed",
        running * per(longest),
        `${number(longest)} tokens each${whole ? ": all of the pool" : ""}`,
      ]);
    }
    const code = JSON.stringify([rows, kept]);
    if (code === this.told) return;
    this.told = code;
    const most = Math.max(state.numBlocks, ...rows.map(([, blocks]) => blocks));
    this.reserve.replaceChildren(...rows.map(([title, blocks, note], i) => {
      const over = blocks > state.numBlocks;
      const bar = element(
        "span.bar",
        {},
        element(`span.fill${i ? "" : ".own"}${over ? ".over" : ""}`, { style: `width:${(100 * blocks) / most}%` }),
        element("span.limit", { style: `left:${(100 * state.numBlocks) / most}%`, title: "the whole pool" }),
      );
      return element(
        "div.reserve-row",
        {},
        element("span.title", {}, title),
        bar,
        element(
          "span.value",
          {},
          `${number(blocks)}`,
          element(
            "small",
            {},
            over ? ` blocks: ${(blocks / state.numBlocks).toFixed(1)} × the pool` : ` blocks · ${note}`,
          ),
        ),
      );
    }));
    this.caption.textContent = `${number(state.numBlocks)} blocks of ${state.blockSize} tokens: ${number(used)} used (${
      ((100 * used) / Math.max(1, state.numBlocks)).toFixed(0)
    } %, the “KV cache usage”), ${number(kept)} cached and free, ${number(empty)} empty`;
  }

  #at({ offsetX, offsetY }) {
    const column = Math.floor(offsetX / this.cell), row = Math.floor(offsetY / this.cell);
    const block = row * this.columns + column;
    return column < this.columns && block < this.room.record.state.numBlocks ? block : -1;
  }

  #point(block) {
    if (block === this.pointed) return;
    this.pointed = block;
    this.room.touch();
    if (block < 0) this.tip.hidden = true;
  }

  #choose(block) {
    if (block < 0) return this.room.select({ block: null });
    const owner = this.owners?.names[this.owners.first[block]] || null;
    this.room.select({ block, request: owner ?? this.room.selection.request });
  }

  #key(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    if (event.key in moves) {
      const count = this.room.record.state.numBlocks;
      const from = this.pointed >= 0 ? this.pointed : this.room.selection.block ?? -moves[event.key];
      const to = from + moves[event.key];
      if (to >= 0 && to < count) this.#point(to);
    } else if (event.key === "Enter" || event.key === " ") this.#choose(this.pointed);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** What the pointed block is, in words. */
  #tell() {
    const block = this.pointed;
    const text = this.describe(block);
    const x = (block % this.columns) * this.cell, y = Math.floor(block / this.columns) * this.cell;
    this.tip.textContent = text;
    this.tip.hidden = false;
    const left = Math.min(x, this.box.clientWidth - this.tip.offsetWidth - 4);
    this.tip.style.transform = `translate(${Math.max(0, left)}px, ${y + this.cell + 4 - this.box.scrollTop}px)`;
  }

  describe(block) {
    const { state } = this.room.record;
    const { ledger } = this.room;
    const lines = [];
    const owners = [...state.tables].filter(([, table]) => table.includes(block));
    if (owners.length) {
      const [name, table] = owners[0];
      const index = table.indexOf(block);
      const start = index * state.blockSize, filled = this.#filled(state, name, index);
      const labels = owners.map(([owner]) => ledger.life(owner).label);
      lines.push(
        `block ${block} · ${labels.slice(0, 4).join(", ")}${labels.length > 4 ? ` and ${labels.length - 4} more` : ""}`,
      );
      lines.push(
        filled
          ? `tokens ${start}–${start + filled - 1}, ${filled} of ${state.blockSize} slots filled`
          : "taken, nothing computed in it yet",
      );
      if (owners.length > 1) lines.push(`shared by ${owners.length}: stored once`);
      const text = this.#text(name, start, filled);
      if (text) lines.push(text);
    } else {
      lines.push(`block ${block} · ${state.hashes.has(block) ? "free, its content can still be found" : "empty"}`);
    }
    if (state.hashes.has(block)) lines.push(`hash ${state.hashes.get(block).slice(0, 12)}…`);
    return lines.join("\n");
  }

  /** The tokens that this block holds, as text, where the record has them. */
  #text(name, start, filled) {
    const life = this.room.ledger.life(name);
    const end = start + filled;
    const drawn = new Map(
      life.draws
        .filter(({ event, at }) =>
          at <= this.room.record.position && (event.position ?? 0) >= start && (event.position ?? 0) < end
        )
        .map(({ event }) => [event.position ?? 0, event.token_id ?? 0]),
    );
    const prompt = life.tokenized?.token_ids ?? [];
    const ids = [];
    for (let position = start; position < end; position++) ids.push(prompt[position] ?? drawn.get(position));
    if (!ids.some((id) => id !== undefined)) {
      return filled ? 'its tokens: recorded for requests with "trace": "full"' : "";
    }
    const texts = ids.map((id) => (id === undefined ? "…" : this.room.tokenText(id))).join("").replaceAll(/…+/g, "…");
    const shown = texts.length > LONGEST_TEXT ? `${texts.slice(0, LONGEST_TEXT)} …` : texts;
    return `“${shown.replaceAll("\n", "↵")}”`;
  }

  /** What happened to a block up to now: entries of the record, latest first. */
  history(block) {
    const { record } = this.room;
    const found = [];
    for (let at = record.position - 1; at >= 0 && found.length < 60; at--) {
      const entry = record.entries[at];
      if (!entry.kind.startsWith("block.")) continue;
      const { blocks, block: one, src_block: from = 0, dst_block: to = 0 } = entry;
      const concerns = entry.kind === "block.copied"
        ? from === block || to === block
        : entry.kind === "block.evicted"
        ? (one ?? 0) === block
        : blocks?.includes(block);
      if (concerns) found.push({ at: at + 1, entry });
    }
    return found;
  }
}
