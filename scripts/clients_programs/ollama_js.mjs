// Ollama's library for JavaScript.
import { EMBEDDINGS, HELLO, MODEL, TEXTS, TOOL, hasModel, hasPieces, hasText, hasVectors, isTheCall, tell } from "./harness.mjs";
import { client } from "./settings.mjs";

const ask = { model: MODEL, messages: HELLO };
await tell({
  models: async () => hasModel((await client.list()).models.map((model) => model.model)),
  chat: async () => hasText((await client.chat(ask)).message.content),
  stream: async () => hasPieces(await client.chat({ ...ask, stream: true }), (part) => part.message.content),
  tools: async () => {
    const [call] = (await client.chat({ ...ask, tools: [TOOL] })).message.tool_calls;
    isTheCall(call.function.name, call.function.arguments);
  },
  embeddings: async () => hasVectors((await client.embed({ model: EMBEDDINGS, input: TEXTS })).embeddings),
});
