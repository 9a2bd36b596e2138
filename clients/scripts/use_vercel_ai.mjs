// Vercel's ai: a text whole, and the same as a stream.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

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
