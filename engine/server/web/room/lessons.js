// Lessons: a prediction, one button, a pause at the event, two numbers, why. Each is a data file.

import { NAMES, newId, START } from "./ask.js";
import { ClassVote } from "./class-vote.js";
import { figure } from "./figures.js";
import { element } from "./paint.js";
import { number, plural } from "./words.js";

const LIMITS = [
  // in a lesson's `fits`, what a server has of it, and how it is called
  ["blocks", ({ num_blocks: blocks }) => blocks, "blocks"],
  ["seats", ({ max_num_seqs: seats }) => seats, "seats"],
  ["budget", ({ max_num_batched_tokens: budget }) => budget, "tokens of budget"],
];

export class Lessons {
  lessons = [];
  at = -1; // the lesson that is open; −1: the list
  guess = 0; // 1…: what was predicted
  stage = "ask"; // then "wait" for the moment, and "told"
  moment = null; // {event, position} at which it paused

  constructor(room, panel, asker) {
    this.room = room;
    this.asker = asker;
    this.body = panel.querySelector(".body");
    this.caption = panel.querySelector(".caption");
    this.panel = panel;
    this.shown = "";
    this.vote = new ClassVote(() => room.touch());
  }

  take(lessons) {
    this.lessons = lessons;
    this.panel.hidden = !lessons.length;
    this.room.redraw();
  }

  /** The server has a class, whose phones can vote. */
  letVote() {
    this.vote.possible = true;
    this.room.redraw();
  }

  redraw() {
    this.shown = "";
  }

  /** Show a lesson, or below 0 the list. A list that is shown stays: a click on what is replaced meanwhile is lost. */
  open(at) {
    if (at < 0 && this.at < 0) return;
    Object.assign(this, { at, guess: 0, stage: "ask", moment: null });
    this.vote.forget();
    this.#tell();
  }

