// A phone of a class: ask, read the answer, and see what the engine does with the request.

import { element } from "./paint.js";
import { serverSentEvents } from "./source.js";

const EVERY_MS = 600;
const form = document.querySelector("#ask");
const [said, answer, life] = ["#said", "#answer", "#life"].map((name) => document.querySelector(name));
const field = (name) => form.elements[name];
const server = (path, options) => fetch(new URL(path, document.baseURI), options);

/** What the engine's log says of this phone's request, until it ends. */
async function watch(ends) {
  const query = new URLSearchParams({ code: field("code").value, name: field("name").value });
  for (let ended = false, more = 2; more > 0; more -= ended ? 1 : 0) {
    ended = ends.over;
    const found = await server(`class/life?${query}`);
    if (found.ok) {
      const { lines } = await found.json();
      life.replaceChildren(...lines.map((line) => element("li", {}, line)));
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

async function ask() {
  const body = Object.fromEntries(["code", "name", "question"].map((name) => [name, field(name).value.trim()]));
  const reply = await server("class/ask", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!reply.ok) {
    throw new Error((await reply.json().catch(() => ({}))).error?.message ?? `The server said ${reply.status}.`);
  }
  for (const section of document.querySelectorAll(".of-answer")) section.hidden = false;
  const ends = { over: false };
  watch(ends).catch(() => {});
  try {
    for await (const { data } of serverSentEvents(reply)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      answer.textContent += chunk.choices?.[0]?.delta.content ?? "";
    }
  } finally {
    ends.over = true;
  }
}

form.onsubmit = async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  said.textContent = answer.textContent = "";
  life.replaceChildren();
  sessionStorage.setItem("glasshouse name", field("name").value);
  try {
    await ask();
  } catch (error) {
    said.textContent = error.message;
  } finally {
    button.disabled = false;
  }
};

field("code").value = location.hash.slice(1);
field("name").value = sessionStorage.getItem("glasshouse name") ?? "";
