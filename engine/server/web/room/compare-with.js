// Set the server's record beside a recorded file: the server compares, and sends to a page of both.

import { api } from "./source.js";

export function compareWith(input, say) {
  input.onchange = async () => {
    const [file] = input.files;
    if (!file) return;
    input.value = ""; // the same file may be chosen again
    say(`Comparing with ${file.name} …`);
    try {
      const path = `trace/compare?${new URLSearchParams({ name: file.name })}`;
      const headers = { "Content-Type": "application/jsonl" };
      const answer = await api(path, { method: "POST", body: file, headers });
      const { page, text, error } = await answer.json();
      if (page) location.assign(new URL(page, document.baseURI));
      else say(error ? error.message : `${text}.`);
    } catch (error) {
      say(`${file.name} could not be compared: ${error.message}.`);
    }
  };
}
