// The pipeline: what each of the engine's parts did in the step at hand, and what goes between them.

import { ownerColour, svg } from "./paint.js";
import { duration, number, plural } from "./words.js";

const STATIONS = [
  ["server", "takes requests"],
  ["text", "text → tokens"],
  ["core", "decides"],
  ["worker", "computes"],
  ["sampler", "draws"],
  ["text", "tokens → text"],
];
const WIDTH = 1000, HEIGHT = 96, MIDDLE = 34;
const TRAVEL_MS = 700, FRAME_MS = 30;
const DOTS_A_LEG = 9; // at a time: more say nothing more

/** Microseconds from a plan to its logits. */
function workerTime({ prepare_us = 0, draft_us = 0, forward_us = 0 }) {
  return prepare_us + draft_us + forward_us;
}

export class Pipeline {
  constructor(room, panel) {
    this.room = room;
    this.svg = panel.querySelector("svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.dots = [];
    this.movedAt = 0;
    this.told = null; // the record that it shows
    this.seen = -1; // entries of it up to which dots were sent off
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.#build();
  }

  #place(station) {
    return WIDTH * ((station + 0.5) / STATIONS.length);
  }

  #build() {
    this.svg.append(svg("line", { class: "pipe", x1: this.#place(0), x2: this.#place(5), y1: MIDDLE, y2: MIDDLE }));
    this.dotLayer = svg("g");
    this.svg.append(this.dotLayer);
    this.counts = STATIONS.map(([name, verb], i) => {
      const x = this.#place(i);
      const box = svg("rect", { class: "station", x: x - 46, y: MIDDLE - 17, width: 92, height: 34, rx: 17 });
      const title = svg("text", { class: "station-name", x, y: MIDDLE + 1 }, name);
      const under = svg("text", { class: "station-verb", x, y: MIDDLE + 33 }, verb);
      const count = svg("text", { class: "station-count", x, y: MIDDLE + 52 });
      this.svg.append(box, title, under, count);
      return { box, count };
    });
  }

  redraw() {
    this.told = null;
  }

  update(now, record) {
    if (record !== this.told) {
      this.told = record;
      this.seen = -1;
    }
    if (record.position !== this.seen) {
      if (this.seen >= 0 && record.position > this.seen && record.position - this.seen < 20_000) this.#send(now);
      else this.#clear();
      this.seen = record.position;
      this.#tell();
    }
    if (this.dots.length && now - this.movedAt >= FRAME_MS) {
      this.movedAt = now;
      this.#move(now);
    }
  }

  /** Whether it wants to be drawn again soon. */
  get moving() {
    return this.dots.length > 0;
  }

  /** What the step at hand and the moments around it did at each station. */
  #tell() {
    const { record, ledger } = this.room;
    const { state } = record;
    const step = ledger.steps.get(state.step);
    const { plan, finished } = step ?? {};
    const open = new Set([...state.sequences.keys()].map((name) => name.replace(/\.\d+$/, "")));
    const drawn = finished?.num_sampled ?? 0;
    const time = (us) => (us ? `, ${duration(us)}` : "");
    const joined = (us) => (us ? ` (${duration(us)} joining ranks)` : "");
    const told = [
      `${number(open.size)} open`,
      this.#lastTokenized(),
      `${state.running.length} run, ${state.waiting.length} wait`,
      finished
        ? `${plural(finished.num_tokens ?? 0, "token")}${time(workerTime(finished))}${joined(finished.joined_us)}`
        : plan
        ? `${plural(plan.budget_used ?? 0, "token")} …`
        : "idle",
      finished ? `${drawn} drawn${time(finished.sample_us)}` : plan ? "…" : "idle",
      drawn ? `${plural(drawn, "token")}` : "idle",
    ];
    const busy = [open.size, 0, state.running.length + state.waiting.length, plan, finished && drawn, drawn];
    told.forEach((text, i) => {
      this.counts[i].count.textContent = text;
      this.counts[i].box.classList.toggle("busy", Boolean(busy[i]));
    });
  }

  #lastTokenized() {
    const { record } = this.room;
    for (let at = record.position - 1; at >= Math.max(0, record.position - 3000); at--) {
      const entry = record.entries[at];
      if (entry.kind === "request.tokenized") return `last: ${plural(entry.num_tokens ?? 0, "token")}`;
    }
    return "idle";
  }

  /** Send a dot off for what happened since the last time: one leg each, in the sequence's colour. */
  #send(now) {
    if (this.calm.matches || document.hidden) return;
    const { record, ledger } = this.room;
    const legs = [[], [], [], [], []];
    const add = (leg, name) => {
      if (legs[leg].length < DOTS_A_LEG) legs[leg].push(name);
    };
    const latest = Math.max(this.seen, record.position - 2000);
    for (let at = latest; at < record.position; at++) {
      const entry = record.entries[at];
      if (entry.kind === "request.received") add(0, entry.request_id);
      else if (entry.kind === "request.queued") add(1, entry.request_id);
      else if (entry.kind === "step.planned") { for (const [name] of entry.rows ?? []) add(2, name); }
      else if (entry.kind === "step.finished") {
        for (const [name, , , samples] of ledger.steps.get(entry.step)?.plan?.rows ?? []) {
          if (samples) {
            add(3, name);
            add(4, name);
          }
        }
      }
    }
    legs.forEach((names, leg) =>
      names.forEach((name, i) => {
        if (this.dots.filter((other) => other.leg === leg).length >= DOTS_A_LEG) return;
        const dot = svg("circle", { r: 4, cy: MIDDLE, class: "dot" });
        dot.style.fill = ownerColour(ledger.life(name).hue);
        this.dotLayer.append(dot);
        this.dots.push({
          dot,
          leg,
          from: this.#place(leg) + 46,
          to: this.#place(leg + 1) - 46,
          start: now + i * 35,
          y: MIDDLE + ((i % 3) - 1) * 7,
        });
      })
    );
  }

  #move(now) {
    this.dots = this.dots.filter(({ dot, from, to, start, y }) => {
      const way = (now - start) / TRAVEL_MS;
      if (way >= 1) {
        dot.remove();
        return false;
      }
      const eased = way <= 0 ? 0 : way * way * (3 - 2 * way);
      dot.setAttribute("cx", from + (to - from) * eased);
      dot.setAttribute("cy", y);
      dot.style.opacity = way <= 0 ? 0 : Math.min(1, 4 * way, 4 * (1 - way));
      return true;
    });
  }

  #clear() {
    this.dots.forEach(({ dot }) => dot.remove());
    this.dots = [];
  }
}
