// The token lens: for any recorded token, what else it could have been, and how it was drawn.

import { element, ownerColour } from "./paint.js";
import { number, plural, visible } from "./words.js";

const MOST_TOKENS = 400;

const chance = (share) => (share > 0 && share < 0.0005 ? "< 0.001" : share.toFixed(3));

export class Lens {
  constructor(room, panel) {
    this.room = room;
    this.tokens = panel.querySelector(".tokens");
    this.detail = panel.querySelector(".draw");
    this.caption = panel.querySelector(".caption");
    this.shown = "";
    this.tokens.addEventListener("keydown", (event) => this.#key(event));
  }

  redraw() {
    this.shown = "";
  }

  update() {
    const { record, ledger, selection } = this.room;
    const life = ledger.sequences.get(selection.request);
    const draws = life ? life.draws.filter(({ at }) => at <= record.position) : [];
    const calls = life ? life.calls.filter(({ at }) => at <= record.position) : [];
    const code = [selection.request, life?.label, draws.length, calls.length, selection.token, this.room.tokensKnown]
      .join();
    if (code === this.shown) return;
    this.shown = code;
    if (!draws.length) return this.#explain(life);
    this.caption.textContent = `${life.label}: ${plural(draws.length, "token")} drawn so far`;
    const first = Math.max(0, draws.length - MOST_TOKENS);
    const chosen = draws.find(({ event }) => event.position === selection.token) ?? draws.at(-1);
    this.tokens.replaceChildren(
      ...draws.slice(first).map(({ event }) => {
        const likely = Math.exp(event.logprob ?? 0);
        const active = event === chosen.event;
        const made = element("button.token", {
          type: "button",
          title: `position ${event.position}: probability ${chance(likely)}, rank ${event.rank}`,
          tabIndex: active ? 0 : -1,
          onclick: () => this.room.select({ token: event.position }),
        }, visible(this.room.tokenText(event.token_id)));
        made.setAttribute("aria-pressed", String(active));
        // The less the model expected it, the stronger its tint.
        made.style.setProperty("--tint", ownerColour(life.hue, Math.round((1 - likely) * 7) / 16));
        return made;
      }),
    );
    if (!this.tokens.contains(document.activeElement)) this.tokens.scrollTop = this.tokens.scrollHeight;
    this.detail.replaceChildren(...this.#calls(calls, draws), ...this.#draw(chosen.event, life));
  }

  #explain(life) {
    this.caption.textContent = "";
    this.tokens.replaceChildren();
    this.detail.replaceChildren(
      element(
        "p.quiet",
        {},
        life
          ? `The record has no draws of ${life.label} up to here: they are recorded at level “full”. Requests sent from this page ask for it with "trace": "full".`
          : "Select a request: in the grid, the timeline or the queues.",
      ),
    );
  }

  #draw(event, life) {
    const { token_id: id = 0, candidates = [], position = 0, greedy, rank, logprob = 0 } = event;
    const name = (token) => visible(this.room.tokenText(token));
    const parts = [];
    const limits = [
      `Temperature ${event.temperature ?? 0}`,
      event.top_k > 0 ? `top-k ${event.top_k}` : "",
      (event.top_p ?? 1) < 1 ? `top-p ${event.top_p}` : "",
      event.min_p ? `min-p ${event.min_p}` : "",
    ].filter(Boolean).join(", ");
    const seed = Number.isSafeInteger(event.seed ?? 0)
      ? `Seed ${event.seed ?? 0}, so it can be drawn again.`
      : "Its seed has more digits than a browser keeps: the record has it."; // above 2^53
    parts.push(
      element(
        "p.how",
        {},
        element("b", {}, `“${name(id)}”`),
        ` at position ${position}, rank ${number(rank)}. `,
        greedy
          ? "Greedy: the most probable token is taken, nothing is drawn."
          : `${limits}: ${plural(event.num_kept ?? 0, "token")} kept; u = ${
            (event.uniform ?? 0).toFixed(4)
          } drew it. ${seed}`,
      ),
    );
    if (event.num_allowed) parts.push(this.#grammar(event, name));
    const rows = candidates.map(([token, itsLogprob, after]) => ({ token, before: Math.exp(itsLogprob), after }));
    if (!rows.some(({ token }) => token === id)) rows.push({ token: id, before: Math.exp(logprob), after: null });
    const most = Math.max(0.001, ...rows.map(({ before, after }) => Math.max(before, after ?? 0)));
    const body = rows.map(({ token, before, after }) => {
      const bar = (share, kind) =>
        element("span.bar", {}, element(`span.fill.${kind}`, { style: `width:${(100 * share) / most}%` }));
      const row = element(
        "tr",
        { className: token === id ? "drawn" : after === 0 && !greedy ? "cut" : "" },
        element("th", { scope: "row" }, element("span.token-name", { title: `token ${token}` }, name(token))),
        element("td", {}, bar(before, "before"), bar(after ?? 0, "after")),
        element("td.number", {}, chance(before)),
        element(
          "td.number",
          {},
          after === null ? "not recorded" : after === 0 ? (greedy ? "–" : "cut") : chance(after),
        ),
      );
      row.style.setProperty("--owner", ownerColour(life.hue));
      return row;
    });
    parts.push(
      element(
        "table",
        {},
        element(
          "thead",
          {},
          element(
            "tr",
            {},
            element("th", { scope: "col" }, "token"),
            element("th", {}),
            element("th.number", { scope: "col" }, "before"),
            element("th.number", { scope: "col" }, "after"),
          ),
        ),
        element("tbody", {}, ...body),
      ),
    );
    if (!this.room.live && this.room.tokenText(id) === `#${id}`) {
      parts.push(element("p.quiet", {}, "#… are token ids: this record doesn't say how its tokens read."));
    }
    const strip = greedy ? null : this.#strip(event, rows, life);
    if (strip) parts.push(strip);
    return parts;
  }

  /** The calls of tools in this answer: which the model chose, and what a grammar wrote of the others. */
  #calls(calls, draws) {
    let since = -1;
    return calls.map(({ at, event }) => {
      const tokens = draws.filter((draw) => since < draw.at && draw.at <= at).map((draw) => draw.event);
      const only = tokens.filter((token) => token.num_allowed === 1).length;
      const other = tokens.filter((token) => (token.instead_of ?? -1) >= 0).length;
      since = at;
      return element(
        "p.how.call",
        {},
        "Calls ",
        element("b", {}, event.tool ? `“${event.tool}”` : "a tool"),
        ` with ${plural(event.num_chars ?? 0, "character")} of arguments. `,
        event.forced
          ? `tool_choice wanted a call. Of ${plural(tokens.length, "token")} up to its end the grammar left one ` +
            `choice for ${number(only)}; ${number(other)} the model would have written otherwise.`
          : "The model chose to: no grammar held it to a call.",
      );
    });
  }

