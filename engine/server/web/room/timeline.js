// The timeline: sequences down, steps across; below them each step's budget and time.

import { colours, fit, ownerColour } from "./paint.js";
import { StepScale, TimeScale } from "./scale.js";
import { duration, number, plural } from "./words.js";

// px. labels: at the left; axis: the steps' numbers; strip: the budget; time: the steps' times; font:
// of labels; least, most: a row, whose label can be read; tallest: all rows
const SIZES = { labels: 76, axis: 16, strip: 34, time: 44, font: 11, least: 12, most: 18, tallest: 300 };
const PRESENTED = { labels: 100, axis: 26, strip: 0, time: 0, font: 18, least: 21, most: 40 };

/** Parts of a step's time, in order. `record` is what recording the draws took, at level full. */
export const PARTS = ["schedule", "prepare", "draft", "forward", "sample", "record", "update"];

const TALLEST = 8; // tokens of a stroke that fills its row

/** The height of the stroke of so many tokens, which a sequence got in one step. */
export function strokeHeight(high, tokens) {
  const one = Math.max(2, Math.round(high * 0.4));
  return Math.min(high, one + Math.round(((high - one) * (tokens - 1)) / (TALLEST - 1)));
}

/** What a sequence got of a step, in words. verified: its event, if there were proposals. */
export function decodes(verified) {
  if (!verified?.num_proposed) return "decodes 1 token";
  const { num_proposed: proposed, num_accepted: accepted = 0 } = verified;
  return `decodes ${gained(verified)}: ${accepted} of ${plural(proposed, "proposed token")} right`;
}

/** "5 tokens": what a step with proposals gave a sequence. */
export function gained({ num_accepted: accepted = 0 }) {
  return plural(1 + accepted, "token");
}

/** The rows of a step without those of proposals, which stand behind their sequence's own. */
export function ownRows(rows) {
  const seen = new Set();
  return rows.filter(([name]) => !seen.has(name) && seen.add(name));
}

export class Timeline {
  constructor(room, panel) {
    this.room = room;
    this.canvas = panel.querySelector("canvas");
    this.tip = panel.querySelector(".tip");
    this.caption = panel.querySelector(".caption");
    this.perStep = 10; // px
    this.perMs = 3; // px
    this.byTime = false;
    this.sizes = SIZES;
    this.byTimeButton = panel.querySelector(".by-time");
    this.byTimeButton.onclick = () => this.turn();
    this.shown = [];
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("click", (event) => this.#choose(event));
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => {
      this.tip.hidden = true;
    });
    this.canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    panel.querySelector(".zoom-in").onclick = () => this.zoom(1.5);
    panel.querySelector(".zoom-out").onclick = () => this.zoom(1 / 1.5);
  }

  zoom(factor) {
    if (this.byTime) this.perMs = Math.max(0.02, Math.min(200, this.perMs * factor));
    else this.perStep = Math.max(1, Math.min(40, this.perStep * factor));
    this.room.touch();
  }

  /** Across: steps of one width, or as wide as they took long. */
  turn() {
    this.byTime = !this.byTime;
    this.byTimeButton.setAttribute("aria-pressed", String(this.byTime));
    this.room.touch();
  }

