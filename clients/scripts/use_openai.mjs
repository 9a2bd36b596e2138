// npm's openai: models, completions, chat, a stream, an error.
import assert from "node:assert";
import OpenAI from "openai";

const model = process.env.SERVER_MODEL;
const client = new OpenAI({
  baseURL: `${process.env.SERVER_URL}/v1`, apiKey: process.env.SERVER_KEY, maxRetries: 0,
});
const messages = [{ role: "user", content: "Hello! What is a KV cache?" }];
const did = (what) => console.log(`did: ${what}`);

assert.equal((await client.models.list()).data[0].id, model);
did("models");

const completion = await client.completions.create({ model, prompt: "Once", max_tokens: 8 });
assert.ok(completion.choices[0].text);
did("completions");

const chat = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0 });
const whole = chat.choices[0].message.content;
assert.ok(whole);
did("chat");

let text = "", usage = null;
const stream = await client.chat.completions.create({
  model, messages, max_tokens: 8, temperature: 0, stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole);
assert.equal(usage.total_tokens, chat.usage.total_tokens);
did("streams with usage");

await assert.rejects(client.models.retrieve("another"), OpenAI.NotFoundError);
did("errors of the right kind");
