// The model's chat template, for prompts that are sent from the page: a model that was taught to
// answer must not see a bare text. Several prompts go in one request of /v1/completions, so what the
// template puts around a message is asked for once, and put around each of them here.

import { api } from "./source.js";

const PLACE = "HERE STANDS THE MESSAGE";

/** What stands around a user's message: {before, after}; null if the model has no template. */
async function around() {
  const post = async (path, body) => {
    const answer = await api(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return answer.ok ? answer.json() : null;
  };
  const made = await post("tokenize", { messages: [{ role: "user", content: PLACE }], add_generation_prompt: true });
  const read = made && await post("detokenize", { tokens: made.tokens });
  const parts = read?.prompt.split(PLACE);
  return parts?.length === 2 ? { before: parts[0], after: parts[1] } : null;
}

export class Template {
  #around = null;

  /** Fields of a completion request: these prompts as the model was taught to see them. */
  async fields(prompts) {
    this.#around ??= around();
    const found = await this.#around;
    if (!found) return { prompt: prompts };
    return { prompt: prompts.map((prompt) => found.before + prompt + found.after), add_special_tokens: false };
  }
}
