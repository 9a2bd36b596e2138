// Ledger: what the panels look up: each sequence's life, each step's plan, times and kernels. It is
// about the whole record, whatever the position; `at` says from which position on something is known.

import { markOf } from "./moments.js";

const FINAL = { "request.finished": "finished", "request.aborted": "aborted", "request.refused": "refused" };
const GOLDEN_ANGLE = 137.508; // neighbours in order of arrival get far-off hues

function newLife(name, order) {
  return {
    name,
    order,
    hue: (order * GOLDEN_ANGLE + 205) % 360,
    label: "",
    at: Infinity,
    spans: [],
    waits: [],
    draws: [],
    texts: [],
    calls: [], // of tools
    cachedAt: new Map(),
    preemptions: [],
    queued: null,
    received: null,
    tokenized: null,
    admitted: null,
    end: null,
    forked: null,
    first: null, // its first token: {step, ns, at}
    lastNs: 0, // when its last token was there
    gaps: [], // between its tokens: {us, step, at} each
  };
}

/** What a sequence waits for at a position: the last reason since it began to wait; undefined if none
 *  was told yet. A reason from before its admission says nothing about a later wait. */
export function reasonAt(life, position) {
  const since = life.spans.findLast(({ at }) => at <= position)?.at ?? 0;
  return life.waits.findLast(({ at }) => since <= at && at <= position)?.event;
}

export class Ledger {
  facts = {}; // engine.started, engine.model_loaded, engine.kv_sized
  sequences = new Map(); // name → life
  steps = new Map(); // step → {plan, finished, kernels, verified: by sequence, at, cut: its end was not sent}
  marks = []; // for the slider: {name of the moment, event, at}, in order
  skipped = 0; // events that this viewer missed
  lost = 0; // events that some reader of the record could not take
  renamed = 0; // times that a sequence got another name
  #short = 0;

  see(entry, at) {
    if (entry.kind === "engine.snapshot") {
      if (entry.skipped) {
        this.skipped += entry.skipped;
        for (const step of this.steps.values()) step.cut = !step.finished;
      }
      for (const event of entry.standing ?? []) {
        this.see(event, at);
        const name = entry.names?.[event.request_id];
        if (name) this.rename(event.request_id, name);
      }
      this.#short = Math.max(this.#short, entry.num_named ?? 0);
      this.#takeOver(entry.state, at);
      return;
    }
    const mark = markOf(entry);
    if (mark) this.marks.push({ name: mark, event: entry, at });
    const handler = SEEN[entry.kind];
    if (handler) handler(this, entry, at);
    else if (entry.kind.startsWith("engine.")) this.facts[entry.kind] = entry;
  }

  /** A sequence whose beginning was before the record that we have. */
  #takeOver(state, at) {
    for (const [name, status] of Object.entries(state?.status ?? {})) {
      const life = this.begin(name);
      if (!life.spans.length || life.spans.at(-1).state !== status) this.enter(name, status, state.step, at);
    }
    for (const life of this.sequences.values()) {
      if (!life.end && state && !(life.name in state.status)) this.enter(life.name, "", state.step, at);
    }
  }

  /** What is known of a sequence. One that the record doesn't have gets no place in it by the asking:
   *  what comes back then is nobody's. */
  life(name) {
    return this.sequences.get(name) ?? { ...newLife(name, Infinity), hue: null, label: name ?? "" };
  }

  /** The life of a sequence that the record has, or that was just sent. */
  begin(name) {
    let life = this.sequences.get(name);
    if (!life) {
      life = newLife(name, this.sequences.size);
      life.label = this.#label(name);
      this.sequences.set(name, life);
    }
    return life;
  }

  /** The log's short names come with its lines; until one does, ours. */
  #label(name) {
    if (name.length <= 10) return name;
    const [, parent, index] = /^(.*)\.(\d+)$/.exec(name) ?? [];
    if (parent && this.sequences.has(parent)) return `${this.sequences.get(parent).label}.${index}`;
    return /^chatcmpl-as-([A-Za-z]{1,12})-/.exec(name)?.[1] ?? `req-${++this.#short}`;
  }

  /** The log's name of a sequence. */
  rename(name, label) {
    const life = this.sequences.get(name);
    if (!life || life.label === label) return;
    life.label = label;
    this.renamed++;
  }

  enter(name, state, step, at) {
    const { spans } = this.begin(name);
    if (spans.length && spans.at(-1).to === undefined) spans.at(-1).to = step;
    if (state) spans.push({ state, from: step, at });
  }

  step(number, at) {
    let step = this.steps.get(number);
    if (!step) {
      step = { number, plan: null, finished: null, kernels: [], verified: new Map(), at, cut: false };
      this.steps.set(number, step);
    }
    return step;
  }

  forget(firstStep, gone) {
    this.marks = this.marks.filter(({ at }) => at > gone);
    for (const mark of this.marks) mark.at -= gone;
    for (const number of this.steps.keys()) if (number < firstStep) this.steps.delete(number);
    for (const [name, life] of this.sequences) {
      if (life.end && life.end.step < firstStep) this.sequences.delete(name);
      life.at -= gone;
      if (life.end) life.end.at -= gone;
      if (life.first) life.first.at -= gone;
      for (const list of [life.gaps, life.spans, life.waits, life.draws, life.texts, life.preemptions]) {
        for (const item of list) item.at -= gone;
      }
    }
  }
}

