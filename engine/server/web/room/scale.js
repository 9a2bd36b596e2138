// The timeline's scales: where a step stands, by its number or by its time.

const STEPS_APART = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];
const MS_APART = [0.1, 0.2, 0.5, ...STEPS_APART];
const NARROWEST = 1; // px of a step
const LONGEST_IDLE = 60; // px: time in which nothing was computed takes no more

/** Every step has the same width. */
export class StepScale {
  constructor({ record, following, left, width, perStep, now }) {
    Object.assign(this, { left, perStep });
    const count = Math.floor((width - left) / perStep);
    const right = following ? now : Math.min(record.steps.at(-1) ?? 0, now + Math.floor(count / 3));
    this.from = Math.max(record.cut ? record.firstStep : 0, right - count + 1);
    this.to = this.from + count - 1;
  }

  begin(step) {
    return this.left + (step - this.from) * this.perStep;
  }

  end(step) {
    return this.begin(step + 1);
  }

  stepAt(x) {
    return this.from + Math.floor((x - this.left) / this.perStep);
  }

  /** Marks of the axis, at least so many px apart: {x, text} each. */
  ticks(apart) {
    const every = STEPS_APART.find((n) => n * this.perStep >= apart) ?? 20_000;
    const found = [];
    for (let step = Math.ceil(Math.max(1, this.from) / every) * every; step <= this.to; step += every) {
      found.push({ x: this.begin(step), text: String(step) });
    }
    return found;
  }
}

/** A step is as wide as it took long. */
export class TimeScale {
  constructor({ record, ledger, following, left, width, perMs, now }) {
    Object.assign(this, { left, width, perMs });
    const { steps } = record;
    const timeOf = (step) => {
      const { finished, plan } = ledger.steps.get(step) ?? {};
      const end = finished?.ts_ns ?? plan?.ts_ns;
      return end === undefined ? null : { end, begin: end - (finished?.total_us ?? 0) * 1e3 };
    };
    let last = Math.max(0, steps.indexOf(record.stepAt(now) ?? steps[0]));
    for (let ahead = 0; !following && last + 1 < steps.length && ahead < (width - left) / 3; last++) {
      const one = timeOf(steps[last]), next = timeOf(steps[last + 1]);
      ahead += one && next ? this.#px(next.end - one.end) : NARROWEST;
    }
    this.places = []; // latest first: {step, begin, end in px, time}
    let x = width, later = null;
    for (let i = last; i >= 0 && x > left; i--) {
      const time = timeOf(steps[i]);
      if (!time) continue;
      if (later) x -= Math.min(LONGEST_IDLE, (Math.max(0, later.begin - time.end) / 1e6) * perMs);
      const wide = this.#px(time.end - time.begin);
      this.places.push({ step: steps[i], begin: x - wide, end: x, time });
      x -= wide;
      later = time;
    }
    const shift = Math.min(0, left - x); // what is shorter than the panel begins at its left
    for (const place of this.places) {
      place.begin += shift;
      place.end += shift;
    }
    this.places.reverse(); // earliest first
    this.byStep = new Map(this.places.map((place) => [place.step, place]));
    this.from = this.places[0]?.step ?? now;
    this.to = this.places.at(-1)?.step ?? now;
  }

  #px(ns) {
    return Math.max(NARROWEST, (ns / 1e6) * this.perMs);
  }

  begin(step) {
    if (step < this.from) return this.left;
    return (this.byStep.get(step) ?? this.places.find((place) => place.step > step))?.begin ?? this.width;
  }

  end(step) {
    return this.byStep.get(step)?.end ?? this.begin(step);
  }

  /** Where a moment stands. */
  ofNs(ns) {
    for (const { begin, end, time } of this.places) {
      if (ns <= time.begin) return begin;
      if (ns <= time.end) return begin + ((end - begin) * (ns - time.begin)) / Math.max(1, time.end - time.begin);
    }
    return this.width;
  }

  stepAt(x) {
    return this.places.findLast(({ begin }) => begin <= x)?.step ?? this.from;
  }

  /** Marks of the axis, in ms since the first step that is shown. */
  ticks(apart) {
    const every = MS_APART.find((ms) => ms * this.perMs >= apart) ?? 20_000;
    const zero = this.places[0]?.time.begin ?? 0;
    const found = [];
    for (const { begin, end, time } of this.places) {
      const first = (time.begin - zero) / 1e6, last = (time.end - zero) / 1e6;
      for (let ms = Math.ceil(first / every) * every; ms < last; ms += every) {
        const x = begin + ((end - begin) * (ms - first)) / (last - first);
        const near = found.length > 0 && x - found.at(-1).x < apart * 0.7;
        if (!near) found.push({ x, text: `${every < 1 ? ms.toFixed(1) : Math.round(ms)} ms` });
      }
    }
    return found;
  }
}
