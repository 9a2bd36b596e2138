// Marks on the step slider: where something was decided. By buttons and keys to the next one.

import { reasonAt } from "./ledger.js";
import { MOMENTS } from "./moments.js";
import { colours, fit } from "./paint.js";
import { number } from "./words.js";

const HEIGHT = 12; // px
const INSET = 8; // px: half of the slider's thumb, which its middle stays away from the ends
const RANK = Object.keys(MOMENTS); // where marks are closer than a shape is wide, the first one is drawn

export class Marks {
  constructor(room, panel) {
    this.room = room;
    this.canvas = panel.querySelector(".scrubber canvas");
    this.said = panel.querySelector(".mark-said");
    this.reason = document.querySelector("#reason");
    this.drawn = "";
    this.missing = null; // {position, words}: there was no mark in the way that was asked for
    panel.querySelector(".mark-back").onclick = () => this.go(-1);
    panel.querySelector(".mark-on").onclick = () => this.go(1);
  }

  redraw() {
    this.drawn = "";
  }

  /** Once for each step and kind: a step that evicts nine blocks is one stop. */
  get stops() {
    const stops = [];
    for (const mark of this.room.ledger.marks) {
      const last = stops.at(-1);
      if (!last || last.name !== mark.name || last.event.step !== mark.event.step) stops.push(mark);
    }
    return stops;
  }

  /** Go to the next mark, or back to the one before. */
  go(way) {
    const { position } = this.room.record;
    const { stops } = this;
    const next = way > 0 ? stops.find(({ at }) => at > position) : stops.findLast(({ at }) => at < position);
    if (next) return this.open(next);
    this.room.pause();
    this.missing = { position, words: way > 0 ? "no later mark" : "no earlier mark" };
    this.room.touch();
  }

  /** Show a mark's moment, with what it is about selected. */
  open({ name, at, event }) {
    const request = event.request_id || null;
    this.room.select({ request, block: name === "eviction" ? event.block ?? 0 : null, token: null });
    this.room.goTo(at);
  }

  /** Open a record where it gets interesting: at its first preemption, or else at its first mark. */
  openFirst() {
    const { marks } = this.room.ledger;
    const first = marks.find(({ name }) => name === "preemption") ?? marks[0];
    if (first) this.open(first);
  }

  update() {
    const { record, ledger } = this.room;
    this.said.textContent = this.#here();
    this.reason.hidden = !this.room.presenting;
    if (this.room.presenting) this.#tellReason();
    const width = this.canvas.parentElement.clientWidth;
    const code = [record.length, record.forgotten, ledger.marks.length, width].join();
    if (code === this.drawn) return;
    this.drawn = code;
    const { context } = fit(this.canvas, width, HEIGHT);
    context.clearRect(0, 0, width, HEIGHT);
    context.font = `${HEIGHT - 2}px ui-monospace, monospace`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const span = Math.max(1, record.length - record.first);
    const places = new Map(); // where → which
    for (const { name, at } of ledger.marks) {
      const place = Math.round(((at - record.first) / span) * (width - 2 * INSET) / 5);
      const there = places.get(place);
      if (there === undefined || RANK.indexOf(name) < RANK.indexOf(there)) places.set(place, name);
    }
    const all = colours();
    for (const [place, name] of places) {
      context.fillStyle = all[MOMENTS[name].colour];
      context.fillText(MOMENTS[name].mark, INSET + place * 5, HEIGHT / 2);
    }
  }

  /** Why the latest marked thing of this step was decided so; else, what the head of the queue waits for. */
  #tellReason() {
    const { record: { state, position }, ledger: { marks } } = this.room;
    const here = marks.findLast(({ at, event }) => at <= position && event.step === state.step);
    const waits = state.waiting[0] && reasonAt(this.room.ledger.life(state.waiting[0].name), position);
    const why = this.room.plain(here?.event.why ?? waits?.why ?? "");
    const [title, text] = this.reason.querySelectorAll("h2, p");
    title.textContent = here
      ? this.#inWords(here)
      : state.step
      ? `step ${number(state.step)}`
      : "before the first step";
    text.textContent = why || (state.running.length ? "Nobody waits." : "Nothing runs.");
  }

  /** Which mark the moment that is shown is, in words. */
  #here() {
    const { record, ledger } = this.room;
    if (this.missing?.position === record.position) return this.missing.words;
    const here = ledger.marks.find(({ at }) => at === record.position);
    if (!here) return "";
    return this.#inWords(here);
  }

  #inWords({ name, event }) {
    const { ledger } = this.room;
    const who = event.request_id ? ` · ${ledger.life(event.request_id).label}` : "";
    return `${MOMENTS[name].words}${who}${event.step ? ` · step ${number(event.step)}` : ""}`;
  }
}
