// The panels beside: the queues, what is selected, and the step at hand.

import { reasonAt } from "./ledger.js";
import { chip, element, ownerColour } from "./paint.js";
import { decodes, gained, ownRows, partColour, PARTS } from "./timeline.js";
import { Why } from "./why.js";
import { amount, bytes, duration, number, plural, ranges } from "./words.js";

const MOST_CHIPS = 72;
const MOST_ROWS = 12;
const UNTIMED =
  "Not timed one by one: for that, and the share of the machine's limit, start the server with --trace profile.";
const CACHED = "More than 100 %: its data was still in the processor's caches, which are faster than memory.";

export class Queues {
  constructor(room, panel) {
    this.room = room;
    this.running = panel.querySelector(".running");
    this.waiting = panel.querySelector(".waiting");
    this.why = panel.querySelector(".why");
  }

  update() {
    const { record, ledger } = this.room;
    const { running, waiting } = record.state;
    if (record.broken) {
      this.running.replaceChildren(element("p.quiet", {}, this.room.nothingKnown));
      this.waiting.replaceChildren();
      this.why.textContent = "";
      return;
    }
    this.#fill(this.running, running, "running");
    this.#fill(this.waiting, waiting, "waiting");
    const head = waiting[0] && ledger.life(waiting[0].name);
    const wait = head && reasonAt(head, record.position);
    this.why.textContent = wait
      ? `${head.label} waits since step ${wait.step ?? 0}: ${this.room.plain(wait.why || `for ${wait.waits_for}`)}`
      : "";
  }

  #fill(list, queue, title) {
    const chips = queue.slice(0, MOST_CHIPS).map(({ name, status, computed }) => {
      const made = chip(this.room, name);
      const queued = this.room.ledger.life(name).queued;
      const whole = queued ? (queued.num_prompt_tokens ?? 0) + (queued.max_tokens ?? 0) : 0;
      if (whole) made.style.setProperty("--done", `${Math.min(100, (100 * computed) / whole).toFixed(0)}%`);
      if (status === "preempted") made.classList.add("preempted");
      made.title = `${name}: ${number(computed)} tokens in the cache${whole ? ` of at most ${number(whole)}` : ""}`;
      return made;
    });
    if (queue.length > MOST_CHIPS) chips.push(element("span.quiet", {}, `and ${queue.length - MOST_CHIPS} more`));
    if (!queue.length) chips.push(element("span.quiet", {}, "nobody"));
    list.replaceChildren(
      element("h3", {}, `${title} `, element("b", {}, String(queue.length))),
      element("div.chips", {}, ...chips),
    );
  }
}

export class Selection {
  constructor(room, panel) {
    this.room = room;
    this.why = new Why(room);
    this.body = panel.querySelector(".body");
  }

