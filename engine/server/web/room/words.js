// Numbers and names as people read them. The log's sentences are the server's (engine.trace.annotate);
// a file without them gets its events' own fields here, and nothing that would have to be guessed.

const grouped = new Intl.NumberFormat("en-US");

export const number = (value) => grouped.format(value);

export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

export function duration(us) {
  if (us >= 1e6) return `${(us / 1e6).toFixed(2)} s`;
  if (us >= 1e3) return `${(us / 1e3).toFixed(us >= 1e5 ? 0 : us >= 1e4 ? 1 : 2)} ms`;
  return `${us.toFixed(0)} µs`;
}

export function bytes(count) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  }
  return `${count} B`;
}

export function amount(count) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  }
  return String(count);
}

/** 3, 4, 5, 9 → "3–5, 9" */
export function ranges(numbers, most = 8) {
  const parts = [];
  for (const one of numbers) {
    const last = parts.at(-1);
    if (last && one === last[1] + 1) last[1] = one;
    else parts.push([one, one]);
  }
  const shown = parts.slice(0, most).map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`));
  return shown.join(", ") + (parts.length > most ? ` and ${plural(parts.length - most, "more range")}` : "");
}

/** A token's text so that spaces and line ends can be seen. */
export function visible(text) {
  return text.replace(/^bytes:/, "").replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "·") || "∅";
}

const STAMPS = new Set(["kind", "seq", "ts_ns", "step", "src", "request_id", "why", "text", "candidates", "token_ids"]);

/** An event's own fields, for a record that came without the log's lines. */
export function fields(event) {
  const parts = [];
  for (const [name, value] of Object.entries(event)) {
    if (STAMPS.has(name)) continue;
    const told = Array.isArray(value)
      ? typeof value[0] === "number" ? ranges(value) : plural(value.length, "entry").replace("entrys", "entries")
      : typeof value === "object"
      ? JSON.stringify(value)
      : String(value);
    parts.push(`${name.replaceAll("_", " ")} ${told}`);
  }
  return [event.why, parts.join(", ")].filter(Boolean).join(" · ") || event.message || "";
}
