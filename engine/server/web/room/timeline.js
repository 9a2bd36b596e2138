// The timeline: sequences down, steps across; below them each step's budget and time.

import { colours, fit, ownerColour } from "./paint.js";
import { duration, number, plural } from "./words.js";

const LABELS = 76; // px at the left
const AXIS = 16, STRIP = 34, TIME = 44; // px: the steps' numbers, the budget, the time
const TALLEST = 300;
const PARTS = ["schedule", "prepare", "forward", "sample", "update"];

export class Timeline {
  constructor(room, panel) {
    this.room = room;
    this.canvas = panel.querySelector("canvas");
    this.tip = panel.querySelector(".tip");
    this.caption = panel.querySelector(".caption");
    this.perStep = 10; // px
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
    this.perStep = Math.max(1, Math.min(40, this.perStep * factor));
    this.room.touch();
  }

  update() {
    const { record, ledger } = this.room;
    const width = this.canvas.parentElement.clientWidth;
    const now = record.state.step;
    const count = Math.floor((width - LABELS) / this.perStep);
    const lastKnown = record.steps.at(-1) ?? 0;
    // The present stands at the right while we follow; a moment of the past has its future in view.
    const right = this.room.following ? now : Math.min(lastKnown, now + Math.floor(count / 3));
    const from = Math.max(record.cut ? record.firstStep : 0, right - count + 1), to = from + count - 1;
    this.view = { from, to, width };
    this.shown = [...ledger.sequences.values()].filter(({ spans }) =>
      spans.length && spans[0].from <= to && (spans.at(-1).to ?? Infinity) >= from
    );
    const rows = Math.max(4, this.shown.length);
    this.rowHeight = Math.max(4, Math.min(16, Math.floor(TALLEST / rows)));
    const hidden = Math.max(0, this.shown.length - Math.floor(TALLEST / this.rowHeight));
    if (hidden) this.shown = this.shown.slice(hidden);
    this.rowsBottom = AXIS + Math.max(4, this.shown.length) * this.rowHeight;
    const height = this.rowsBottom + 8 + STRIP + 6 + TIME;
    const { context } = fit(this.canvas, width, height);
    context.clearRect(0, 0, width, height);
    this.#axis(context, height);
    this.shown.forEach((life, row) => this.#spans(context, life, AXIS + row * this.rowHeight));
    this.#steps(context);
    this.#labels(context);
    this.#cursor(context, now, height);
    this.caption.textContent = `steps ${number(from)}–${number(Math.min(to, lastKnown))} of ${number(lastKnown)}${
      hidden ? ` · ${plural(hidden, "older sequence")} not shown` : ""
    }`;
  }

  #x(step) {
    return LABELS + (step - this.view.from) * this.perStep;
  }