  update() {
    const { request, block } = this.room.selection;
    const parts = [];
    if (request) parts.push(...this.#request(request));
    if (block !== null && block !== undefined) parts.push(...this.#block(block));
    if (!parts.length) {
      parts.push(
        element("p.quiet", {}, "Nothing. Click a block, a row of the timeline, a request or a line of the log."),
      );
    } else {parts.push(element("button.quiet-button", {
        type: "button",
        onclick: () => this.room.select({ request: null, block: null, token: null }),
      }, "clear (Esc)"));}
    this.body.replaceChildren(...parts);
  }

  #request(name) {
    const { ledger, record } = this.room;
    const life = ledger.sequences.get(name);
    if (!life) {
      const since = record.cut ? `, which begins at step ${number(record.firstStep)},` : "";
      return [element("p.quiet", {}, `This record${since} has no request ${name}.`)];
    }
    const { state } = record;
    const sequence = state.sequences.get(name);
    const known = (event, at = 0) => (event && at <= record.position ? event : null);
    const queued = known(life.queued, life.at), end = life.end && life.end.at <= record.position ? life.end : null;
    const span = life.spans.filter(({ at }) => at <= record.position).at(-1);
    const table = state.tables.get(name) ?? [];
    const facts = [];
    const add = (title, ...value) => facts.push(element("dt", {}, title), element("dd", {}, ...value));
    if (record.broken) add("state", this.room.nothingKnown);
    else {add(
        "state",
        end
          ? `${end.how}${end.event.reason ? ` (${end.event.reason})` : ""}`
          : sequence
          ? sequence.status
          : span?.state ?? "not here yet",
      );}
    if (end?.event.why) add("why", this.room.plain(end.event.why));
    if (queued) {
      add("asked for", `${number(queued.num_prompt_tokens ?? 0)} in, at most ${number(queued.max_tokens ?? 0)} out`);
    }
    if (life.admitted && life.admitted.step <= state.step) {
      add(
        "waited",
        duration(life.admitted.waited_us ?? 0),
        life.admitted.why ? element("small", {}, this.room.plain(life.admitted.why)) : null,
      );
      add("from the cache", ...this.#found(life, state.blockSize));
    }
    if (queued) add(...this.#tokens(life));
    const wait = sequence && sequence.status !== "running" ? this.#wait(life, sequence) : null;
    if (wait) add("waits", wait.how, element("small", {}, wait.why));
    const host = state.hostTables.get(name);
    if (host) add("on the host", `${plural(sequence?.computed ?? 0, "token")} in ${plural(host.length, "block")}`);
    else if (sequence) add("in the cache", plural(sequence.computed, "token"));
    if (table.length) {
      const shared = table.filter((one) => state.references[one] > 1);
      add("blocks", `${table.length}: ${ranges([...table].sort((a, b) => a - b))}`);
      if (shared.length) add("shared", `${shared.length}, with ${this.#sharers(state, name, shared)}`);
    }
    const preempted = life.preemptions.filter(({ at }) => at <= record.position);
    if (preempted.length) add("preempted", `${preempted.length} ×`, ...this.#preempted(preempted.at(-1).event));
    const params = Object.entries(life.received?.params ?? {}).map(([key, value]) => `${key} ${value}`);
    if (params.length) add("parameters", params.join(", "));
    const title = element(
      "h3.owner",
      {},
      element("i"),
      life.label,
      name === life.label ? null : element("small", {}, name),
    );
    title.style.setProperty("--owner", ownerColour(life.hue));
    const parts = [title, element("dl", {}, ...facts)];
    if (life.received?.text) {
      parts.splice(
        1,
        0,
        element(
          "blockquote",
          {},
          life.received.text.length > 240 ? `${life.received.text.slice(0, 240)}…` : life.received.text,
        ),
      );
    }
    return [...parts, ...this.why.about(name)];
  }

  /** How long its reader waited: for the first token, and from each to the next. */
  #tokens({ queued, first, gaps }) {
    const { position } = this.room.record;
    if (!first || first.at > position) return ["first token", "not yet"];
    const parts = [queued.ts_ns ? `${duration((first.ns - queued.ts_ns) / 1e3)} after it was queued` : "is here"];
    const known = gaps.filter(({ at }) => at <= position);
    if (known.length) {
      const sorted = known.toSorted((a, b) => a.us - b.us), longest = sorted.at(-1);
      const median = sorted[sorted.length >> 1].us;
      const to = element("button.link", {
        type: "button",
        onclick: () => this.room.goToStep(longest.step),
      }, `step ${number(longest.step)}`);
      parts.push(
        element(
          "small",
          {},
          `gaps between tokens: median ${duration(median)}, longest ${duration(longest.us)} in `,
          to,
        ),
      );
    }
    return ["first token", ...parts];
  }

  /** What the prefix cache had of it, and why if it had nothing. */
  #found(life, blockSize) {
    const { num_cached_tokens: cached = 0, num_tokens: tokens = 0 } = life.admitted;
    if (cached) return [`${number(cached)} of ${plural(tokens, "token")}`];
    const config = this.room.ledger.facts["engine.started"]?.config;
    const why = config?.enable_prefix_caching === false
      ? "the prefix cache is off"
      : tokens <= blockSize
      ? `only whole blocks of ${blockSize} tokens are found, and its last token is computed in any case`
      : `no block that was kept had the same first ${blockSize} tokens`;
    return ["nothing", element("small", {}, why)];
  }

  /** Since when it waits, and for what: the queue is strict, so those behind wait for its head. */
  #wait(life, { name, status }) {
    const { record, ledger } = this.room;
    const { waiting } = record.state;
    const place = waiting.findIndex((one) => one.name === name);
    const since = status === "preempted"
      ? life.preemptions.filter(({ at }) => at <= record.position).at(-1)?.event
      : life.queued;
    const now = record.entries[record.position - 1]?.ts_ns ?? 0;
    const how = since?.ts_ns && now > since.ts_ns
      ? `${duration((now - since.ts_ns) / 1e3)} so far, place ${place + 1} of ${waiting.length}`
      : `place ${place + 1} of ${waiting.length}`;
    const head = ledger.life(waiting[0].name);
    const reason = reasonAt(head, record.position);
    const why = reason ? this.room.plain(this.#lacks(reason)) : "for the next step";
    return { how, why: place ? `behind ${head.label}, which waits: ${why}` : why };
  }

  #lacks(event) {
    const {
      waits_for: what,
      need = 0,
      available = 0,
      next_release: who,
      next_release_steps: steps = 0,
      next_release_amount: back = 0,
      why,
    } = event;
    if (what !== "blocks" && what !== "seats") return why || `for ${what}`;
    const unit = what.slice(0, -1);
    return `needs ${plural(need, unit)}, ${number(available)} free${
      who ? `; ${number(back)} come back when ${who} ends (at most ${plural(steps, "step")})` : ""
    }`;
  }

  /** Why it gave its blocks back, and what each way costs. */
  #preempted(event) {
    const { step = 0, for_request: other, mode, recompute_ms: again = 0, swap_ms: swap = 0, mode_why: how, why } =
      event;
    const costs = [
      again ? `computing again ${duration(again * 1e3)}` : "",
      swap ? `swapping ${duration(swap * 1e3)}` : "",
    ].filter(Boolean).join(", ");
    const reason = how && how !== "as configured" ? this.room.plain(how) : [how, costs].filter(Boolean).join("; ");
    const whom = other && other !== event.request_id ? `, for ${this.room.ledger.life(other).label}` : "";
    return [
      element("small", {}, `in step ${number(step)}${whom}${why ? `: ${this.room.plain(why)}` : ""}`),
      element(
        "small",
        {},
        `${mode === "swap" ? "its blocks were copied to the host" : "it is computed again"}${
          reason ? ` (${reason})` : ""
        }`,
      ),
    ];
  }