  #tell() {
    this.shown = "";
    this.panel.classList.toggle("open", this.at >= 0);
    this.panel.classList.toggle("told", this.stage === "told");
    this.room.redraw();
  }

  update() {
    const lesson = this.lessons[this.at];
    const figures = lesson && this.moment ? this.#figures(lesson) : [];
    const { open, total } = this.vote;
    const parts = [this.lessons.length, this.at, this.guess, this.stage, figures, this.#unfit(lesson)];
    const code = JSON.stringify([...parts, this.#mayVote, open, this.stage === "told" && total]);
    if (code !== this.shown) {
      this.shown = code;
      this.caption.textContent = lesson ? `${this.at + 1} of ${this.lessons.length}` : "three minutes each";
      this.body.replaceChildren(...(lesson ? this.#card(lesson, figures) : [this.#list()]));
    }
    this.#showVotes();
  }

  /** Whether the class can be asked now: while presenting, once a lesson. */
  get #mayVote() {
    const { possible, open, counts } = this.vote;
    const lesson = this.lessons[this.at];
    const asks = lesson && this.stage === "ask" && !this.#unfit(lesson);
    return Boolean(this.room.presenting && possible && asks && !open && !counts.length);
  }

  async #askClass() {
    const { question, choices } = this.lessons[this.at].prediction;
    try {
      await this.vote.ask(question, choices);
    } catch (error) {
      this.room.notice(`The class can't vote: ${error.message}.`, "vote");
    }
  }

  /** Votes come while the card stands, and must not take the keyboard's place in it: only bars change. */
  #showVotes() {
    const { counts, total, phones } = this.vote;
    if (!counts.length) return;
    const voting = this.body.querySelector(".voting");
    const words = `The class votes: ${number(total)} of ${plural(Math.max(phones, total), "phone")}.`;
    if (voting && voting.textContent !== words) voting.textContent = words;
    for (const [i, choice] of [...this.body.querySelectorAll(".choice")].entries()) {
      choice.style.setProperty("--share", total ? `${(100 * counts[i]) / total}%` : "0%");
      choice.querySelector(".votes").textContent = plural(counts[i], "vote");
    }
    const go = this.body.querySelector(".lesson-go");
    if (go) go.disabled = !this.guess && !total;
  }

  #list() {
    const items = this.lessons.map(({ title }, at) =>
      element("li", {}, element("button.link", { type: "button", onclick: () => this.open(at) }, title))
    );
    return element("ol.lesson-list", {}, ...items);
  }

  #card(lesson, figures) {
    const { question, choices, answer } = lesson.prediction;
    const told = this.stage === "told";
    const options = choices.map((choice, i) => {
      const made = element("button.choice", {
        type: "button",
        disabled: this.stage !== "ask",
        onclick: () => this.#predict(i + 1),
      }, choice);
      made.setAttribute("aria-pressed", String(this.guess === i + 1));
      if (this.vote.counts.length) made.append(element("span.votes"));
      if (told && i + 1 === answer) {
        made.classList.add("right");
        made.firstChild.after(" ✓");
      }
      return made;
    });
    const unfit = this.#unfit(lesson);
    const parts = [
      element("h3", {}, lesson.title),
      element("p", {}, lesson.sentence),
      element("p.question-of-lesson", {}, question),
      element("div.choices", { role: "group", "aria-label": "Your prediction" }, ...options),
    ];
    if (this.#mayVote) {
      parts.push(element("button.quiet-button.class-vote", {
        type: "button",
        title: "Phones show the question and vote once (v)",
        onclick: () => this.#askClass(),
      }, "let the class vote"));
    } else if (this.vote.open) parts.push(element("p.told.voting"));
    if (unfit) parts.push(element("p.told", {}, unfit));
    else if (this.stage === "ask") {
      parts.push(element("button.primary.lesson-go", {
        type: "button",
        disabled: !this.guess && !this.vote.total,
        title: this.guess ? "" : "Choose what you expect first",
        onclick: () => this.#go(lesson),
      }, lesson.button));
    } else if (this.stage === "wait") {
      parts.push(element("p.told", { role: "status" }, "Sent. The page pauses itself when it happens …"));
    }
    if (told) parts.push(...this.#reveal(lesson, figures));
    return [...parts, this.#ways()];
  }

  #term(term) {
    return element("a.guide", { href: `guide/GLOSSARY.md#${term}` }, term.replaceAll("-", " "));
  }

  #reveal({ prediction, figures: names, why, next, terms = [] }, figures) {
    const right = this.guess === prediction.answer;
    const { counts, total } = this.vote;
    return [
      element(
        "p.verdict",
        { role: "status" },
        !this.guess ? "It happened: " : right ? "As you predicted: " : "Not as you predicted: ",
        element("b", {}, prediction.choices[prediction.answer - 1]),
        total ? `. So said ${number(counts[prediction.answer - 1])} of ${plural(total, "vote")}.` : ".",
      ),
      element(
        "dl.figures",
        {},
        ...names.map(({ label }, i) =>
          element("div", {}, element("dd", {}, figures[i] || "…"), element("dt", {}, label))
        ),
      ),
      this.moment.event.why
        ? element("blockquote", { title: "the engine's own words" }, this.room.plain(this.moment.event.why))
        : null,
      element("p", {}, why),
      element("p.quiet", {}, next),
      terms.length
        ? element("p.quiet", {}, "Words: ", ...terms.flatMap((term, i) => [i ? ", " : "", this.#term(term)]))
        : null,
    ].filter(Boolean);
  }

  #ways() {
    const way = (text, to) => element("button.quiet-button", { type: "button", onclick: () => this.open(to) }, text);
    return element(
      "div.lesson-ways",
      {},
      way("all lessons", -1),
      this.stage === "told" ? way("again", this.at) : null,
      this.at + 1 < this.lessons.length
        ? element(
          "button.quiet-button.lesson-next",
          { type: "button", onclick: () => this.open(this.at + 1) },
          "next →",
        )
        : null,
    );
  }

  /** Keys of the lesson that is open: a digit predicts, v lets the class vote. */
  get keys() {
    const choices = this.stage === "ask" ? this.lessons[this.at]?.prediction.choices ?? [] : [];
    const digits = Object.fromEntries(choices.map((_, i) => [String(i + 1), () => this.#predict(i + 1)]));
    return this.#mayVote ? { ...digits, v: () => this.#askClass() } : digits;
  }

  /** Go on in the lesson that is open: ask the class, send, or to the next one. Returns whether one is open. */
  onward(way) {
    const lesson = this.lessons[this.at];
    if (!lesson) return false;
    if (way < 0) this.open(this.at - 1);
    else if (this.stage === "told") this.open(this.at + 1 < this.lessons.length ? this.at + 1 : -1);
    else if (!this.guess && this.#mayVote) this.#askClass();
    else if (this.stage === "ask" && (this.guess || this.vote.total) && !this.#unfit(lesson)) this.#go(lesson);
    return true;
  }

  get #engine() {
    const { facts } = this.room.ledger;
    return { ...facts["engine.started"]?.config, ...facts["engine.kv_sized"] };
  }

  /** Why this server can't show it; "" if it can. */
  #unfit(lesson) {
    if (!lesson) return "";
    const engine = this.#engine;
    for (const [limit, has, what] of LIMITS) {
      const most = lesson.fits?.[limit];
      if (most && has(engine) > most) {
        return `This server has ${number(has(engine))} ${what}, and this lesson needs at most ${most}. ${START}`;
      }
    }
    return "";
  }

  #predict(guess) {
    this.guess = guess;
    this.#tell();
    this.body.querySelector(".lesson-go")?.focus();
  }

  /** 64, or "9 % of pool", in tokens. */
  #tokens(amount) {
    if (!amount || typeof amount === "number") return amount ?? 0;
    const [share, , , of] = amount.split(" ");
    const { num_blocks: blocks, block_size: size, max_model_len: longest } = this.#engine;
    const tokens = Math.floor((Number(share) / 100) * (of === "pool" ? blocks * size : longest));
    return of === "pool" ? Math.min(tokens, Math.floor(longest * 0.9)) : tokens;
  }

  async #go(lesson) {
    const id = newId();
    this.stage = "wait";
    this.asker.begin();
    this.room.follow();
    this.#tell();
    let { skip = 0 } = lesson.pause;
    this.room.awaitMoment(lesson.pause.at, `cmpl-${id}`, (event, position) => {
      if (this.lessons[this.at] !== lesson || this.stage !== "wait") return true; // another one was opened
      for (const [field, value] of Object.entries(lesson.pause.where ?? {})) if (event[field] !== value) return false;
      if (skip-- > 0) return false;
      if (lesson.pause.show !== "step") this.#stop(event, position);
      else {
        this.room.awaitMoment("step", "", ({ step }, end) => {
          if (step === event.step) this.#stop(event, end);
          return step === event.step;
        });
      }
      return true;
    });
    for (const [i, wave] of lesson.waves.entries()) {
      const sent = this.asker.send(await this.#asks(wave, id.slice(5)), this.#body(wave), `${id}-${i}`);
      await sent.begun;
    }
  }

  #body({ answer_tokens: amount, n = 1, temperature = 0.8, trace = "steps" }) {
    return { max_tokens: this.#tokens(amount), n, temperature, seed: 1, ignore_eos: true, trace };
  }

  /** Prompts that the prefix cache can't know, unless they are to have the same beginning. */
  async #asks({ count = 1, prompt, prompt_tokens: amount, same_beginning: same = false }, id) {
    const tokens = this.#tokens(amount);
    const before = tokens ? await this.asker.text(tokens) : "";
    return Array.from({ length: count }, (_, i) => {
      const name = NAMES[i % NAMES.length];
      const whose = same ? "" : `${id} ${i}: `;
      return { title: count > 1 ? name : "", prompt: `${whose}${before}${count > 1 ? `${name}: ` : ""}${prompt}` };
    });
  }

  #stop(event, position) {
    this.moment = { event, position };
    this.stage = "told";
    this.vote.close(this.lessons[this.at].prediction.answer);
    if (event.request_id) this.room.select({ request: event.request_id, block: null, token: null });
    this.room.goTo(position);
    this.#tell();
  }

  /** As they were when the page paused, also when one has gone on since. */
  #figures({ figures }) {
    if (this.room.record.position === this.moment.position || !this.moment.figures) {
      this.moment.figures = figures.map(({ of }) => figure(this.room, this.moment, of));
    }
    return this.moment.figures;
  }
}
