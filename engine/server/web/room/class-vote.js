// The class votes on a lesson's prediction: opened on the teacher's page, closed when it reveals the answer.

import { api } from "./source.js";

const EVERY_MS = 1000;

async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  const answer = await api(path, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return await answer.json();
}

export class ClassVote {
  possible = false; // the server has a class
  open = false;
  counts = []; // for each choice; kept after the end
  phones = 0; // that have opened the class's page
  #number = 0;
  #asked = 0; // grows with each vote: an answer to an older one is ignored

  /** `changed` is called when there are other numbers. */
  constructor(changed) {
    this.changed = changed;
  }

  get total() {
    return this.counts.reduce((sum, count) => sum + count, 0);
  }

  /** Ask the class; the votes are looked at until it is closed. Throws if the server doesn't open it. */
  async ask(question, choices) {
    const asked = ++this.#asked;
    const { number } = await post("class/vote", { question, choices });
    if (asked !== this.#asked) return;
    Object.assign(this, { open: true, counts: choices.map(() => 0) });
    this.#number = number;
    this.changed();
    while (this.open && asked === this.#asked) {
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
      const answer = await api("class/vote").catch(() => null);
      if (!answer?.ok || asked !== this.#asked || !this.open) continue;
      this.#take(await answer.json());
    }
  }

  /** Nobody can vote any more, and phones see the votes. `answer`: the right choice, 0 if it isn't told. */
  async close(answer = 0) {
    if (!this.open) return;
    this.open = false;
    try {
      this.#take(await post("class/vote/close", { number: this.#number, answer })); // with the last votes
    } catch {
      // the server is gone for a moment, or another page has asked since: there is nothing to close
    }
  }

  /** Forget the votes: another question comes. */
  forget() {
    this.close();
    this.#asked++;
    this.counts = [];
  }

  #take({ number, counts, phones }) {
    if (number !== this.#number) this.open = false; // another page asks the class now
    else if (this.counts.length) Object.assign(this, { counts, phones });
    this.changed();
  }
}
