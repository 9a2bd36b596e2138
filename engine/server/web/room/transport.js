// Transport: pause, step, play, and go anywhere in the record; by buttons and by keys.

import { number } from "./words.js";

const SPEEDS = [1, 2, 5, 10, 30, 100]; // steps a second

export class Transport {
  constructor(room, panel) {
    this.room = room;
    const find = (name) => panel.querySelector(name);
    this.scrubber = find("input[type=range]");
    this.step = find("input[type=number]");
    this.play = find(".play");
    this.live = find(".live");
    this.speed = find("select");
    this.count = find(".count");
    this.speed.replaceChildren(
      ...SPEEDS.map((speed) => new Option(`${speed} steps/s`, speed, speed === 10, speed === 10)),
    );
    find(".first").onclick = () => room.goTo(0);
    find(".back").onclick = () => room.stepBy(-1);
    find(".forward").onclick = () => room.stepBy(1);
    find(".last").onclick = () => room.goTo(room.record.length);
    this.play.onclick = () => room.toggle();
    this.live.onclick = () => room.follow();
    this.scrubber.oninput = () => room.goTo(Number(this.scrubber.value));
    this.step.onchange = () => room.goToStep(Number(this.step.value));
    this.speed.onchange = () => {
      room.speed = Number(this.speed.value);
    };
    find(".share").onclick = (event) => this.#share(event.currentTarget);
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  update() {
    const { record, following, playing } = this.room;
    this.scrubber.min = record.first;
    this.scrubber.max = record.length;
    if (document.activeElement !== this.scrubber || following || playing) this.scrubber.value = record.position;
    if (document.activeElement !== this.step) this.step.value = record.state.step;
    const moving = following || playing;
    this.play.classList.toggle("moving", moving);
    this.play.setAttribute("aria-label", moving ? "pause" : "play");
    this.live.setAttribute("aria-pressed", String(following));
    this.count.textContent = record.cut
      ? `of ${number(record.firstStep)}–${number(record.lastStep)}`
      : `of ${number(record.lastStep)}`;
  }

  async #share(button) {
    this.room.pause();
    const url = this.room.link();
    history.replaceState(null, "", url);
    await navigator.clipboard?.writeText(url).catch(() => {});
    button.textContent = "copied";
    setTimeout(() => {
      button.textContent = "link";
    }, 1200);
  }

  #key(event) {
    if (document.querySelector("dialog[open]")) return; // its keys are its own
    if (event.target.matches("textarea, input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const { room } = this;
    const keys = {
      " ": () => room.toggle(),
      ArrowLeft: () => room.stepBy(event.shiftKey ? -10 : -1),
      ArrowRight: () => room.stepBy(event.shiftKey ? 10 : 1),
      ",": () => room.goTo(room.record.position - 1),
      ".": () => room.goTo(room.record.position + 1),
      Home: () => room.goTo(0),
      End: () => room.goTo(room.record.length),
      n: () => room.marks.go(1),
      p: () => room.marks.go(-1),
      l: () => room.follow(),
      t: () => room.timeline.turn(),
      f: () => room.present(),
      ...(room.presenting ? { PageDown: () => room.onward(1), PageUp: () => room.onward(-1) } : {}),
      ...room.lessons.keys,
      "+": () => room.timeline.zoom(1.5),
      "-": () => room.timeline.zoom(1 / 1.5),
      Escape: () => room.select({ request: null, block: null, token: null }),
      "?": () => document.querySelector("#keys").showModal(),
    };
    if (event.key === " " && event.target.matches("button, summary, a")) return; // it presses that
    if (keys[event.key]) {
      keys[event.key]();
      event.preventDefault();
    }
  }
}
