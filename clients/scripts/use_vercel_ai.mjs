// Vercel's ai: texts, forms and tools, whole and as streams, by three of its providers.
import assert from "node:assert";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "glasshouse", baseURL: `${process.env.SERVER_URL}/v1`, apiKey: process.env.SERVER_KEY,
  includeUsage: true,
});
const model = provider(process.env.SERVER_MODEL);
const asked = {
  model, prompt: "Hello! What is a KV cache?", temperature: 0, maxOutputTokens: 8, maxRetries: 0,
};
const did = (what) => console.log(`did: ${what}`);

const whole = await generateText(asked);
assert.ok(whole.text && whole.usage.outputTokens > 0);
did("generateText");

let text = "";
const stream = streamText(asked);
for await (const part of stream.textStream) text += part;
assert.equal(text, whole.text);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
did("streamText with usage");

const completion = await generateText({
  ...asked, model: provider.completionModel(process.env.SERVER_MODEL),
});
assert.ok(completion.text);
did("a completion model");

const apiKey = process.env.SERVER_KEY;
const makers = {
  "openai-compatible": (url) =>
    createOpenAICompatible({
      name: "glasshouse", baseURL: `${url}/v1`, apiKey, supportsStructuredOutputs: true,
    }),
  "openai, chat": (url) => createOpenAI({ baseURL: `${url}/v1`, apiKey }).chat,
  "openai, responses": (url) => createOpenAI({ baseURL: `${url}/v1`, apiKey }),
  "anthropic": (url) => createAnthropic({ baseURL: `${url}/v1`, apiKey }),
};
const schema = z.object({
  city: z.enum(["Zurich", "Bern"]), sky: z.enum(["clear", "grey"]),
});
const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zurich"}}\n</tool_call>';
for (const [name, make] of Object.entries(makers)) {
  const form = {
    model: make(process.env.SERVER_URL)(process.env.SERVER_MODEL), schema, maxRetries: 0,
    prompt: "How is the weather in Zurich?", maxOutputTokens: 200,
  };
  assert.ok(schema.parse((await generateObject(form)).object));
  const parts = streamObject(form);
  for await (const part of parts.partialObjectStream) assert.ok(part);
  assert.ok(schema.parse(await parts.object));
  did(`${name}: generateObject, streamObject`);

  const cities = [];
  const weather = tool({
    description: "Tell the weather of a city.", inputSchema: z.object({ city: z.string() }),
    execute: ({ city }) => {
      cities.push(city);
      return "SAY:It rains.";
    },
  });
  const loop = {
    model: make(process.env.SCRIPTED_URL)(process.env.SERVER_MODEL), tools: { weather },
    stopWhen: stepCountIs(3), prompt: `SAY:${call}`, maxRetries: 0, maxOutputTokens: 200,
  };
  assert.equal((await generateText(loop)).text, "It rains.");
  assert.equal(await streamText(loop).text, "It rains.");
  assert.deepEqual(cities, ["Zurich", "Zurich"]);
  did(`${name}: a loop with a tool, whole and streamed`);
}
