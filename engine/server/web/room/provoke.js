// Provoke: buttons that send what shows one thing, or say why it can't be shown on this server. What is
// about tokens asks for "trace": "full", so its draws and kernels are in the record; what is about
// blocks doesn't, for recording a dozen rows' draws takes longer than computing them.

import { Asker, NAMES, newId, START } from "./ask.js";
import { element } from "./paint.js";
import { number } from "./words.js";

const QUESTIONS = [
  "What is a KV cache?",
  "What is preemption?",
  "What does temperature do?",
  "Tell me a story about a fox.",
];
const MOST_AT_ONCE = 48;
const CROWD = 12; // requests that run over a pool together, if it isn't too large for that
const DUST_BLOCKS = 2048; // of a pool, from which on its grid shows no squares
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
    this.asker = new Asker(room, panel.querySelector(".answers"));
    this.told = panel.querySelector(".told");
    this.small = panel.querySelector(".make-small");
    panel.querySelector(".make-small-button").onclick = () => {
      this.#begin(`A running engine can't change its pool, its seats or its budget. ${START}`);
    };
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
    this.#send([{ prompt, title: "" }], {
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
    const text = await this.asker.text(each - out);
    this.asker.send(named(count, (name, i) => `${text} ${name} ${i} asks: ${QUESTIONS[i % 3]}`), {
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
    const prefix = await this.asker.text(length);
    const asks = NAMES.slice(0, 6).map((name) => ({ title: name, prompt: `${prefix} ${name} asks: ${QUESTIONS[1]}` }));
    const body = { max_tokens: 48, ignore_eos: true, temperature: 0.8, seed: 1 };
    await this.#send(asks.slice(0, 1), body).begun; // its blocks can be found now
    this.#send(asks.slice(1), body);
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
      return true;
    });
    this.asker.send(
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
      this.#send([{ prompt, title: `T = ${temperature}` }], { max_tokens: 40, temperature, seed: 7 });
    }
  }

  #send(asks, body, id) {
    return this.asker.send(asks, { ...body, trace: "full" }, id);
  }

  #begin(told) {
    this.told.textContent = told;
    this.asker.begin();
    this.room.follow();
  }
}
