// EngineState: what the core's events fold into: pool, tables, queues. It is engine/trace/state.py
// once more, event for event; a browser test holds the two against each other.

/** Kinds of events whose default `src` is the server; tests hold it against engine/trace/events.py. */
const OF_SERVER = new Set([
  "text.emitted",
  "text.held_back",
  "text.tokens",
  "stop.matched",
  "tool.called",
  "tool.unreadable",
  "engine.formats_found",
]);

export class Contradiction extends Error {}

/** Whether the core recorded this event. Fields that have their default are left out of a record. */
export function ofCore(event) {
  return (event.src ?? (OF_SERVER.has(event.kind) ? "server" : "core")) === "core";
}

/** Blocks in the order in which they will be taken: a ring of links, so any block leaves in O(1). */
class FreeQueue {
  constructor(size) {
    this.end = size; // the link between the last and the first
    this.next = new Int32Array(size + 1).fill(-1);
    this.before = new Int32Array(size + 1).fill(-1);
    this.next[size] = this.before[size] = size;
    this.length = 0;
  }
  static full(size) {
    const queue = new FreeQueue(size);
    for (let block = 0; block < size; block++) queue.pushBack(block);
    return queue;
  }
  copy() {
    const other = new FreeQueue(0);
    other.end = this.end;
    other.next = this.next.slice();
    other.before = this.before.slice();
    other.length = this.length;
    return other;
  }
  get first() {
    return this.next[this.end];
  }
  has(block) {
    return this.next[block] >= 0;
  }
  pushBack(block) {
    this.#insert(block, this.before[this.end], this.end);
  }
  pushFront(block) {
    this.#insert(block, this.end, this.next[this.end]);
  }
  #insert(block, before, next) {
    this.next[before] = this.before[next] = block;
    this.before[block] = before;
    this.next[block] = next;
    this.length++;
  }
  delete(block) {
    if (!this.has(block)) throw new Contradiction(`block ${block} is not free`);
    this.next[this.before[block]] = this.next[block];
    this.before[this.next[block]] = this.before[block];
    this.next[block] = this.before[block] = -1;
    this.length--;
  }
  *[Symbol.iterator]() {
    for (let block = this.first; block !== this.end; block = this.next[block]) yield block;
  }
}

/** Ranks [priority, arrival, index] in order; the name decides between equals. */
function precedes(a, b) {
  for (let i = 0; i < 3; i++) if (a.rank[i] !== b.rank[i]) return a.rank[i] < b.rank[i];
  return a.name < b.name;
}

function insert(queue, sequence) {
  let place = queue.length; // the newest usually comes last
  while (place > 0 && precedes(sequence, queue[place - 1])) place--;
  queue.splice(place, 0, sequence);
}

function remove(queue, sequence) {
  const place = queue.indexOf(sequence);
  if (place < 0) throw new Contradiction(`${sequence.name} is not in that queue`);
  queue.splice(place, 1);
}

export class EngineState {
  constructor(numBlocks = 0) {
    this.step = 0;
    this.lastSeq = 0;
    this.lost = 0; // events that are missing, by gaps in seq
    this.blockSize = 0;
    this.numHostBlocks = 0;
    this.ordered = true; // the next block to be taken is the first free one
    this.hostTables = new Map(); // swapped-out sequence → its host blocks
    this.tables = new Map(); // sequence → its block table
    this.sequences = new Map(); // alive ones: name → {name, rank, status, computed}
    this.running = []; // sequences by rank
    this.waiting = [];
    this.planned = new Map(); // step → rows, until it has come back
    this.resize(numBlocks);
  }

  resize(numBlocks) {
    this.references = new Int32Array(numBlocks); // block → tables that name it
    this.hashes = new Map(); // block → hash of its content, if it can be found
    this.cached = new Map(); // hash → block
    this.free = FreeQueue.full(numBlocks);
  }

  get numBlocks() {
    return this.references.length;
  }

  /** Apply one event. Throws Contradiction if it doesn't follow; the state is then useless. */
  fold(event) {
    if (!ofCore(event)) return;
    if (event.seq) {
      if (this.lastSeq && event.seq !== this.lastSeq + 1) this.lost += event.seq - this.lastSeq - 1;
      this.lastSeq = event.seq;
    }
    if (event.step) this.step = event.step;
    FOLDS[event.kind]?.call(this, event);
  }

  /** A state of which nothing is known but the step: no panel can show an older one in its place. */
  static unknown(step) {
    const state = new EngineState();
    state.step = step;
    return state;
  }

