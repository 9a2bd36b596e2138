// The log: the server's own sentences about what happened, up to the moment that is shown.

import { element, ownerColour } from "./paint.js";
import { fields } from "./words.js";

const MOST_LINES = 120;
const QUIET = new Set(["step.planned", "kernel.launched", "block.cached", "text.tokens"]);
const OF_TOKENS = new Set(["sample.drawn", "text.emitted", "text.held_back"]); // a line for each token

export class Log {
  constructor(room, panel) {
    this.room = room;
    this.list = panel.querySelector("ol");
    this.filter = panel.querySelector("input");
    this.caption = panel.querySelector(".caption");
    this.filter.addEventListener("input", () => room.touch());
    this.list.addEventListener("keydown", (event) => this.#key(event));
    this.redraw();
  }

  redraw() {
    this.shown = "";
    this.items = new WeakMap(); // a line → its element
  }

  update() {
    const { record, selection } = this.room;
    const known = selection.request ? this.room.ledger.sequences.get(selection.request) : null;
    const code = [record.position, record.lines.length, selection.request, known?.label, this.filter.value].join();
    if (code === this.shown) return;
    this.shown = code;
    const wanted = this.filter.value.trim().toLowerCase();
    const label = known?.label ?? selection.request ?? "";
    this.mention = new RegExp(`(^|[^\\w-])${label.replaceAll(".", "\\.")}(?![\\w-]|\\.\\d)`); // req-1, not req-13
    const lines = record.lines.length ? this.#told(wanted) : this.#fromEvents(wanted);
    this.caption.textContent = [
      selection.request
        ? `about ${label}${known ? "" : ", which this record doesn't have"}`
        : "single tokens only of a selected request",
      record.lines.length ? "" : "this record came without the log's sentences: the events' own fields",
    ].filter(Boolean).join(" · ");
    this.#show(lines);
  }

  /** Lines, latest first: those that stand there already stay, so that little is laid out anew. */
  #show(lines) {
    const now = this.room.record.state.step;
    const items = lines.map((line) => {
      const item = this.items.get(line) ?? this.#line(line);
      this.items.set(line, item);
      const first = line.first_step ?? 0;
      item.classList.toggle("now", first > 0 && first <= now && now <= (line.last_step ?? first));
      return item;
    });
    const kept = new Set(items);
    for (const item of [...this.list.children]) if (!kept.has(item)) item.remove();
    let next = this.list.firstChild;
    for (const item of items) {
      if (item === next) next = next.nextSibling;
      else this.list.insertBefore(item, next);
    }
  }

  #concerns(line, wanted) {
    const { request } = this.room.selection;
    if (!request && OF_TOKENS.has(line.kind)) return false;
    if (request && line.request_id !== request && !this.mention.test(line.text)) return false;
    return !wanted || `${line.kind} ${line.name} ${line.text}`.toLowerCase().includes(wanted);
  }

  /** Latest first. A line about a run of steps stands from its first one on. */
  #told(wanted) {
    const { record } = this.room;
    const { step } = record.state;
    const found = [];
    for (let i = record.lines.length - 1; i >= 0 && found.length < MOST_LINES; i--) {
      const line = record.lines[i];
      const here = line.at <= record.position ||
        (line.kind === "steps" && line.first_step <= step && step <= line.last_step);
      if (here && this.#concerns(line, wanted)) found.push(line);
    }
    return found;
  }

  #fromEvents(wanted) {
    const { record, ledger } = this.room;
    const found = [];
    for (let at = record.position - 1; at >= 0 && found.length < MOST_LINES; at--) {
      const entry = record.entries[at];
      if (QUIET.has(entry.kind) || entry.kind === "engine.snapshot") continue;
      const step = entry.step ?? 0;
      const line = {
        at: at + 1,
        kind: entry.kind,
        ts_ns: entry.ts_ns,
        first_step: step,
        last_step: step,
        request_id: entry.request_id ?? "",
        name: entry.request_id ? ledger.life(entry.request_id).label : "",
        text: `${entry.kind.replace(".", " ").replace("_", " ")}: ${fields(entry)}`,
      };
      if (this.#concerns(line, wanted)) found.push(line);
    }
    return found;
  }

  #line(line) {
    const { ledger, firstNs } = this.room;
    const first = line.first_step ?? 0, last = line.last_step ?? first;
    const steps = !first ? "" : first === last ? `${first}` : `${first}–${last}`;
    const made = element(
      `li.${line.kind.replace(".", "-")}`,
      {},
      element("time", {}, ((line.ts_ns - firstNs) / 1e9).toFixed(3)),
      steps
        ? element("button.link", {
          type: "button",
          tabIndex: -1,
          "aria-label": `step ${steps}`,
          onclick: () => this.#open(line),
        }, steps)
        : element("span"),
      element("span.who", {}, line.name ?? ""),
      element("span.text", {}, line.text),
    );
    if (line.request_id) made.style.setProperty("--owner", ownerColour(ledger.life(line.request_id).hue));
    return made;
  }

  /** One stop of the Tab key for all lines: the arrows go from one to the next. */
  #key(event) {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key]; // the latest line comes first, at the bottom
    if (!way) return;
    const buttons = [...this.list.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    (at < 0 ? buttons[0] : buttons[at + way])?.focus();
    event.preventDefault();
    event.stopPropagation();
  }

  #open(line) {
    if (line.request_id) this.room.select({ request: line.request_id });
    if (line.first_step) this.room.goToStep(line.first_step);
  }
}