  #sharers(state, name, shared) {
    const wanted = new Set(shared);
    const others = [...state.tables].filter(([other, table]) =>
      other !== name && table.some((block) => wanted.has(block))
    );
    const labels = others.map(([other]) => this.room.ledger.life(other).label);
    return labels.slice(0, 5).join(", ") + (labels.length > 5 ? ` and ${labels.length - 5} more` : "");
  }

  #block(block) {
    const { record } = this.room;
    const history = this.room.grid.history(block);
    const items = history.map(({ at, entry }) => {
      const verb = entry.kind.replace("block.", "").replace("_", " ");
      const who = entry.request_id ? this.room.ledger.life(entry.request_id).label : "";
      return element(
        "li",
        {},
        element("button.link", { type: "button", onclick: () => this.room.goTo(at) }, `step ${entry.step ?? 0}`),
        ` ${verb}${who ? `, ${who}` : ""}`,
        entry.why ? element("small", {}, this.room.plain(entry.why)) : null,
      );
    });
    return [
      element("h3", {}, `block ${block}`),
      element(
        "p.pre",
        {},
        block < record.state.numBlocks
          ? this.room.grid.describe(block).split("\n").slice(1).join("\n")
          : "not in this pool",
      ),
      element("ol.history", {}, ...items),
      items.length ? null : element("p.quiet", {}, "Nothing happened to it up to here."),
    ].filter(Boolean);
  }
}