  #axis(context, height) {
    const { from, to, width } = this.view;
    const all = colours();
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => n * this.perStep >= 60) ?? 2000;
    context.font = "10px ui-monospace, monospace";
    context.fillStyle = all["ink-3"];
    context.textBaseline = "top";
    for (let step = Math.ceil(Math.max(1, from) / every) * every; step <= to; step += every) {
      const x = this.#x(step);
      context.fillRect(x, AXIS - 4, 1, height - AXIS + 4);
      context.globalAlpha = 1;
      if (x < width - 30) context.fillText(String(step), x + 3, 1);
    }
    context.fillStyle = all.surface;
    context.globalAlpha = 0.82; // the lines recede
    context.fillRect(LABELS, AXIS, width, height);
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
      const x = Math.max(LABELS, this.#x(span.from)), right = Math.min(width, this.#x(end));
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
    const wide = Math.max(1, this.perStep - (this.perStep > 4 ? 1 : 0));
    let slowest = 1;
    for (let step = from; step <= to; step++) {
      slowest = Math.max(slowest, ledger.steps.get(step)?.finished?.total_us ?? 0);
    }
    this.slowest = slowest;
    const stripTop = this.rowsBottom + 8, timeTop = stripTop + STRIP + 6;
    for (let at = from; at <= to; at++) {
      const step = ledger.steps.get(at);
      if (!step) continue;
      const x = this.#x(at);
      if (x + wide > width) break;
      const future = at > record.state.step;
      for (const [name, , count, samples] of step.plan?.rows ?? []) {
        const row = rowOf.get(name);
        if (row === undefined) continue;
        const life = ledger.life(name);
        const dim = selection.request && selection.request !== name;
        const y = AXIS + row * this.rowHeight, high = this.rowHeight - 2;
        const cached = life.cachedAt.get(at);
        context.globalAlpha = (future ? 0.35 : 1) * (dim ? 0.4 : 1);
        context.fillStyle = ownerColour(life.hue);
        if (count === 1 && samples) { // a decode
          const thin = Math.max(2, Math.round(high * 0.4));
          context.fillRect(x, y + 1 + Math.floor((high - thin) / 2), wide, thin);
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
      this.#budget(context, step, x, wide, stripTop);
      this.#time(context, step, x, wide, timeTop, slowest);
    }
    context.globalAlpha = 1;
  }

  #budget(context, { plan }, x, wide, top) {
    if (!plan?.budget) return;
    const all = colours();
    context.fillStyle = all.empty;
    context.fillRect(x, top, wide, STRIP);
    const used = (plan.budget_used ?? 0) / plan.budget;
    context.fillStyle = all["ink-2"];
    const high = Math.max(1, STRIP * used);
    context.fillRect(x, top + STRIP - high, wide, high);
  }

  #time(context, { finished }, x, wide, top, slowest) {
    if (!finished) return;
    let bottom = top + TIME;
    const scale = (TIME - 2) / slowest;
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
    context.fillStyle = all.surface;
    context.fillRect(0, AXIS, LABELS, this.canvas.clientHeight);
    context.textBaseline = "middle";
    context.font = `${Math.min(11, this.rowHeight)}px ui-monospace, monospace`;
    if (this.rowHeight >= 8) {
      this.shown.forEach((life, row) => {
        context.fillStyle = this.room.selection.request === life.name ? all.ink : all["ink-2"];
        context.fillText(life.label, 10, AXIS + (row + 0.5) * this.rowHeight);
      });
    }
    this.shown.forEach((life, row) => {
      context.fillStyle = ownerColour(life.hue);
      context.fillRect(0, AXIS + row * this.rowHeight + 1, 4, this.rowHeight - 2);
    });
    context.font = "11px ui-monospace, monospace";
    context.fillStyle = all["ink-3"];
    const strip = this.rowsBottom + 8;
    context.fillText("budget", 10, strip + STRIP / 2);
    context.fillText("time", 10, strip + STRIP + 6 + TIME / 2 - 7);
    context.fillText(`≤ ${duration(this.slowest)}`, 10, strip + STRIP + 6 + TIME / 2 + 7, LABELS - 12);
  }

  #cursor(context, now, height) {
    if (now < this.view.from) return;
    context.fillStyle = colours().accent;
    const x = this.#x(now) + this.perStep;
    context.fillRect(Math.min(x, this.view.width - 2), 0, 2, height);
  }

  #stepAt(event) {
    return this.view ? this.view.from + Math.floor((event.offsetX - LABELS) / this.perStep) : 0;
  }
  #lifeAt(event) {
    const row = Math.floor((event.offsetY - AXIS) / this.rowHeight);
    return event.offsetY < this.rowsBottom ? this.shown[row] : undefined;
  }

  #choose(event) {
    const life = this.#lifeAt(event);
    if (life) this.room.select({ request: life.name });
    if (event.offsetX > LABELS) this.room.goToStep(this.#stepAt(event));
  }

  #point(event) {
    if (!this.view || event.offsetX < LABELS) return void (this.tip.hidden = true);
    const at = this.#stepAt(event);
    const step = this.room.ledger.steps.get(at);
    const life = this.#lifeAt(event);
    const lines = [`step ${at}`];
    const row = life && step?.plan?.rows?.find(([name]) => name === life.name);
    if (row) {
      const [, start, count, samples] = row;
      const what = count === 1 && samples
        ? "decodes 1 token"
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
  return `oklch(${all.lightness} 0.09 ${[250, 205, 165, 95, 45][index]})`;
}