  /** What the grammar allowed here, what it took, and what the model would have written. */
  #grammar(event, name) {
    const removed = chance(event.removed ?? 0);
    const free = event.instead_of ?? -1;
    return element(
      "p.how.grammar",
      {},
      `The grammar allows ${plural(event.num_allowed, "token")} here and takes ${removed} of the model's probability. `,
      ...(free < 0 ? ["The draw is the same without it."] : [
        "The model would have written ",
        element("b", {}, `“${name(free)}”`),
        `, with ${chance(event.instead_of_probability ?? 0)}.`,
      ]),
    );
  }

  /** The draw as a strip from 0 to 1: kept tokens by id, and where u fell. Only if all are recorded. */
  #strip(event, rows, life) {
    const kept = rows.filter(({ after }) => after > 0).sort((a, b) => a.token - b.token);
    if (kept.length !== event.num_kept) {
      return element(
        "p.quiet",
        {},
        `The record keeps the ${rows.length} most probable of ${
          number(event.num_kept)
        } tokens, so where u fell among all of them isn't drawn.`,
      );
    }
    const total = kept.reduce((sum, { after }) => sum + after, 0);
    const strip = element("div.strip", { role: "img", "aria-label": `u = ${event.uniform} falls on the drawn token` });
    for (const { token, after } of kept) {
      const part = element(
        "span",
        { style: `flex:${after / total}`, title: visible(this.room.tokenText(token)) },
        after / total > 0.06 ? visible(this.room.tokenText(token)) : "",
      );
      part.style.background = ownerColour(life.hue, token === event.token_id ? 0.9 : 0.25);
      strip.append(part);
    }
    strip.append(element("i", { style: `left:${100 * (event.uniform ?? 0)}%`, title: `u = ${event.uniform}` }));
    return strip;
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const buttons = [...this.tokens.children];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) {
      const place = buttons.indexOf(next);
      next.click();
      this.update();
      this.tokens.children[place]?.focus();
    }
    event.preventDefault();
    event.stopPropagation();
  }
}