export class StepPanel {
  constructor(room, panel) {
    this.room = room;
    this.title = panel.querySelector("h2 span");
    this.body = panel.querySelector(".body");
    this.shown = null;
  }

  redraw() {
    this.shown = null;
  }

  update() {
    const { record, ledger } = this.room;
    const step = ledger.steps.get(record.state.step);
    const code = [
      record.state.step,
      step?.finished?.seq,
      step?.cut,
      step?.kernels.length,
      this.room.selection.request,
      ledger.renamed,
    ].join();
    if (code === this.shown) return;
    this.shown = code;
    this.title.textContent = record.state.step ? `Step ${number(record.state.step)}` : "Before the first step";
    if (!step?.plan) {
      const why = record.state.step ? "What was planned in it came before this record." : "Nothing was computed yet.";
      return this.body.replaceChildren(element("p.quiet", {}, why));
    }
    const { plan, finished } = step;
    const all = plan.rows ?? [], rows = ownRows(all);
    const decoding = rows.filter(([, , count, samples]) => count === 1 && samples).length;
    const parts = [
      element(
        "p",
        {},
        [
          `${plural(plan.budget_used ?? 0, "token")} of ${number(plan.budget ?? 0)}`,
          rows.length - decoding ? `${rows.length - decoding} with a prompt or a part of one` : "",
          decoding ? plural(decoding, "decode") : "",
          all.length - rows.length ? `${plural(all.length - rows.length, "proposed token")} checked` : "",
          finished
            ? `${plural(finished.num_sampled ?? 0, "token")} drawn`
            : step.cut
            ? "its end is among the events that were not sent"
            : "under way",
        ].filter(Boolean).join(" · "),
      ),
      this.#who(rows, step.verified),
    ];
    if (finished) parts.push(...this.#time(finished));
    if (step.kernels.length) parts.push(...this.#kernels(step.kernels));
    else if (finished && !step.graph) parts.push(element("p.quiet", {}, this.#withoutKernels(rows)));
    if (step.graph) {
      parts.push(element(
        "p",
        {},
        step.graph.num_tokens
          ? `The captured step of up to ${step.graph.num_tokens} tokens, prompts too, was replayed in one go`
          : `The captured step of ${step.graph.batch_size} rows was replayed in one go, ${step.graph.num_rows} of them real`,
      ));
    }
    this.body.replaceChildren(...parts);
  }

  /** Whose tokens it computed: decodes by name, prompts with their tokens. */
  #who(rows, verified) {
    const chips = rows.slice(0, MOST_ROWS).map(([name, start, count]) => {
      const { label } = this.room.ledger.life(name), tried = verified.get(name);
      const many = count > 1 ? `: ${number(start)}–${number(start + count - 1)}` : tried ? `: ${gained(tried)}` : "";
      const made = chip(this.room, name, label + many);
      made.title = count > 1
        ? `${name}: tokens ${start} to ${start + count - 1}`
        : tried
        ? `${name} ${decodes(tried)}`
        : `${name}: token ${start}`;
      return made;
    });
    if (rows.length > MOST_ROWS) chips.push(element("span.quiet", {}, `and ${rows.length - MOST_ROWS} more`));
    return element("div.chips", {}, ...chips);
  }

  #time(finished) {
    const total = finished.total_us ?? 0;
    const times = PARTS.map((part) => finished[`${part}_us`] ?? 0);
    const rest = Math.max(0, total - times.reduce((sum, us) => sum + us, 0));
    const bar = element("div.split", { role: "img", "aria-label": `${duration(total)} in all` });
    const legend = element("dl.legend", {});
    [...PARTS, finished.loop === "overlapped" ? "waits for the step before" : "other"].forEach((part, i) => {
      const us = times[i] ?? rest;
      if (part === "draft" && !us) return; // most engines have no draft model
      const colour = i < PARTS.length ? partColour(i) : "var(--line)";
      const share = element("span", { title: `${part}: ${duration(us)}` });
      share.style.cssText = `flex:${us || 0.0001}; background:${colour}`;
      bar.append(share);
      const mark = element("i");
      mark.style.background = colour;
      legend.append(element("dt", {}, mark, part), element("dd", {}, duration(us)));
    });
    return [element("p.total", {}, element("b", {}, duration(total)), ` in all, ${finished.loop} loop`), bar, legend];
  }

  /** Why a finished step has no kernels here: only what the record says. */
  #withoutKernels(rows) {
    const level = this.room.ledger.facts["engine.started"]?.config?.trace;
    const full = level === "full" || level === "profile" ||
      rows.some(([name]) => this.room.ledger.life(name).draws.length);
    if (full || !level) return "The record has no kernels of this step.";
    return `No kernels of this step: the server records at level “${level}”, and none of its requests asked for "trace": "full".`;
  }

  #kernels(kernels) {
    const kinds = new Map();
    for (const kernel of kernels) {
      const code = `${kernel.name} ${(kernel.grid ?? []).join("×")}`;
      const kind = kinds.get(code) ?? { kernel, times: 0, us: 0, least: 0, bytes: 0, flops: 0 };
      kind.times++;
      kind.us += kernel.duration_us ?? 0;
      kind.least += (kernel.duration_us ?? 0) * (kernel.share_of_limit ?? 0); // at the machine's limit
      kind.bytes += kernel.num_bytes ?? 0;
      kind.flops += kernel.flops ?? 0;
      kinds.set(code, kind);
    }
    const timed = kernels.some(({ duration_us: us }) => us);
    const sorted = [...kinds.values()].sort((a, b) => b.us - a.us || b.bytes - a.bytes);
    const columns = ["grid", "moves", "operations", ...(timed ? ["time", "of limit"] : [])];
    const rows = sorted.flatMap(({ kernel, times, us, least, bytes: moved, flops }) => [
      element(
        "tr.kernel",
        {},
        element(
          "th",
          { scope: "rowgroup", colSpan: columns.length },
          kernel.name,
          element("small", {}, [times > 1 ? ` × ${times}` : "", kernel.why ? ` · ${kernel.why}` : ""].join("")),
        ),
      ),
      element(
        "tr",
        {},
        ...[
          (kernel.grid ?? []).join(" × "),
          moved ? bytes(moved) : "",
          flops ? amount(flops) : "",
          ...(timed ? [us ? duration(us) : "", us ? `${((100 * least) / us).toFixed(0)} %` : ""] : []),
        ].map((text) => element("td.number", {}, text)),
      ),
    ]);
    const heads = columns.map((name) => element("th.number", { scope: "col" }, name));
    const backends = [...new Set(kernels.map(({ backend }) => backend).filter(Boolean))].join(", ");
    const launches = kernels.length === 1 ? "1 kernel launch" : `${number(kernels.length)} kernel launches`;
    return [
      element("h3", {}, launches, element("small", {}, ` · ${backends}`)),
      timed ? null : element("p.quiet.note", {}, UNTIMED),
      kernels.some(({ share_of_limit: share = 0 }) => share > 1) ? element("p.quiet.note", {}, CACHED) : null,
      element(
        "div.scroll",
        { tabIndex: 0, role: "group", "aria-label": "kernels of this step" },
        element("table.kernels", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)),
      ),
    ].filter(Boolean);
  }
}
