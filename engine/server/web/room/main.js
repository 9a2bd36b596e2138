// The Engine Room: one record, one position in it, one selection; panels that show them.

import { Beside } from "./beside.js";
import { Grid } from "./grid.js";
import { Ledger } from "./ledger.js";
import { Lessons } from "./lessons.js";
import { Lens } from "./lens.js";
import { Log } from "./log.js";
import { Marks } from "./marks.js";
import { momentsOf } from "./moments.js";
import { showClass } from "./class.js";
import { compareWith } from "./compare-with.js";
import { forgetColours } from "./paint.js";
import { Pipeline } from "./pipeline.js";
import { Provoke } from "./provoke.js";
import { Record } from "./record.js";
import { Queues, Selection, StepPanel } from "./side.js";
import { api, key, LiveSource, readRecord } from "./source.js";
import { Timeline } from "./timeline.js";
import { Transport } from "./transport.js";
import { number, plural } from "./words.js";

const SLOW_PANELS_MS = 150; // panels made of text change at most so often while the record grows
const TOKENS_AT_ONCE = 500;

class Room {
  record = new Record();
  ledger = new Ledger();
  selection = { request: null, block: null, token: null };
  following = true;
  live = null; // the server's stream, if we follow one
  beside = null; // what couples it with another room, if there is one
  playing = false;
  presenting = false;
  speed = 10; // steps a second
  firstNs = 0;
  tokensKnown = 0;
  frames = { drawn: 0, busyMs: 0 }; // for benchmarks/viewer_cost.py
  #tokens = new Map();
  #wanted = new Set();
  #notices = new Map(); // what about → what is said
  #changed = true;
  #stale = true; // the slow panels show an older moment
  #slowAt = 0;
  #playedAt = 0;
  #awaited = null; // {moment, prefix of the request's name, then}
  #wish = new URLSearchParams(location.hash.slice(1)); // a moment that a link asks for

