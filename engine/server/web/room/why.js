// Why a request was slow: the causes of its time, as the server or the file tells them.

import { element, ownerColour } from "./paint.js";
import { api } from "./source.js";
import { duration } from "./words.js";

const HUES = 53; // degrees from one cause's colour to the next
const colourOf = (index) => ownerColour((200 + HUES * index) % 360);
const SHARE = 0.005; // smaller parts are in the bar, and not in the list

export class Why {
  #answers = new Map(); // request → what was told, or why it wasn't
  #asked = new Set();

  constructor(room) {
    this.room = room;
    const embedded = document.querySelector("#whys");
    if (embedded) this.#answers = new Map(Object.entries(JSON.parse(embedded.textContent)));
  }

  /** The panel's part about this request: what is known, or a button that asks. */
  about(name) {
    const request = this.room.ledger.sequences.get(name)?.parent ?? name.replace(/\.\d+$/, "");
    const told = this.#answers.get(request);
    if (told) return this.#shown(told);
    if (document.querySelector("#whys") || !this.room.live) return [];
    return [
      element("button.quiet-button.why-slow", {
        type: "button",
        disabled: this.#asked.has(request),
        onclick: () => this.#ask(request),
      }, "why so long?"),
    ];
  }

  async #ask(request) {
    this.#asked.add(request);
    try {
      const answer = await api(`trace/why/${encodeURIComponent(request)}`);
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error?.message ?? `the answer was ${answer.status}`);
      this.#answers.set(request, told);
    } catch (error) {
      this.#answers.set(request, { problem: error.message });
    }
    this.room.redraw();
    if (!this.#answers.get(request).ended) this.#answers.delete(request); // it goes on: ask again
    this.#asked.delete(request);
  }

  #shown({ problem, whole_ns: whole = 0, lines = [], parts = [] }) {
    if (problem) return [element("p.quiet", {}, problem)];
    const causes = [...new Set(parts.map(({ cause }) => cause))];
    const bar = element("div.split", { role: "img", "aria-label": lines[0] ?? "" });
    for (const { cause, ns } of parts) {
      const share = element("span", { title: `${cause}: ${duration(ns / 1e3)}` });
      share.style.cssText = `flex:${ns || 0.0001}; background:${colourOf(causes.indexOf(cause))}`;
      bar.append(share);
    }
    const legend = element("dl.legend.why-parts", {});
    for (const cause of causes) {
      const ns = parts.filter((part) => part.cause === cause).reduce((sum, part) => sum + part.ns, 0);
      if (ns < SHARE * whole) continue;
      const mark = element("i");
      mark.style.background = colourOf(causes.indexOf(cause));
      legend.append(element("dt", {}, mark, cause), element("dd", {}, duration(ns / 1e3)));
    }
    const told = element("details", {}, element("summary", {}, "because of whom"));
    told.append(element("pre.why-lines", {}, lines.slice(1).map((line) => line.trim().replace(/ +/g, " ")).join("\n")));
    return [element("h3", {}, "where its time went"), element("p.total", {}, lines[0] ?? ""), bar, legend, told];
  }
}