  /** From an `engine.snapshot`. Throws Contradiction if the record had a gap, so that nobody knows. */
  static fromSnapshot(snapshot) {
    const told = snapshot.state;
    if (!told) throw new Contradiction("the record had a gap before it");
    const state = new EngineState(told.references.length);
    state.step = told.step;
    state.lost = told.lost;
    state.lastSeq = snapshot.last_seq ?? 0;
    state.blockSize = told.block_size;
    state.numHostBlocks = told.num_host_blocks;
    state.references.set(told.references);
    told.hashes.forEach((hash, block) => {
      if (hash !== null) state.hashes.set(block, hash);
    });
    state.cached = new Map(Object.entries(told.cached));
    state.free = new FreeQueue(told.references.length);
    for (const block of told.free_queue) state.free.pushBack(block);
    state.tables = new Map(Object.entries(told.tables).map(([name, table]) => [name, [...table]]));
    state.hostTables = new Map(Object.entries(told.host_tables));
    for (const [name, status] of Object.entries(told.status)) {
      const computed = told.num_computed_tokens[name];
      state.sequences.set(name, { name, rank: snapshot.ranks[name], status, computed });
    }
    state.running = told.running.map((name) => state.sequences.get(name));
    state.waiting = told.waiting.map((name) => state.sequences.get(name));
    for (const { step, rows } of snapshot.planned ?? []) state.planned.set(step, rows);
    return state;
  }

  copy() {
    const other = new EngineState();
    for (const name of ["step", "lastSeq", "lost", "blockSize", "numHostBlocks", "ordered"]) other[name] = this[name];
    other.references = this.references.slice();
    other.hashes = new Map(this.hashes);
    other.cached = new Map(this.cached);
    other.free = this.free.copy();
    other.tables = new Map([...this.tables].map(([name, table]) => [name, table.slice()]));
    other.hostTables = new Map(this.hostTables);
    other.planned = new Map(this.planned);
    other.sequences = new Map([...this.sequences].map(([name, one]) => [name, { ...one }]));
    other.running = this.running.map(({ name }) => other.sequences.get(name));
    other.waiting = this.waiting.map(({ name }) => other.sequences.get(name));
    return other;
  }

  /** As EngineState.to_dict of Python gives it. */
  toDict() {
    const names = (queue) => queue.map(({ name }) => name);
    const each = (value) => Object.fromEntries([...this.sequences.values()].map((s) => [s.name, value(s)]));
    return {
      step: this.step,
      lost: this.lost,
      block_size: this.blockSize,
      references: [...this.references],
      hashes: Array.from(this.references, (_, block) => this.hashes.get(block) ?? null),
      cached: Object.fromEntries(this.cached),
      free_queue: [...this.free],
      tables: Object.fromEntries(this.tables),
      num_host_blocks: this.numHostBlocks,
      host_blocks_used: [...this.hostTables.values()].flat().sort((a, b) => a - b),
      host_tables: Object.fromEntries(this.hostTables),
      running: names(this.running),
      waiting: names(this.waiting),
      status: each((sequence) => sequence.status),
      num_computed_tokens: each((sequence) => sequence.computed),
    };
  }

  /** How many blocks are used, cached and free, empty. */
  get pool() {
    let kept = 0;
    for (const block of this.hashes.keys()) if (!this.references[block]) kept++;
    return { used: this.numBlocks - this.free.length, kept, empty: this.free.length - kept };
  }

  sequence(name) {
    const found = this.sequences.get(name);
    if (!found) throw new Contradiction(`${name} is not alive`);
    return found;
  }

  take(block) {
    if (this.ordered && this.free.first !== block) {
      throw new Contradiction(`block ${block} is taken, but block ${this.free.first} is the next free one`);
    }
    if (this.hashes.has(block)) throw new Contradiction(`block ${block}: its content was not evicted`);
    this.free.delete(block);
    this.references[block] = 1;
  }

  drop(block) {
    if (--this.references[block] < 0) throw new Contradiction(`block ${block} is freed twice`);
    if (this.references[block] > 0) return;
    if (this.hashes.has(block)) this.free.pushBack(block);
    else this.free.pushFront(block);
  }

  append({ request_id: name, blocks = [], index = 0 }) {
    if (!this.tables.has(name)) this.tables.set(name, []);
    const table = this.tables.get(name);
    if (index !== table.length) throw new Contradiction(`the table of ${name} has ${table.length} entries`);
    table.push(...blocks);
  }
}

