// Provoke: send requests from the page, so that one can see what one wants to see. Each asks for
// "trace": "full", so its draws and kernels are in the record.

import { api, serverSentEvents } from "./source.js";
import { chip, element } from "./paint.js";
import { Template } from "./template.js";
import { number } from "./words.js";

const SENTENCE = "The keeper of the lighthouse wrote down the weather of every day, and so we know that ";
const QUESTIONS = [
  "What is a KV cache?",
  "What is preemption?",
  "What does temperature do?",
  "Tell me a story about a fox.",
];
const NAMES = "Ada Ben Cleo Dan Eve Finn Gus Hana Ivo June Kit Lou Mara Ned Ola Pim".split(" ");
const MOST_AT_ONCE = 48;
const CROWD = 12; // requests that run over a pool together, if it isn't too large for that
const DUST_BLOCKS = 2048; // of a pool, from which on its grid shows no squares
const START =
  "Start a small one beside it: glasshouse class (in a checkout: make class), with --model for another model.";

const newId = () => `room-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;

const named = (count, prompt) =>
  Array.from({ length: count }, (_, i) => {
    const name = NAMES[i % NAMES.length];
    return { title: `${name} ${i}`, prompt: prompt(name, i) };
  });

export class Provoke {
  constructor(room, panel) {
    this.room = room;
    this.form = panel.querySelector("form");
    this.prompt = panel.querySelector("textarea");
    this.answers = panel.querySelector(".answers");
    this.told = panel.querySelector(".told");
    this.small = panel.querySelector(".make-small");
    panel.querySelector(".make-small-button").onclick = () => {
      this.#begin(`A running engine can't change its pool, its seats or its budget. ${START}`);
    };
    this.template = new Template();
    panel.querySelector(".questions").replaceChildren(
      ...QUESTIONS.map((question) =>
        element("button.question", { type: "button", onclick: () => this.#ask(question) }, question)
      ),
    );
    this.form.onsubmit = (event) => {
      event.preventDefault();
      this.#own();
    };
    this.prompt.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#own();
    };
    for (const button of panel.querySelectorAll("[data-show]")) {
      button.onclick = () => this[button.dataset.show]();
    }
  }

  redraw() {}

  /** Say what a pool of this size can't show, once it is known. */
  update() {
    this.small.hidden = !(this.#pool?.blocks > DUST_BLOCKS);
  }

  value(name) {
    return Number(this.form.elements[name].value);
  }

  #ask(question) {
    this.prompt.value = question;
    this.#own();
  }

  #own() {
    const prompt = this.prompt.value || QUESTIONS[0];
    this.#begin("");
    this.#send({
      prompt,
      temperature: this.value("temperature"),
      max_tokens: this.value("max_tokens"),
      n: this.value("n"),
    });
  }

  get #pool() {
    const sized = this.room.ledger.facts["engine.kv_sized"];
    if (!sized) return null;
    return {
      blocks: sized.num_blocks,
      size: sized.block_size,
      longest: sized.max_model_len,
      tokens: sized.num_blocks * sized.block_size,
    };
  }

  /** Enough different requests that their blocks, with what stays cached, cover the pool. */
  async fill() {
    const pool = this.#pool;
    if (!pool) return this.#begin("The record doesn't say how large the pool is.");
    const each = Math.min(pool.longest, Math.max(128, Math.ceil(pool.tokens / 24)));
    const count = Math.ceil(pool.tokens / each) + 2;
    if (count > MOST_AT_ONCE) return this.#tooLarge(pool, count, each);
    const out = Math.min(64, Math.floor(each / 2));
    this.#begin(
      `${count} different prompts of about ${number(each - out)} tokens, ${out} more each; the pool holds ${
        number(pool.tokens)
      }.`,
    );
    const text = await this.#text(each - out);
    this.#sendAll(named(count, (name, i) => `${text} ${name} ${i} asks: ${QUESTIONS[i % 3]}`), {
      max_tokens: out,
      ignore_eos: true,
      temperature: 0.8,
      seed: 1,
    });
  }

  /** One long beginning and six ends: the first computes it, the others find it. */
  async share() {
    const pool = this.#pool;
    if (this.room.ledger.facts["engine.started"]?.config?.enable_prefix_caching === false) {
      return this.#begin(
        "This server shares no prefixes: it was started with --no-enable-prefix-caching. Start it without that.",
      );
    }
    const length = pool ? Math.floor(Math.min(600, pool.longest / 2, pool.tokens / 4)) : 256;
    this.#begin(`One prompt of about ${length} tokens, then five that begin like it: they share its blocks.`);
    const prefix = await this.#text(length);
    const asks = NAMES.slice(0, 6).map((name) => ({ title: name, prompt: `${prefix} ${name} asks: ${QUESTIONS[1]}` }));
    const body = { max_tokens: 48, ignore_eos: true, temperature: 0.8, seed: 1 };
    const first = this.#sendAll(asks.slice(0, 1), body);
    await Promise.race([first, new Promise((resolve) => setTimeout(resolve, 700))]);
    this.#sendAll(asks.slice(1), body);
  }

  /** More output than the pool holds, from requests that all fit at the beginning. */
  preempt() {
    const pool = this.#pool;
    if (!pool) return this.#begin("The record doesn't say how large the pool is.");
    const most = Math.floor(Math.min(pool.longest, pool.tokens) * 0.75);
    const seats = this.room.ledger.facts["engine.started"]?.config?.max_num_seqs ?? MOST_AT_ONCE;
    const wanted = pool.tokens * 1.3;
    const count = Math.max(Math.min(CROWD, seats), Math.ceil(wanted / most));
    if (count > MOST_AT_ONCE) return this.#tooLarge(pool, count, most);
    if (count > seats) {
      return this.#begin(
        `The ${seats} seats of this server can't fill its pool: ${number(seats * most)} of ${
          number(pool.tokens)
        } tokens. Start it with more (--max-num-seqs), or with a smaller pool (--num-gpu-blocks-override).`,
      );
    }
    const out = Math.min(most, Math.ceil(wanted / count));
    this.#begin(
      `${count} requests that want ${number(out)} tokens each: together more than the ${
        number(pool.tokens)
      } that the pool holds. They may not end by themselves, so what follows an answer makes no sense.`,
    );
    const id = newId();
    this.room.awaitMoment("preemption", `cmpl-${id}`, ({ request_id: name }) => {
      this.room.select({ request: name, token: null, block: null });
    });
    this.#sendAll(
      named(count, (name, i) => `${name} ${i} asks: ${QUESTIONS[i % 3]}`),
      { max_tokens: out, ignore_eos: true, temperature: 1, seed: 1 },
      id,
    );
  }

  #tooLarge({ blocks, tokens }, count, each) {
    this.#begin(
      `This pool is too large to fill from here: its ${number(blocks)} blocks hold ${number(tokens)} tokens, ${
        number(count)
      } requests of ${number(each)}, and this page sends at most ${MOST_AT_ONCE}. ${START}`,
    );
  }

  /** The same prompt, the same seed, three temperatures. */
  temperatures() {
    this.#begin("One prompt, one seed, three temperatures. Compare their tokens in the lens.");
    const prompt = this.prompt.value || QUESTIONS[3];
    for (const temperature of [0, 0.8, 1.6]) {
      this.#send({ prompt, max_tokens: 40, temperature, seed: 7 }, `T = ${temperature}`);
    }
  }

  /** A text of about so many tokens of this model; a little less, never more. */
  async #text(tokens) {
    this.perSentence ??= api("tokenize", this.#json({ prompt: SENTENCE.repeat(4) }))
      .then((answer) => answer.json()).then(({ count }) => count / 4);
    return SENTENCE.repeat(Math.max(1, Math.floor((tokens - 16) / (await this.perSentence))));
  }

  #json(body) {
    return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  }

  #begin(told) {
    this.told.textContent = told;
    this.answers.replaceChildren();
    this.room.follow();
  }

  #send({ prompt, ...body }, title = "") {
    return this.#sendAll([{ prompt, title }], body);
  }

  /** Prompts in one request: a browser opens few connections to a server of HTTP/1.1 (six), so in
   *  requests of their own they would wait for each other here and not in the engine. */
  async #sendAll(asks, body, id = newId()) {
    const lines = asks.map(() => element("div.answer", {}, element("span.answer-text", {})));
    this.answers.append(...lines);
    try {
      const prompts = await this.template.fields(asks.map(({ prompt }) => prompt));
      const answer = await api(
        "v1/completions",
        this.#json({ ...body, ...prompts, request_id: id, stream: true, trace: "full" }),
      );
      if (!answer.ok) {
        const said = await answer.json().catch(() => ({}));
        throw new Error(said.error?.message ?? `the server answered ${answer.status}`);
      }
      const names = asks.map((_, i) => (asks.length === 1 ? `cmpl-${id}` : `cmpl-${id}-${i}`));
      for (const name of names) this.room.ledger.begin(name); // it has its colour from now on
      lines.forEach((line, i) => line.prepend(chip(this.room, names[i], asks[i].title)));
      if (lines.includes(this.answers.firstChild)) this.room.select({ request: names[0], token: null, block: null });
      await this.#read(answer, lines.map((line) => line.lastChild), body.n ?? 1);
    } catch (error) {
      for (const line of lines) line.classList.add("failed");
      lines[0].lastChild.textContent = error.message;
    }
  }

  async #read(answer, shown, n) {
    const texts = shown.map(() => Array(n).fill(""));
    for await (const { data } of serverSentEvents(answer)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      for (const { index, text } of chunk.choices ?? []) {
        const place = Math.floor(index / n); // a prompt's n answers follow each other
        texts[place][index % n] += text;
        shown[place].textContent = texts[place].join("\n― ");
      }
    }
  }
}
