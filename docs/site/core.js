// The page around the core: sliders in, a record out, which the room below opens.

const form = document.querySelector("form"), status = document.querySelector("#status");
const room = document.querySelector("iframe"), rows = document.querySelector("tbody");
const worker = new Worker("core-worker.js", { type: "module" });
let number = 0, waiting = null, isReady = false, before = null;

function ask() {
  for (const slider of form.querySelectorAll("input[type=range]")) slider.nextElementSibling.value = slider.value;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (!isReady) return;
    const sliders = {};
    for (const slider of form.querySelectorAll("input[type=range]")) sliders[slider.name] = Number(slider.value);
    worker.postMessage({ number: ++number, sliders, policy: form.own.checked ? form.policy.value : "" });
  }, 150);
}

worker.onmessage = async ({ data }) => {
  if (data.ready) {
    isReady = true;
    return ask();
  }
  if (data.failed) return void (status.textContent = `Python can't start here: ${data.failed}`);
  if (data.number !== number) return; // a later one is on its way
  const { error, record, rows: told } = data.answer;
  status.textContent = error ?? "done: the room below shows this run";
  status.className = error ? "wrong" : "";
  if (error) return;
  rows.replaceChildren(
    ...Object.entries(told).map(([name, value]) => {
      const row = document.createElement("tr");
      for (const text of [name, format(value), before ? format(before[name]) : ""]) {
        row.insertCell().textContent = text;
      }
      return row;
    }),
  );
  before = told;
  document.body.dataset.steps = told.steps;
  await room.contentWindow.room?.open(record, "in your browser");
};

const format = (value) => Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(2);
form.oninput = ask;
