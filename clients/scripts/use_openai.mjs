// npm's openai: models, completions, chat, a stream, an error; forms, and tools that run.
import assert from "node:assert";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

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

const Weather = z.object({ city: z.enum(["Zurich", "Bern"]), sky: z.enum(["clear", "grey"]) });
const asked = [{ role: "user", content: "How is the weather in Zurich?" }];
const form = await client.chat.completions.parse({
  model, messages: asked, max_tokens: 200, response_format: zodResponseFormat(Weather, "weather"),
});
assert.ok(["Zurich", "Bern"].includes(form.choices[0].message.parsed.city));
const response = await client.responses.parse({
  model, input: asked, max_output_tokens: 200, text: { format: zodTextFormat(Weather, "weather") },
});
assert.ok(["clear", "grey"].includes(response.output_parsed.sky));
did("chat.completions.parse, responses.parse");

const scripted = new OpenAI({
  baseURL: `${process.env.SCRIPTED_URL}/v1`, apiKey: process.env.SERVER_KEY, maxRetries: 0,
});
const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zurich"}}\n</tool_call>';
const cities = [];
const weather = {
  type: "function",
  function: {
    name: "weather", description: "Tell the weather of a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    parse: JSON.parse,
    function: ({ city }) => {
      cities.push(city);
      return "SAY:It rains.";
    },
  },
};
for (const stream of [false, true]) {
  const runner = scripted.chat.completions.runTools({
    model, stream, messages: [{ role: "user", content: `SAY:${call}` }], tools: [weather],
  });
  assert.equal(await runner.finalContent(), "It rains.");
}
assert.deepEqual(cities, ["Zurich", "Zurich"]);
did("runTools, whole and streamed");
