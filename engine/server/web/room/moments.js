// The moments of a record that are worth stopping at: one name each, and how its event is known.
// The step slider marks some of them; a lesson pauses at any of them. A new kind is one line here.

const found = (event) => event.num_cached_tokens > 0;
const inParts = ({ rows = [] }) => rows.some(([, , count, samples]) => count > 1 && !samples);

/** name → {kinds of its events, test of the event, what it is called; `mark`: shape on the slider} */
export const MOMENTS = {
  preemption: { kinds: ["request.preempted"], words: "preemption", mark: "▼", colour: "preempted" },
  refusal: { kinds: ["request.refused"], words: "refusal", mark: "×", colour: "preempted" },
  fork: { kinds: ["request.forked"], words: "fork", mark: "◆", colour: "swapped" },
  hit: { kinds: ["request.admitted", "request.resumed"], test: found, words: "hit", mark: "●", colour: "cached" },
  eviction: { kinds: ["block.evicted"], words: "eviction", mark: "▪", colour: "ink-3" },
  copy: { kinds: ["block.copied"], words: "copy of a shared block" },
  chunk: { kinds: ["step.planned"], test: inParts, words: "part of a prompt" },
  wait: { kinds: ["request.waiting"], words: "wait" },
  admission: { kinds: ["request.admitted"], words: "admission" },
  resumption: { kinds: ["request.resumed"], words: "return of a preempted request" },
  draw: { kinds: ["sample.drawn"], words: "draw" },
  end: { kinds: ["request.finished"], words: "end" },
  step: { kinds: ["step.finished"], words: "step" },
};

const byKind = new Map();
for (const [name, moment] of Object.entries(MOMENTS)) {
  for (const kind of moment.kinds) byKind.set(kind, [...(byKind.get(kind) ?? []), { name, ...moment }]);
}
const NONE = [];

/** Names of the moments that an event is. */
export function momentsOf(event) {
  return (byKind.get(event.kind) ?? NONE).filter(({ test }) => !test || test(event)).map(({ name }) => name);
}

/** The moment that the slider marks at this event; undefined for most events. */
export function markOf(event) {
  const candidates = byKind.get(event.kind);
  return candidates?.find(({ mark, test }) => mark && (!test || test(event)))?.name;
}