function queued({ request_id: name, rank }) {
  if (this.sequences.has(name)) throw new Contradiction(`${name} is alive already`);
  const sequence = { name, rank: [...rank, 0, 0, 0].slice(0, 3), status: "waiting", computed: 0 };
  this.sequences.set(name, sequence);
  insert(this.waiting, sequence);
}

function started({ request_id: name, num_cached_tokens: cached = 0 }) {
  const sequence = this.sequence(name);
  remove(this.waiting, sequence);
  sequence.status = "running";
  sequence.computed = cached;
  insert(this.running, sequence);
}

function ended({ request_id: name }) {
  // Its blocks stay until block.freed: work in flight may still write to them.
  const sequence = this.sequence(name);
  remove(sequence.status === "running" ? this.running : this.waiting, sequence);
  this.sequences.delete(name);
}

function releaseHost({ request_id: name, host_blocks: blocks = [] }) {
  if (blocks.length) this.hostTables.delete(name);
}

const FOLDS = {
  "request.queued": queued,
  "request.admitted": started,
  "request.resumed": started,
  "request.finished": ended,
  "request.aborted": ended,
  "request.refused"(event) {
    if (this.sequences.has(event.request_id)) ended.call(this, event);
  },
  "request.forked"({ request_id: name, parent, index = 0, num_computed_tokens: computed = 0 }) {
    const rank = [...this.sequence(parent).rank.slice(0, 2), index];
    const sequence = { name, rank, status: "running", computed };
    this.sequences.set(name, sequence);
    insert(this.running, sequence);
  },
  "request.preempted"({ request_id: name, mode }) {
    const sequence = this.sequence(name);
    remove(this.running, sequence);
    sequence.status = "preempted";
    if (mode === "recompute") sequence.computed = 0;
    insert(this.waiting, sequence);
  },
  "step.planned"({ step, rows = [] }) {
    this.planned.set(step, rows);
  },
  "spec.verified"(event) {
    const { step, request_id: name, position = 0, num_accepted: right = 0, blocks = [] } = event;
    const counts = ([of, start]) => of !== name || start < position + right;
    this.planned.set(step, (this.planned.get(step) ?? []).filter(counts));
    const table = this.tables.get(name);
    for (const block of blocks) {
      if (table?.pop() !== block) throw new Contradiction(`block ${block} isn't the last of its table`);
      this.drop(block);
    }
  },
  "step.finished"({ step }) {
    const rows = this.planned.get(step);
    if (!rows) throw new Contradiction(`step ${step} was not planned`);
    this.planned.delete(step);
    for (const [name, start, count] of rows) {
      const sequence = this.sequences.get(name);
      if (sequence?.status === "running") sequence.computed = start + count;
    }
  },
  "block.allocated"(event) {
    for (const block of event.blocks ?? []) this.take(block);
    this.append(event);
  },
  "block.shared"(event) {
    for (const block of event.blocks ?? []) {
      if (this.references[block] === 0) this.free.delete(block);
      this.references[block]++;
    }
    this.append(event);
  },
  "block.cached"({ blocks = [], hashes = [] }) {
    blocks.forEach((block, i) => {
      if (this.cached.has(hashes[i])) throw new Contradiction(`the content of block ${block} is cached already`);
      this.hashes.set(block, hashes[i]);
      this.cached.set(hashes[i], block);
    });
  },
  "block.evicted"({ block = 0, hash }) {
    if (this.hashes.get(block) !== hash) throw new Contradiction(`block ${block} has another hash`);
    this.hashes.delete(block);
    this.cached.delete(hash);
  },
  "block.copied"({ request_id: name, src_block: from = 0, dst_block: to = 0, index = 0 }) {
    const table = this.tables.get(name);
    if (table?.[index] !== from) throw new Contradiction(`entry ${index} of its table is not block ${from}`);
    this.take(to);
    table[index] = to;
    this.drop(from);
  },
  "block.freed"(event) {
    const { request_id: name, blocks = [] } = event;
    if (blocks.length && !this.tables.delete(name)) throw new Contradiction(`${name} has no blocks`);
    for (const block of blocks) this.drop(block);
    releaseHost.call(this, event);
  },
  "block.swapped_out"({ request_id: name, host_blocks: blocks = [] }) {
    this.hostTables.set(name, [...blocks]);
  },
  "block.swapped_in": releaseHost,
  "engine.kv_sized"({ num_blocks: count = 0, num_host_blocks: host = 0, block_size: size = 0, ordered = true }) {
    this.resize(count);
    this.ordered = ordered;
    this.numHostBlocks = host;
    this.blockSize = size;
  },
};
