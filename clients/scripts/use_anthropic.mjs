// npm's @anthropic-ai/sdk: messages, streams, counted tokens, a form, and tools that run.
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

const model = process.env.SERVER_MODEL, apiKey = process.env.SERVER_KEY;
const client = new Anthropic({ baseURL: process.env.SERVER_URL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello! What is a KV cache?" }];
const did = (what) => console.log(`did: ${what}`);

const whole = await client.messages.create({ model, messages, max_tokens: 8, temperature: 0 });
assert.ok(whole.content[0].text);
const stream = client.messages.stream({ model, messages, max_tokens: 8, temperature: 0 });
assert.equal(await stream.finalText(), whole.content[0].text);
did("messages.create, messages.stream");

const counted = await client.messages.countTokens({ model, messages });
assert.equal(
  counted.input_tokens, whole.usage.input_tokens + (whole.usage.cache_read_input_tokens ?? 0),
);
did("countTokens, as many as the message's usage says");

const Weather = z.object({
  city: z.enum(["Zurich", "Bern"]), sky: z.enum(["clear", "grey"]),
});
const asked = [{ role: "user", content: "How is the weather in Zurich?" }];
const form = await client.messages.parse({
  model, messages: asked, max_tokens: 200, output_config: { format: zodOutputFormat(Weather) },
});
assert.ok(Weather.parse(form.parsed_output));
did("messages.parse");

const scripted = new Anthropic({ baseURL: process.env.SCRIPTED_URL, apiKey, maxRetries: 0 });
const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zurich"}}\n</tool_call>';
const cities = [];
const weather = betaZodTool({
  name: "weather", description: "Tell the weather of a city.",
  inputSchema: z.object({ city: z.string() }),
  run: ({ city }) => {
    cities.push(city);
    return "SAY:It rains.";
  },
});
const told = await scripted.beta.messages.toolRunner({
  model, max_tokens: 200, tools: [weather], messages: [{ role: "user", content: `SAY:${call}` }],
});
assert.equal(told.content[0].text, "It rains.");
assert.deepEqual(cities, ["Zurich"]);
did("the tool runner, to its end");

await assert.rejects(
  client.messages.create({ model: "another", messages, max_tokens: 8 }), Anthropic.NotFoundError,
);
did("errors of the right kind");
