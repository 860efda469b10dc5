// Vercel's AI SDK, by its package for servers like OpenAI's.
import { embedMany, generateText, jsonSchema, streamText, tool } from "ai";
import { CITY, EMBEDDINGS, MODEL, TEXTS, hasPieces, hasText, hasVectors, isTheCall, tell } from "./harness.mjs";
import { client } from "./settings.mjs";

const ask = (more) => ({ model: client(MODEL), prompt: "hello world", maxRetries: 0, maxOutputTokens: 32, ...more });
await tell({
  chat: async () => hasText((await generateText(ask({}))).text),
  stream: async () => hasPieces(streamText(ask({ temperature: 0 })).textStream),
  tools: async () => {
    const weather = tool({ description: "Tell the weather.", inputSchema: jsonSchema(CITY) });
    const { toolCalls } = await generateText(
      ask({ tools: { weather }, toolChoice: "required", temperature: 2, seed: 1, maxOutputTokens: 400 }),
    );
    isTheCall(toolCalls[0].toolName, toolCalls[0].input);
  },
  embeddings: async () =>
    hasVectors((await embedMany({ model: client.embeddingModel(EMBEDDINGS), values: TEXTS })).embeddings),
});
