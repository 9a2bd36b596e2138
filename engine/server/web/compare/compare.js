// Two rooms beside each other, each in a frame with its record: a step in one moves the other, too.
// Frames of files can't look into each other, so they send messages (room/beside.js is their end).

const ROWS = [["step", "step"], ["arrived", "requests arrived"], ["running", "running"], ["waiting", "waiting"], [
  "used",
  "blocks in use",
]];
const find = (what) => document.querySelector(what);
const frames = [...document.querySelectorAll("iframe")].map(({ contentWindow }) => contentWindow);
const { names, texts, seqs, requests, followed } = JSON.parse(find("#difference").textContent);
const together = find("select");
const moments = [null, null]; // of each room; null until it has opened its record
const sent = [0, 0]; // messages that asked each room to go
const number = new Intl.NumberFormat("en-US");

/** Ask a room to show a moment: {by: "step" | "arrival" | "seq", …}. */
function send(which, moment) {
  const number = ++sent[which];
  frames[which].postMessage({ glasshouse: "go", number, ...moment }, "*"); // files have no origin to name
}

function showBothThere() {
  for (const which of [0, 1]) send(which, { by: "seq", seq: seqs[which], request: requests[which] });
}

function step(way) {
  const by = moments[0] && { by: "step", step: Math.max(0, moments[0].step + way) };
  if (by) send(0, { ...by, asked: true });
}

function tell() {
  find("tbody").replaceChildren(...ROWS.map(([field, words]) => {
    const row = document.createElement("tr");
    const head = Object.assign(document.createElement("th"), { scope: "row", textContent: words });
    const values = moments.map((moment) => (moment?.[field] ?? -1) < 0 ? "" : number.format(moment[field]));
    row.className = values[0] === values[1] ? "" : "other";
    row.append(head, ...values.map((textContent) => Object.assign(document.createElement("td"), { textContent })));
    return row;
  }));
}

addEventListener("message", ({ source, data }) => {
  const which = frames.indexOf(source);
  if (which < 0 || data?.glasshouse !== "moment") return;
  const first = !moments[which];
  moments[which] = data;
  if (first) {
    if (moments.every(Boolean)) showBothThere();
  } else if (data.led && data.heard === sent[which] && together.value && moments[1 - which]) {
    // What a room said before it heard where to go leads nobody.
    const { step, arrived, since } = data;
    send(1 - which, { by: together.value, step, arrived, since });
  }
  tell();
});

addEventListener("keydown", (event) => {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way || event.target.matches("select") || event.ctrlKey || event.altKey || event.metaKey) return;
  step(way);
  event.preventDefault();
});

for (const [i, name] of ["first", "second"].entries()) {
  document.querySelectorAll(".decision dt")[i].textContent = `${name}: ${names[i]}`;
  find(`.decision .${name}`).textContent = texts[i];
  document.querySelectorAll("iframe")[i].title = `the ${name} record: ${names[i]}`;
}
find(".there").onclick = showBothThere;
find(".back").onclick = () => step(-1);
find(".on").onclick = () => step(1);
find(".followed").hidden = !followed.length;
find(".followed ul").replaceChildren(
  ...followed.map((textContent) => Object.assign(document.createElement("li"), { textContent })),
);
tell();
// A room that opened before this page listened has spoken to nobody.
for (const frame of frames) frame.postMessage({ glasshouse: "where" }, "*");
