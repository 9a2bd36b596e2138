// Record: the entries (events, and snapshots where a viewer joined or was set forward) and the state
// at any position among them. Going back starts at the checkpoint before, and folds from there.

import { Contradiction, EngineState, ofCore } from "./state.js";

const CHECKPOINT_ENTRIES = 2000; // a checkpoint copies the pool, so large pools get them less often
export const MOST_ENTRIES = 200_000; // then the oldest go: about 150 MB

export class Record {
  entries = [];
  lines = []; // of the log: {at: entries that were there when it was told, text, kind, …}
  steps = []; // numbers, in order
  position = 0; // entries that are folded into `state`
  state = new EngineState();
  broken = ""; // why the state at `position` isn't known
  forgotten = 0; // entries that were dropped from the front
  #ends = new Map(); // step → position after its last event
  #checkpoints = [{ position: 0, state: new EngineState(), broken: "" }];

  get length() {
    return this.entries.length;
  }

  /** The first position at which anything is known: a record that begins in the middle starts with a
   *  snapshot, and has nothing before it. */
  get first() {
    return this.entries[0]?.kind === "engine.snapshot" ? 1 : 0;
  }

  /** Whether events are missing before its beginning. */
  get cut() {
    return this.forgotten > 0 || (this.first === 1 && (this.entries[0].num_gone ?? 0) > 0);
  }

  /** The first step that it has, and the last one. */
  get firstStep() {
    return this.steps[0] ?? this.#beginsAfter;
  }
  get lastStep() {
    return this.steps.at(-1) ?? this.#beginsAfter;
  }
  get #beginsAfter() {
    return this.entries[0]?.state?.step ?? 0;
  } // of a snapshot

  add(event) {
    this.entries.push(event);
    if (event.step && event.kind !== "engine.snapshot" && ofCore(event)) {
      if (!this.#ends.has(event.step)) this.steps.push(event.step);
      this.#ends.set(event.step, this.entries.length);
    }
  }

  endOf(step) {
    return this.#ends.get(step);
  }

  /** The last step at or before this one, that the record has; undefined if there is none. */
  stepAt(step) {
    let low = 0, high = this.steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle] <= step) low = middle + 1;
      else high = middle;
    }
    return this.steps[low - 1];
  }

  /** Go to the state after the first `position` entries. */
  seek(position) {
    position = Math.max(0, Math.min(position, this.entries.length));
    if (position < this.position) {
      let index = this.#checkpoints.length - 1;
      while (this.#checkpoints[index].position > position) index--;
      const { position: start, state, broken } = this.#checkpoints[index];
      Object.assign(this, { position: start, state: state.copy(), broken });
    }
    while (this.position < position) this.#advance();
    return this.state;
  }

  #advance() {
    const entry = this.entries[this.position];
    try {
      if (entry.kind === "engine.snapshot") {
        this.broken = "";
        this.state = EngineState.fromSnapshot(entry);
      } else if (!this.broken) {
        this.state.fold(entry);
      } else if (ofCore(entry) && entry.step) {
        this.state.step = entry.step; // time goes on, although blocks can't be told any more
      }
    } catch (error) {
      if (!(error instanceof Contradiction)) throw error;
      const which = entry.kind === "engine.snapshot"
        ? "this record"
        : `event ${entry.seq} (${entry.kind}) doesn't follow from the ones before it`;
      this.broken = `${which}: ${error.message}`;
      this.state = EngineState.unknown(entry.step || this.state.step);
    }
    this.position++;
    const last = this.#checkpoints.at(-1).position;
    if (this.position - last >= Math.max(CHECKPOINT_ENTRIES, this.state.numBlocks / 8)) {
      this.#checkpoints.push({ position: this.position, state: this.state.copy(), broken: this.broken });
    }
  }

  /** Drop the oldest entries once there are too many. Returns how many went. */
  trim() {
    if (this.entries.length <= MOST_ENTRIES) return 0;
    this.seek(this.entries.length);
    const wanted = this.entries.length - MOST_ENTRIES * 0.8;
    const index = this.#checkpoints.findIndex(({ position }) => position >= wanted);
    const gone = this.#checkpoints[index].position;
    this.entries.splice(0, gone);
    this.#checkpoints.splice(0, index);
    for (const checkpoint of this.#checkpoints) checkpoint.position -= gone;
    for (const [step, end] of this.#ends) {
      if (end > gone) this.#ends.set(step, end - gone);
      else this.#ends.delete(step);
    }
    this.steps = this.steps.filter((step) => this.#ends.has(step));
    for (const line of this.lines) line.at -= gone;
    this.lines = this.lines.filter((line) => line.at > 0);
    this.position -= gone;
    this.forgotten += gone;
    return gone;
  }
}
