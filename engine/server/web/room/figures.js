// The numbers of a lesson: names of figures → their values at the moment at which the page paused.

import { duration, number } from "./words.js";

/** Where each kind of figure is looked up; undefined if the record doesn't have it (yet). */
const SOURCES = {
  event: (_room, { event }) => event,
  plan: (room, { event }) => room.ledger.steps.get(event.step)?.plan,
  time: (room, { event }) => room.ledger.steps.get(event.step)?.finished,
  pool: (room) => room.record.state.pool,
  queue: ({ record: { state } }) => ({ running: state.running.length, waiting: state.waiting.length }),
  engine: ({ ledger: { facts } }) => ({ ...facts["engine.started"]?.config, ...facts["engine.kv_sized"] }),
  request: (room, { event }) => room.ledger.life(event.request_id).tokenized,
};

/** "event.num_blocks" → "4"; "" if the record doesn't have it. Fields that are 0 aren't recorded. */
export function figure(room, moment, name) {
  const [source, field] = name.split(".");
  const found = SOURCES[source](room, moment);
  if (!found) return "";
  const value = found[field] ?? 0;
  return field.endsWith("_us") ? duration(value) : number(value);
}