  update() {
    const { record, ledger, following, presenting } = this.room;
    const box = this.canvas.parentElement;
    const width = box.clientWidth, now = record.state.step;
    const sizes = this.sizes = presenting ? { ...PRESENTED, tallest: box.clientHeight - PRESENTED.axis - 10 } : SIZES;
    const { labels: left, axis, strip, time } = sizes;
    const lastKnown = record.steps.at(-1) ?? 0;
    // The present stands at the right while we follow; a moment of the past has its future in view.
    const asked = { record, ledger, following, left, width, perStep: this.perStep, perMs: this.perMs, now };
    this.scale = this.byTime ? new TimeScale(asked) : new StepScale(asked);
    const { from, to } = this.scale;
    this.view = { from, to, width };
    const alive = [...ledger.sequences.values()].filter(({ spans }) =>
      spans.length && spans[0].from <= to && (spans.at(-1).to ?? Infinity) >= from
    );
    const fits = Math.max(1, Math.floor(sizes.tallest / sizes.least));
    this.shown = this.#window(alive, fits);
    const hidden = alive.length - this.shown.length;
    const rows = Math.min(fits, Math.max(4, this.shown.length));
    this.rowHeight = Math.max(sizes.least, Math.min(sizes.most, Math.floor(sizes.tallest / rows)));
    this.rowsBottom = axis + rows * this.rowHeight;
    const height = this.rowsBottom + 8 + strip + (time && 6 + time);
    const { context } = fit(this.canvas, width, height);
    context.clearRect(0, 0, width, height);
    this.#axis(context, height);
    this.shown.forEach((life, row) => this.#spans(context, life, axis + row * this.rowHeight));
    this.#steps(context);
    if (this.byTime) this.#first(context);
    this.#labels(context);
    this.#cursor(context, now, height);
    this.caption.textContent = `steps ${number(from)}–${number(Math.min(to, lastKnown))} of ${number(lastKnown)}${
      this.byTime ? ", as wide as they took long" : ""
    }${hidden ? ` · ${plural(hidden, "other sequence")} not shown` : ""}`;
  }

  /** The latest sequences; where they are too many, those around the selected one. */
  #window(alive, fits) {
    const chosen = alive.findIndex(({ name }) => name === this.room.selection.request);
    const last = chosen < 0 ? alive.length : Math.max(fits, Math.min(alive.length, chosen + Math.ceil(fits / 2)));
    return alive.slice(Math.max(0, last - fits), last);
  }

