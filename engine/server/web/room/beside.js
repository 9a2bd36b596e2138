// A room beside another one (web/compare): it says where it is, and goes where the other one went.
// Only a page that holds its record takes part, and only positions are said.

import { ofCore } from "./state.js";

export class Beside {
  #said = "";
  #opened = false; // the whole record is there
  #led = true; // its own reader moves it
  #heard = 0; // the number of the last message that asked it to go
  #queued = { length: -1, positions: [] }; // of the arrivals

  constructor(room) {
    this.room = room;
    addEventListener("message", ({ source, data }) => {
      if (source !== parent || !this.#opened) return;
      if (data?.glasshouse === "where") this.#answer();
      else if (data?.glasshouse === "go") this.#go(data);
    });
  }

  /** The record is there: say so. */
  begin() {
    this.#opened = true;
    this.tell();
  }

  /** Say it again, which leads nobody: the middle listens late if its page arrives slowly. */
  #answer() {
    this.#said = "";
    this.#led = false;
    this.tell();
    this.#led = true;
  }

  /** Positions after each arrival of a request. */
  get #arrivals() {
    const { entries, length } = this.room.record;
    if (this.#queued.length !== length) {
      const positions = entries.flatMap(({ kind }, i) => (kind === "request.queued" ? [i + 1] : []));
      this.#queued = { length, positions };
    }
    return this.#queued.positions;
  }

  /** Say where this room is, if it has moved. */
  tell() {
    if (!this.#opened) return;
    const { record: { state, position } } = this.room;
    const arrived = this.#arrivals.filter((at) => at <= position).length;
    const moment = {
      position,
      step: state.step,
      arrived,
      since: this.#endsBehind(arrived).filter((end) => end <= position).length,
      running: state.running.length,
      waiting: state.waiting.length,
      used: state.pool?.used ?? -1,
    };
    const said = JSON.stringify(moment);
    if (said === this.#said) return;
    this.#said = said;
    parent.postMessage({ glasshouse: "moment", led: this.#led, heard: this.#heard, ...moment }, "*");
  }

  /** Ends of the steps between an arrival, counted from 1, and the next one. */
  #endsBehind(arrived) {
    const { record } = this.room;
    const from = this.#arrivals[arrived - 1] ?? record.first;
    const to = this.#arrivals[arrived] ?? Infinity;
    return record.steps.map((step) => record.endOf(step)).filter((end) => end > from && end < to);
  }

  #go({ by, step, arrived, since, seq, request, asked, number }) {
    const { room } = this;
    this.#heard = number;
    this.#led = Boolean(asked); // what the middle asks of one moves both
    if (by === "step") room.goToStep(step);
    else if (by === "arrival") {
      const last = Math.min(arrived, this.#arrivals.length);
      const ends = this.#endsBehind(last).slice(0, since);
      room.goTo(ends.at(-1) ?? this.#arrivals[last - 1] ?? room.record.first);
    } else {
      const at = room.record.entries.findIndex((event) => event.seq === seq && ofCore(event));
      room.goTo(at < 0 ? room.record.length : at + 1);
      room.select({ request: request || null, block: null, token: null });
    }
    this.#led = true;
  }
}
