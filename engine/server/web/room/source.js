// Where the record comes from: a live server's stream, which reconnects, or a file.

const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const LINES_AT_ONCE = 5000;

/** The API key, kept for this tab only. It goes to this page's own server, nowhere else. */
export const key = {
  get value() {
    return sessionStorage.getItem("glasshouse key") ?? "";
  },
  set value(text) {
    sessionStorage.setItem("glasshouse key", text.trim());
  },
};

export function api(path, options = {}) {
  const headers = { ...options.headers };
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  return fetch(new URL(path, document.baseURI), { ...options, headers });
}

/** Server-sent events of a response: {event, id, data} each. Comments keep it alive. */
export async function* serverSentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const frames = text.split("\n\n");
      text = frames.pop();
      for (const frame of frames) {
        const fields = { event: "message", id: "", data: "" };
        for (const line of frame.split("\n")) {
          const colon = line.indexOf(":");
          if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
        }
        if (fields.data) yield fields;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Follows the server's stream until `stop()`. Calls back with frames, and with the connection's state. */
export class LiveSource {
  #lastId = "";
  #run = ""; // of the server: ids are RUN-POSITION
  #abort = new AbortController();
  #failures = 0;

  constructor({ onSnapshot, onEvents, onStatus }) {
    Object.assign(this, { onSnapshot, onEvents, onStatus });
  }

  async run() {
    while (!this.#abort.signal.aborted) {
      try {
        await this.#follow();
      } catch (error) {
        if (this.#abort.signal.aborted) return;
        if (error.fatal) return this.onStatus(error.fatal, error.message);
      }
      if (this.#abort.signal.aborted) return;
      const wait = RETRY_MS[Math.min(this.#failures++, RETRY_MS.length - 1)];
      this.onStatus("reconnecting", `the stream ended; trying again in ${wait / 1000} s`);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  /** End this connection; `run` opens the next one, and goes on where this one ended. */
  drop() {
    this.#connection?.abort();
  }
  #connection = null;

  stop() {
    this.#abort.abort();
    this.#connection?.abort();
  }

  async #follow() {
    this.#connection = new AbortController();
    const headers = this.#lastId ? { "Last-Event-ID": this.#lastId } : {};
    const response = await api("trace/stream", { headers, signal: this.#connection.signal, cache: "no-store" });
    if (!response.ok) {
      const refusal = await response.json().catch(() => ({}));
      const message = refusal.error?.message ?? `the server answered ${response.status}`;
      const fatal = { 401: "key", 404: "off" }[response.status];
      throw Object.assign(new Error(message), { fatal });
    }
    if (this.#abort.signal.aborted) return;
    let said = this.#lastId !== ""; // it has its state already, and goes on
    if (said) this.onStatus("live", "");
    for await (const { event, id, data } of serverSentEvents(response)) {
      if (this.#abort.signal.aborted) return; // what was read already belongs to nobody now
      if (event !== "snapshot" && event !== "events") continue;
      const frame = JSON.parse(data);
      this.#failures = 0;
      this.#lastId = id;
      const run = id.slice(0, id.lastIndexOf("-"));
      const anew = this.#run !== "" && run !== this.#run; // another run of the server: its steps begin again
      this.#run = run;
      if (event === "snapshot") this.onSnapshot({ ...frame, anew });
      else this.onEvents(frame);
      if (!said) this.onStatus("live", ""); // not before: until now it knew nothing of the engine
      said = true;
    }
  }
}

/** A JSONL record → events, in batches. Lines that are no events are counted. */
export async function readRecord(text, onEvents) {
  const lines = text.split("\n");
  let unreadable = 0;
  for (let start = 0; start < lines.length; start += LINES_AT_ONCE) {
    const events = [];
    for (const line of lines.slice(start, start + LINES_AT_ONCE)) {
      if (!line.trim()) continue;
      try {
        const event = JSON.parse(line);
        if (typeof event?.kind !== "string") throw new SyntaxError("no kind");
        events.push(event);
      } catch {
        unreadable++;
      }
    }
    onEvents(events);
    await new Promise((resolve) => setTimeout(resolve)); // the page stays alive
  }
  return unreadable;
}
