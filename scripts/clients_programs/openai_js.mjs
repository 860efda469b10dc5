// The SDK of OpenAI for JavaScript.
import { EMBEDDINGS, HELLO, MODEL, TEXTS, TOOL, hasModel, hasPieces, hasText, hasVectors, isTheCall, tell } from "./harness.mjs";
import { client } from "./settings.mjs";

const chat = (more) => client.chat.completions.create({ model: MODEL, messages: HELLO, ...more });
await tell({
  models: async () => hasModel((await client.models.list()).data.map((model) => model.id)),
  chat: async () => hasText((await chat({ max_tokens: 32 })).choices[0].message.content),
  stream: async () =>
    hasPieces(await chat({ stream: true, temperature: 0, max_tokens: 32 }), (part) => part.choices[0]?.delta.content),
  tools: async () => {
    const answer = await chat({ tools: [TOOL], tool_choice: "required", temperature: 2, seed: 1, max_tokens: 400 });
    const [call] = answer.choices[0].message.tool_calls;
    isTheCall(call.function.name, call.function.arguments);
  },
  embeddings: async () =>
    hasVectors((await client.embeddings.create({ model: EMBEDDINGS, input: TEXTS })).data.map((each) => each.embedding)),
  responses: async () => hasText((await client.responses.create({ model: MODEL, input: "hello world" })).output_text),
});
