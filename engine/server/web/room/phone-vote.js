// A phone of a class votes on what will happen: once a question, and sees all votes when it is over.

import { element } from "./paint.js";

const EVERY_MS = 2000;
const panel = document.querySelector("#vote");
const [question, choices, told] = [".question", ".choices", ".told"].map((name) => panel.querySelector(name));
const code = document.querySelector("[name=code]");
const server = (path, options) => fetch(new URL(path, document.baseURI), options);
let shown = ""; // the state that stands there
let refused = ""; // the code that this class doesn't have

/** Names this phone, and nobody: drawn once and kept here. */
function own() {
  const kept = localStorage.getItem("glasshouse phone");
  if (kept) return kept;
  const drawn = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join(
    "",
  );
  localStorage.setItem("glasshouse phone", drawn);
  return drawn;
}

async function choose(number, choice) {
  for (const button of choices.children) button.disabled = true;
  const answer = await server("class/choose", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ code: code.value.trim(), phone: own(), number, choice }),
  }).catch(() => null);
  const body = await answer?.json().catch(() => null);
  if (answer?.ok) show(body);
  else {
    shown = ""; // its buttons come back with the next look, if it is open still
    told.textContent = body?.error?.message ?? "The server can't be reached.";
  }
}

function show(vote) {
  const state = JSON.stringify(vote);
  if (state === shown) return;
  shown = state;
  panel.hidden = !vote.number || !(vote.open || vote.mine);
  const all = vote.counts.reduce((sum, count) => sum + count, 0);
  question.textContent = vote.question;
  choices.replaceChildren(...vote.choices.map((text, i) => {
    const button = element(
      "button.choice",
      { type: "button", disabled: !vote.open || vote.mine > 0, onclick: () => choose(vote.number, i + 1) },
      vote.answer === i + 1 ? `${text} ✓` : text,
    );
    button.setAttribute("aria-pressed", String(vote.mine === i + 1));
    if (all) {
      button.style.setProperty("--share", `${(100 * vote.counts[i]) / all}%`);
      button.append(element("span.votes", {}, String(vote.counts[i])));
    }
    return button;
  }));
  if (vote.open) told.textContent = vote.mine ? "Your vote counts. Look at the screen." : "";
  else if (!vote.answer) told.textContent = "This vote is closed.";
  else told.textContent = vote.mine === vote.answer ? "As you expected." : "Not as you expected.";
}

async function look() {
  const given = code.value.trim();
  if (!document.hidden && given.length === 5 && given !== refused) {
    const query = new URLSearchParams({ code: given, phone: own() });
    const answer = await server(`class/question?${query}`).catch(() => null);
    if (answer?.ok) show(await answer.json());
    else if (answer?.status === 403) refused = given; // not asked again: each try would be refused
  }
  setTimeout(look, EVERY_MS);
}

look();