  #axis(context, height) {
    const { width } = this.view;
    const { axis, font, labels } = this.sizes;
    const all = colours();
    context.font = `${font > 11 ? font : font - 1}px ui-monospace, monospace`;
    context.fillStyle = all["ink-3"];
    context.textBaseline = "top";
    for (const { x, text } of this.scale.ticks(5.5 * font)) {
      if (x < labels) continue;
      context.fillRect(x, axis - 4, 1, height - axis + 4);
      if (x + context.measureText(text).width + 3 < width) context.fillText(text, x + 3, 1);
    }
    context.fillStyle = all.surface;
    context.globalAlpha = 0.82; // the lines recede
    context.fillRect(labels, axis, width, height);
    context.globalAlpha = 1;
  }

  #spans(context, life, y) {
    const all = colours();
    const { from, to, width } = this.view;
    const now = this.room.record.state.step, latest = this.room.record.steps.at(-1) ?? now;
    const dim = this.room.selection.request && this.room.selection.request !== life.name;
    context.globalAlpha = dim ? 0.4 : 1;
    for (const span of life.spans) {
      const end = span.to ?? latest + 1;
      if (end < from || span.from > to) continue;
      const begin = this.byTime && span === life.spans[0] && life.queued?.ts_ns
        ? this.scale.ofNs(life.queued.ts_ns) // it came between two steps
        : this.scale.begin(span.from);
      const x = Math.max(this.sizes.labels, begin), right = Math.min(width, this.scale.begin(end));
      const middle = y + this.rowHeight / 2;
      if (span.state === "running") {
        context.fillStyle = ownerColour(life.hue, 0.16);
        context.fillRect(x, y + 1, right - x, this.rowHeight - 2);
      } else {
        context.fillStyle = all[span.state] ?? all.waiting;
        const thick = span.state === "waiting" ? 2 : 3;
        const dash = span.state === "swapped" ? 3 : span.state === "preempted" ? 6 : Infinity;
        if (dash === Infinity) context.fillRect(x, middle - thick / 2, Math.max(1, right - x), thick);
        else {for (let at = x; at < right; at += dash * 1.6) {
            context.fillRect(at, middle - thick / 2, Math.min(dash, right - at), thick);
          }}
      }
    }
    context.globalAlpha = 1;
  }

  #steps(context) {
    const { ledger, record, selection } = this.room;
    const { from, to, width } = this.view;
    const all = colours();
    const rowOf = new Map(this.shown.map((life, row) => [life.name, row]));
    let slowest = 1;
    for (let step = from; step <= to; step++) {
      slowest = Math.max(slowest, ledger.steps.get(step)?.finished?.total_us ?? 0);
    }
    this.slowest = slowest;
    const { axis, strip, labels } = this.sizes;
    const stripTop = this.rowsBottom + 8, timeTop = stripTop + strip + 6;
    for (let at = from; at <= to; at++) {
      const step = ledger.steps.get(at);
      if (!step) continue;
      const x = this.scale.begin(at), whole = this.scale.end(at) - x;
      const wide = Math.max(1, whole - (whole > 4 ? 1 : 0));
      if (x < labels) continue;
      if (x + wide > width + 0.5) break;
      const future = at > record.state.step;
      for (const [name, , count, samples] of ownRows(step.plan?.rows ?? [])) {
        const row = rowOf.get(name);
        if (row === undefined) continue;
        const life = ledger.life(name);
        const dim = selection.request && selection.request !== name;
        const y = axis + row * this.rowHeight, high = this.rowHeight - 2;
        const cached = life.cachedAt.get(at);
        context.globalAlpha = (future ? 0.35 : 1) * (dim ? 0.4 : 1);
        context.fillStyle = ownerColour(life.hue);
        if (count === 1 && samples) { // a decode
          const { num_proposed: proposed = 0, num_accepted: accepted = 0 } = step.verified.get(name) ?? {};
          const alpha = context.globalAlpha;
          for (const [tokens, share] of [[1 + proposed, 0.3], [1 + accepted, 1]]) {
            const tall = strokeHeight(high, tokens);
            context.globalAlpha = alpha * share;
            if (proposed || share === 1) context.fillRect(x, y + 1 + Math.floor((high - tall) / 2), wide, tall);
          }
        } else { // a prompt, whole or the last chunk: full; a chunk with more to come: hollow
          context.fillRect(x, y + 1, wide, high);
          if (!samples && high > 4 && wide > 3) {
            context.fillStyle = all.surface;
            context.fillRect(x + 1, y + 2, wide - 2, high - 2);
          }
        }
        if (cached) { // part of it came from the cache
          context.fillStyle = all.cached;
          context.fillRect(x, y + 1 + high - 2, wide, 2);
        }
      }
      context.globalAlpha = future ? 0.35 : 1;
      if (!strip) continue;
      this.#budget(context, step, x, wide, stripTop);
      this.#time(context, step, x, wide, timeTop, slowest);
    }
    context.globalAlpha = 1;
  }

  #budget(context, { plan }, x, wide, top) {
    if (!plan?.budget) return;
    const { strip } = this.sizes;
    const all = colours();
    context.fillStyle = all.empty;
    context.fillRect(x, top, wide, strip);
    const used = (plan.budget_used ?? 0) / plan.budget;
    context.fillStyle = all["ink-2"];
    const high = Math.max(1, strip * used);
    context.fillRect(x, top + strip - high, wide, high);
  }

  #time(context, { finished }, x, wide, top, slowest) {
    if (!finished) return;
    let bottom = top + this.sizes.time;
    const scale = (this.sizes.time - 2) / slowest;
    let told = 0;
    PARTS.forEach((part, i) => {
      const us = finished[`${part}_us`] ?? 0;
      told += us;
      context.fillStyle = partColour(i);
      context.fillRect(x, bottom - us * scale, wide, us * scale);
      bottom -= us * scale;
    });
    const rest = Math.max(0, (finished.total_us ?? 0) - told);
    context.fillStyle = colours().line;
    context.fillRect(x, bottom - rest * scale, wide, rest * scale);
  }

  #labels(context) {
    const all = colours();
    const { axis, font, labels, strip, time } = this.sizes;
    context.fillStyle = all.surface;
    context.fillRect(0, axis, labels, this.canvas.clientHeight);
    context.textBaseline = "middle";
    context.font = `${font}px ui-monospace, monospace`;
    this.shown.forEach((life, row) => {
      const chosen = this.room.selection.request === life.name;
      context.fillStyle = chosen ? all.ink : all["ink-2"];
      context.fillText(life.label, 10, axis + (row + 0.5) * this.rowHeight, labels - 12);
      context.fillStyle = ownerColour(life.hue);
      context.fillRect(0, axis + row * this.rowHeight + 1, 4, this.rowHeight - 2);
    });
    if (!strip) return;
    context.fillStyle = all["ink-3"];
    const top = this.rowsBottom + 8;
    context.fillText("budget", 10, top + strip / 2);
    context.fillText("time", 10, top + strip + 6 + time / 2 - 7);
    context.fillText(`≤ ${duration(this.slowest)}`, 10, top + strip + 6 + time / 2 + 7, labels - 12);
  }

  /** From a request's arrival to its first token, for each row; in words where there is room. */
  #first(context) {
    const { axis, font, labels } = this.sizes;
    context.font = `${font}px ui-monospace, monospace`;
    context.textBaseline = "middle";
    context.fillStyle = colours().ink;
    this.shown.forEach(({ queued, first }, row) => {
      if (!queued?.ts_ns || !first || first.at > this.room.record.position) return;
      const from = Math.max(labels, this.scale.ofNs(queued.ts_ns)), to = this.scale.end(first.step);
      if (to <= labels || from >= to) return;
      const y = axis + (row + 1) * this.rowHeight - 1.5;
      context.fillRect(from, y, to - from, 1.5);
      context.fillRect(to - 1.5, y - 4, 1.5, 5);
      const text = `first token ${duration((first.ns - queued.ts_ns) / 1e3)}`;
      if (context.measureText(text).width < to - from - 6) context.fillText(text, from + 3, y - this.rowHeight / 2 + 1);
    });
  }

  #cursor(context, now, height) {
    if (now < this.view.from) return;
    context.fillStyle = colours().accent;
    const x = this.scale.end(now);
    context.fillRect(Math.min(x, this.view.width - 2), 0, 2, height);
  }

  #stepAt(event) {
    return this.scale?.stepAt(event.offsetX) ?? 0;
  }
  #lifeAt(event) {
    const row = Math.floor((event.offsetY - this.sizes.axis) / this.rowHeight);
    return event.offsetY < this.rowsBottom ? this.shown[row] : undefined;
  }

  #choose(event) {
    const life = this.#lifeAt(event);
    if (life) this.room.select({ request: life.name });
    if (event.offsetX > this.sizes.labels) this.room.goToStep(this.#stepAt(event));
  }

  #point(event) {
    if (!this.view || event.offsetX < this.sizes.labels) return void (this.tip.hidden = true);
    const at = this.#stepAt(event);
    const step = this.room.ledger.steps.get(at);
    const life = this.#lifeAt(event);
    const lines = [`step ${at}`];
    const row = life && step?.plan?.rows?.find(([name]) => name === life.name);
    if (row) {
      const [, start, count, samples] = row;
      const what = count === 1 && samples
        ? decodes(step.verified.get(life.name))
        : `computes ${plural(count, "token")} (${start}–${start + count - 1})${samples ? "" : ", more to come"}`;
      lines.push(`${life.label} ${what}`);
      const cached = life.cachedAt.get(at);
      if (cached) lines.push(`${plural(cached, "token")} came from the cache`);
    } else if (life) {
      const span = life.spans.find(({ from, to = Infinity }) => from <= at && at < to);
      if (span) lines.push(`${life.label}: ${span.state}`);
      const wait = life.waits.filter(({ event: { step: its = 0 } }) => its <= at).at(-1);
      if (span?.state !== "running" && wait?.event.why) lines.push(wait.event.why);
    }
    if (step?.plan) {
      lines.push(`budget ${number(step.plan.budget_used ?? 0)} of ${number(step.plan.budget ?? 0)} tokens`);
    }
    if (step?.finished) lines.push(duration(step.finished.total_us ?? 0));
    this.tip.textContent = lines.join("\n");
    this.tip.hidden = false;
    const left = Math.min(event.offsetX + 14, this.view.width - this.tip.offsetWidth - 4);
    this.tip.style.transform = `translate(${left}px, ${event.offsetY + 18}px)`;
  }

  /** The rows by the arrows; the steps are the whole page's: left and right. */
  #key(event) {
    const way = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!way || !this.shown.length) return;
    const at = this.shown.findIndex(({ name }) => name === this.room.selection.request);
    const to = at < 0 ? (way > 0 ? 0 : this.shown.length - 1) : Math.max(0, Math.min(this.shown.length - 1, at + way));
    this.room.select({ request: this.shown[to].name });
    event.preventDefault();
    event.stopPropagation();
  }

  #wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    this.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  }
}

/** The colour of a part of a step's time: one family, from cool to warm. */
export function partColour(index) {
  const all = colours();
  return `oklch(${all.lightness} 0.09 ${[250, 205, 290, 165, 95, 330, 45][index]})`;
}