  constructor() {
    const panel = (name) => document.querySelector(`#${name}`);
    this.grid = new Grid(this, panel("blocks"));
    this.timeline = new Timeline(this, panel("timeline"));
    this.pipeline = new Pipeline(this, panel("pipeline"));
    this.transport = new Transport(this, panel("transport"));
    this.slow = [
      this.marks = new Marks(this, panel("transport")),
      new Queues(this, panel("queues")),
      new Selection(this, panel("selection")),
      new StepPanel(this, panel("step")),
      this.lens = new Lens(this, panel("lens")),
      this.log = new Log(this, panel("log")),
    ];
    this.provoke = new Provoke(this, panel("provoke"));
    this.lessons = new Lessons(this, panel("lessons"), this.provoke.asker);
    this.slow.push(this.provoke, this.lessons);
    new ResizeObserver(() => this.redraw()).observe(document.querySelector("main"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    requestAnimationFrame((now) => this.#frame(now));
  }

  // ------------------------------------------------------------------------------ the record grows

  add(events, lines = [], position = 0) {
    const offset = this.record.length - position; // the server's positions → ours
    for (const event of events) {
      this.record.add(event);
      this.ledger.see(event, this.record.length);
      this.firstNs ||= event.standing?.[0]?.ts_ns ?? event.ts_ns ?? 0;
      if (event.texts) this.learn(event.texts);
      if (this.#awaited) this.#seeAwaited(event);
    }
    for (const [at, line] of lines) {
      line.at = at + offset;
      if (line.at <= 0) continue; // its events are forgotten
      if (line.request_id && line.name) this.ledger.rename(line.request_id, line.name);
      this.record.lines.push(line);
    }
    const { lost } = this.ledger;
    if (lost) {
      this.notice(
        `Some reader of this record could not take ${plural(lost, "event")}: they may be missing here.`,
        "lost",
      );
    }
    const gone = this.record.trim();
    if (gone) this.ledger.forget(this.record.steps[0] ?? 0, gone);
    this.#grantWish();
    this.touch();
  }

  /** Call `then(event, position)` at each such moment of a request whose name begins so, until it
   *  returns true; an event without a request counts, too. A later call replaces it. */
  awaitMoment(moment, prefix, then) {
    this.#awaited = { moment, prefix, then };
  }

  #seeAwaited(event) {
    const { moment, prefix, then } = this.#awaited;
    if (event.request_id && !event.request_id.startsWith(prefix)) return;
    if (!momentsOf(event).includes(moment)) return;
    if (then(event, this.record.length) && this.#awaited?.then === then) this.#awaited = null;
  }

  /** Nothing is recorded: whatever was shown is gone. */
  #begin() {
    this.record = new Record();
    this.ledger = new Ledger();
    this.firstNs = 0;
    this.selection = { request: null, block: null, token: null };
    this.#awaited = null;
    this.#tokens.clear();
    for (const about of this.#notices.keys()) this.notice("", about);
    this.follow();
    this.redraw();
  }

  join({ snapshot, skipped, position, anew }) {
    if (anew) {
      this.#begin();
      this.notice("The server was started again: this is its new record.");
    }
    this.add([{ ...snapshot, skipped }], [], position);
    if (skipped) {
      this.notice(
        `This page was too slow: ${
          plural(this.ledger.skipped, "event")
        } were not sent to it. It goes on from the present state.`,
      );
    }
  }

  /** A recorded text, and the log's lines about it if somebody has told them: [position, line] each. */
  async open(text, name, lines = []) {
    this.live?.stop();
    this.live = null; // another model's record may name other tokens
    document.body.classList.add("offline");
    this.#begin();
    this.status("file", name);
    const { record } = this;
    const asked = this.#wish.has("step");
    const unreadable = await readRecord(text, (events) => this.add(events));
    if (record !== this.record) return; // another one was opened meanwhile
    this.add([], lines, record.length + record.forgotten);
    if (unreadable) this.notice(`${plural(unreadable, "line")} of ${name} could not be read.`);
    if (!this.record.length) this.notice(`${name} holds no events.`);
    if (asked) this.#grantWish(true);
    else this.marks.openFirst();
    this.beside?.begin();
  }

  // ------------------------------------------------------------------------------ going through it

  touch() {
    this.#changed = true;
    this.beside?.tell();
  }

  redraw() {
    forgetColours();
    for (const panel of [this.grid, this.pipeline, ...this.slow]) panel.redraw?.();
    this.#slowAt = 0;
    this.touch();
  }

  select(parts) {
    if (parts.request !== undefined && parts.request !== this.selection.request) this.selection.token = null;
    Object.assign(this.selection, parts);
    this.#slowAt = 0;
    this.grid.redraw();
    this.touch();
  }

  goTo(position) {
    this.pause();
    this.record.seek(Math.max(this.record.first, position));
    this.notice("", "moment");
    this.#slowAt = 0;
    this.touch();
  }

  /** Go to the end of a step. One that the record doesn't have is said, and the nearest one shown. */
  goToStep(step) {
    const { record } = this;
    const { firstStep, lastStep } = record;
    if (step >= firstStep || record.cut) {
      this.goTo(record.endOf(record.stepAt(Math.max(step, firstStep))) ?? record.first);
    } else this.goTo(record.first); // before the first step
    if (step < firstStep && record.cut) {
      this.notice(`Step ${number(step)} is not kept: this record begins at step ${number(firstStep)}.`, "moment");
    }
    if (step > lastStep) {
      this.notice(`Step ${number(step)} is not here: this record ends at step ${number(lastStep)}.`, "moment");
    }
  }

  stepBy(count) {
    const { record } = this;
    const now = record.state.step;
    const place = record.steps.indexOf(record.stepAt(now));
    if (count < 0 && place >= 0 && place + count < 0) return this.goTo(0);
    const step = record.steps[Math.max(0, Math.min(record.steps.length - 1, place + count))];
    if (step !== undefined) this.goTo(record.endOf(step));
  }

  follow() {
    this.following = true;
    this.playing = false;
    this.touch();
  }

  pause() {
    this.following = this.playing = false;
  }

  toggle() {
    if (this.following || this.playing) this.pause();
    else if (this.record.position >= this.record.length) this.follow();
    else this.playing = true;
    this.#playedAt = performance.now();
    this.touch();
  }

  #play(now) {
    const steps = Math.floor(((now - this.#playedAt) / 1000) * this.speed);
    if (steps < 1) return;
    this.#playedAt += (steps * 1000) / this.speed;
    const before = this.record.position;
    this.stepBy(steps);
    this.playing = this.record.position > before;
    if (!this.playing && this.live) this.follow(); // it has caught up with the present
  }

  /** Show grid, timeline and reason on one screen, in large type; or all panels again. */
  present() {
    this.presenting = document.body.classList.toggle("presenting");
    document.querySelector("#present").setAttribute("aria-pressed", String(this.presenting));
    this.redraw();
  }

  /** What a remote's keys do: go on in the lesson that is open, else from mark to mark. */
  onward(way) {
    if (!this.lessons.onward(way)) this.marks.go(way);
  }

  // ------------------------------------------------------------------------------ words

  /** A link to this moment, and to what is selected. */
  link() {
    const parts = new URLSearchParams({ step: this.record.state.step });
    for (const [name, value] of Object.entries(this.selection)) {
      if (value !== null && value !== undefined) parts.set(name, value);
    }
    const url = new URL(location.href);
    url.hash = parts;
    return url.href;
  }

  /** Go where the page's address asks to; not before that is recorded, unless nothing more comes. */
  #grantWish(complete = false) {
    const step = this.#wish.get("step");
    if (step === null) return;
    if (this.record.lastStep < Number(step) && !complete) {
      if (this.live) {
        this.notice(`Step ${number(Number(step))} has not come yet: this page goes there when it does.`, "moment");
      }
      return;
    }
    const { request, block, token } = Object.fromEntries(this.#wish);
    this.#wish = new URLSearchParams();
    this.select({
      request: request ?? null,
      block: block === undefined ? null : Number(block),
      token: token === undefined ? null : Number(token),
    });
    this.goToStep(Number(step));
  }

  /** How token ids read. */
  learn(texts) {
    for (const [id, text] of Object.entries(texts)) this.#tokens.set(Number(id), text);
    this.tokensKnown = this.#tokens.size;
  }

  /** A token's text; its number until somebody has told it. */
  tokenText(id) {
    if (id === -1) return "(withheld)";
    if (this.#tokens.has(id)) return this.#tokens.get(id);
    if (this.live && !this.#wanted.has(id)) {
      if (!this.#wanted.size) setTimeout(() => this.#askTokens(), 60);
      this.#wanted.add(id);
    }
    return `#${id}`;
  }

  async #askTokens() {
    const ids = [...this.#wanted].slice(0, TOKENS_AT_ONCE);
    try {
      const answer = await api(`trace/tokens?ids=${ids.join()}`);
      if (!answer.ok) return;
      this.learn(await answer.json());
      for (const id of ids) this.#wanted.delete(id);
      this.#slowAt = 0;
      this.touch();
      if (this.#wanted.size) setTimeout(() => this.#askTokens(), 60);
    } catch {
      this.#wanted.clear(); // asked again when it is shown again
    }
  }

  /** A recorded text with the log's short names in place of long ids. */
  plain(text) {
    return text.replace(/[\w.:-]*[\w-]/g, (word) => this.ledger.sequences.get(word)?.label ?? word);
  }

  status(state, detail) {
    const names = {
      live: "live",
      reconnecting: "reconnecting",
      key: "needs its key",
      off: "nothing is recorded",
      file: "recorded file",
    };
    const shown = document.querySelector("#status");
    shown.dataset.state = state;
    shown.querySelector("b").textContent = names[state] ?? state;
    shown.title = detail;
    if (state === "file") shown.querySelector("b").textContent = detail;
    document.querySelector("#key-dialog").hidden = state !== "key";
    if (state === "off") this.notice(detail);
    this.touch();
  }

  /** Say something above the panels, until it is dismissed or there is something else to say about
   *  the same thing; "" when it is no longer so. */
  notice(text, about = "page") {
    if ((this.#notices.get(about) ?? "") === text) return;
    this.#notices.set(about, text);
    const shown = document.querySelector("#notice");
    const said = [...this.#notices.values()].filter(Boolean).join(" ");
    shown.querySelector("span").textContent = said;
    shown.hidden = !said;
  }

  /** What to say where there is no state to draw. */
  get nothingKnown() {
    if (this.record.broken) return "not known here: events are missing";
    return this.record.length ? "the engine has no KV cache yet" : "nothing is recorded yet";
  }

  // ------------------------------------------------------------------------------ drawing

  #frame(now) {
    requestAnimationFrame((later) => this.#frame(later));
    if (this.playing) this.#play(now);
    if (this.following && this.record.position < this.record.length) {
      this.record.seek(this.record.length);
      this.touch();
    }
    this.#stale ||= this.#changed;
    const slowDue = this.#stale && now - this.#slowAt > SLOW_PANELS_MS;
    if (!this.#changed && !slowDue && !this.pipeline.moving) return;
    const started = performance.now();
    this.pipeline.update(now, this.record); // its dots move between the steps, too
    if (this.#changed) {
      this.#changed = false;
      this.grid.update();
      this.timeline.update();
      this.transport.update();
    }
    if (slowDue) {
      this.#stale = false;
      this.#slowAt = now;
      for (const panel of this.slow) panel.update();
      this.#tellEngine();
    }
    this.frames.drawn++;
    this.frames.busyMs += performance.now() - started;
  }

  #tellEngine() {
    const { facts } = this.ledger;
    const model = facts["engine.model_loaded"], started = facts["engine.started"];
    const parts = [
      model
        ? `${
          [started?.config?.served_model_name].flat()[0] || model.model.split("/").at(-1)
        } · ${model.architecture} · ${
          model.num_parameters ? `${number(Math.round(model.num_parameters / 1e5) / 10)} M parameters · ` : ""
        }${model.dtype}`
        : "",
      started?.machine?.device ?? "",
    ];
    document.querySelector("#engine").textContent = parts.filter(Boolean).join(" · ");
    const { broken } = this.record;
    this.notice(broken ? `Blocks and queues can't be told here: ${broken}.` : "", "state");
  }
}

// -------------------------------------------------------------------------------- the page begins

function theme() {
  const button = document.querySelector("#theme");
  const root = document.documentElement;
  const set = (name) => {
    if (name) root.dataset.theme = name;
    else delete root.dataset.theme;
    room.redraw();
  };
  const asked = new URLSearchParams(location.search).get("theme") ?? localStorage.getItem("glasshouse theme");
  if (asked) set(asked);
  button.onclick = () => {
    const dark = getComputedStyle(root).colorScheme.includes("dark");
    localStorage.setItem("glasshouse theme", dark ? "light" : "dark");
    set(dark ? "light" : "dark");
  };
}

function dropFiles() {
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) room.open(await file.text(), file.name);
  });
  document.querySelector("#file").onchange = async ({ target }) => {
    const [file] = target.files;
    if (file) room.open(await file.text(), file.name);
  };
}

/** Open the guides inside the page; with Ctrl or the middle button they open elsewhere, as links do. */
function guides(dialog) {
  const frame = dialog.querySelector("iframe");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.guide");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    frame.src = link.href;
    dialog.showModal();
  });
}

function watch() {
  room.live = new LiveSource({
    onSnapshot: (frame) => room.join(frame),
    onEvents: ({ events, lines, position }) => room.add(events, lines, position),
    onStatus: (state, detail) => room.status(state, detail),
  });
  room.live.run();
  showClass(document.querySelector("#class"), () => room.lessons.letVote());
  compareWith(document.querySelector("#other-file"), (text) => room.notice(text, "comparison"));
  api("room/lessons.json").then(async (answer) => {
    if (answer.ok) room.lessons.take(await answer.json());
  }).catch(() => {}); // a server that is gone is said already
}

async function begin() {
  const recorded = new URLSearchParams(location.search).get("trace");
  const embedded = document.querySelector("#record");
  document.body.classList.toggle("alone", Boolean(embedded));
  if (embedded) {
    if (parent !== window) room.beside = new Beside(room);
    return room.open(
      embedded.textContent,
      embedded.dataset.name,
      JSON.parse(document.querySelector("#lines").textContent),
    );
  }
  if (!recorded) return watch();
  const url = new URL(recorded, document.baseURI);
  try {
    const answer = url.origin === location.origin ? await api(url) : await fetch(url);
    if (!answer.ok) throw new Error(`the answer was ${answer.status}`);
    await room.open(await answer.text(), url.pathname.split("/").at(-1));
  } catch (error) {
    room.status("file", recorded);
    room.notice(`${recorded} can't be read: ${error.message}. A record can be dropped onto this page, too.`);
  }
}

const room = new Room();
globalThis.room = room; // for the curious, and for the tests
theme();
dropFiles();
document.querySelector("#notice button").onclick = ({ target }) => {
  target.parentElement.hidden = true;
};
document.querySelector("#key-dialog").onsubmit = (event) => {
  event.preventDefault();
  key.value = new FormData(event.target).get("key");
  watch();
};
guides(document.querySelector("#guide"));
document.querySelector("#present").onclick = () => room.present();
if (new URLSearchParams(location.search).has("present")) room.present();
document.querySelector("#help").onclick = () => document.querySelector("#keys").showModal();
begin();