const keep = (field) => (ledger, event, at) => {
  const life = ledger.begin(event.request_id);
  life[field] = event;
  life.at = Math.min(life.at, at);
  return life;
};

const SEEN = {
  "request.received": keep("received"),
  "request.tokenized": keep("tokenized"),
  "request.queued"(ledger, event, at) {
    keep("queued")(ledger, event, at);
    ledger.enter(event.request_id, "waiting", event.step ?? 0, at);
  },
  "request.waiting"(ledger, event, at) {
    ledger.begin(event.request_id).waits.push({ at, event });
  },
  "request.admitted"(ledger, event, at) {
    const life = keep("admitted")(ledger, event, at);
    if (event.num_cached_tokens) life.cachedAt.set(event.step, event.num_cached_tokens);
    ledger.enter(event.request_id, "running", event.step, at);
  },
  "request.resumed"(ledger, event, at) {
    const life = ledger.begin(event.request_id);
    if (event.num_cached_tokens) life.cachedAt.set(event.step, event.num_cached_tokens);
    ledger.enter(event.request_id, "running", event.step, at);
  },
  "request.forked"(ledger, event, at) {
    const life = keep("forked")(ledger, event, at);
    life.queued = ledger.begin(event.parent).queued;
    life.received = ledger.begin(event.parent).received;
    life.tokenized = ledger.begin(event.parent).tokenized;
    ledger.enter(event.request_id, "running", event.step, at);
  },
  "request.preempted"(ledger, event, at) {
    ledger.begin(event.request_id).preemptions.push({ at, event });
    ledger.enter(event.request_id, event.mode === "swap" ? "swapped" : "preempted", event.step, at);
  },
  "engine.warning"(ledger, event) {
    ledger.facts[event.kind] = event;
    ledger.lost = Math.max(ledger.lost, event.events_lost ?? 0);
  },
  "step.planned"(ledger, event, at) {
    ledger.step(event.step, at).plan = event;
  },
  "step.finished"(ledger, event, at) {
    const step = ledger.step(event.step, at);
    step.finished = event;
    const seen = new Set(); // a sequence with proposals has several rows
    for (const [name, , , samples] of step.plan?.rows ?? []) {
      const life = samples && !seen.has(name) && ledger.sequences.get(name);
      if (!life) continue;
      seen.add(name);
      if (life.lastNs) life.gaps.push({ us: (event.ts_ns - life.lastNs) / 1e3, step: event.step, at });
      else life.first = { step: event.step, ns: event.ts_ns, at };
      life.lastNs = event.ts_ns;
    }
  },
  "spec.verified"(ledger, event, at) {
    ledger.step(event.step, at).verified.set(event.request_id, event);
  },
  "kernel.launched"(ledger, event, at) {
    ledger.step(event.step ?? 0, at).kernels.push(event);
  },
  "graph.replayed"(ledger, event, at) {
    ledger.step(event.step ?? 0, at).graph = event;
  },
  "sample.drawn"(ledger, event, at) {
    const index = event.index ?? 0;
    const own = index && !/\.\d+$/.test(event.request_id) ? `${event.request_id}.${index}` : event.request_id;
    ledger.begin(own).draws.push({ at, event });
  },
  "text.emitted"(ledger, event, at) {
    const name = event.index ? `${event.request_id}.${event.index}` : event.request_id;
    ledger.begin(name).texts.push({ at, event });
  },
  "tool.called"(ledger, event, at) {
    const name = event.index ? `${event.request_id}.${event.index}` : event.request_id;
    ledger.begin(name).calls.push({ at, event });
  },
};
for (const [kind, how] of Object.entries(FINAL)) {
  SEEN[kind] = (ledger, event, at) => {
    const life = ledger.begin(event.request_id);
    life.at = Math.min(life.at, at);
    life.end = { how, step: event.step ?? 0, at, event };
    ledger.enter(event.request_id, "", event.step ?? 0, at);
  };
}
