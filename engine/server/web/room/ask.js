// Send requests from the page, and show their answers.

import { chip, element } from "./paint.js";
import { api, serverSentEvents } from "./source.js";
import { Template } from "./template.js";

const SENTENCE = "The keeper of the lighthouse wrote down the weather of every day, and so we know that ";

export const NAMES = "Ada Ben Cleo Dan Eve Finn Gus Hana Ivo June Kit Lou Mara Ned Ola Pim".split(" ");

/** What to do where a running server can't show something: its sizes are fixed while it runs. */
export const START =
  "Start a small one beside it: glasshouse class (in a checkout: make class), with --model for another model.";

export const newId = () => `room-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;

const json = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

export class Asker {
  #perSentence = null; // a promise of tokens

  constructor(room, answers) {
    this.room = room;
    this.answers = answers;
    this.template = new Template();
  }

  begin() {
    this.answers.replaceChildren();
  }

  /** A text of about so many tokens of this model; a little less, never more. */
  async text(tokens) {
    this.#perSentence ??= api("tokenize", json({ prompt: SENTENCE.repeat(4) }))
      .then((answer) => answer.json()).then(({ count }) => count / 4);
    return SENTENCE.repeat(Math.max(1, Math.floor((tokens - 16) / (await this.#perSentence))));
  }

  /** Send prompts, {prompt, title} each, in one request: a browser opens few connections to a server
   *  of HTTP/1.1 (six), so in requests of their own they would wait for each other here and not in
   *  the engine. `begun` is a promise of the first token, `done` of the last one; neither fails, for
   *  what went wrong stands among the answers. */
  send(asks, body, id = newId()) {
    const lines = asks.map(() => element("div.answer", {}, element("span.answer-text", {})));
    this.answers.append(...lines);
    let begins;
    const begun = new Promise((resolve) => begins = resolve);
    const done = this.#sendAll(asks, body, id, lines, begins).catch((error) => {
      for (const line of lines) line.classList.add("failed");
      lines[0].lastChild.textContent = error.message;
    }).finally(begins);
    return { begun, done };
  }

  async #sendAll(asks, body, id, lines, begins) {
    const prompts = await this.template.fields(asks.map(({ prompt }) => prompt));
    const answer = await api(
      "v1/completions",
      json({ ...body, ...prompts, request_id: id, stream: true }),
    );
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw new Error(said.error?.message ?? `the server answered ${answer.status}`);
    }
    const names = asks.map((_, i) => i ? `cmpl-${id}:${i}` : `cmpl-${id}`); // as the server names them
    for (const name of names) this.room.ledger.begin(name); // it has its colour from now on
    lines.forEach((line, i) => line.prepend(chip(this.room, names[i], asks[i].title)));
    if (this.room.following && lines.includes(this.answers.firstChild)) {
      this.room.select({ request: names[0], token: null, block: null });
    }
    await this.#read(answer, lines.map((line) => line.lastChild), body.n ?? 1, begins);
  }

  async #read(answer, shown, n, begins) {
    const texts = shown.map(() => Array(n).fill(""));
    for await (const { data } of serverSentEvents(answer)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      begins();
      for (const { index, text } of chunk.choices ?? []) {
        const place = Math.floor(index / n); // a prompt's n answers follow each other
        texts[place][index % n] += text;
        shown[place].textContent = texts[place].join("\n― ");
      }
    }
  }
}
