// The SDK of Anthropic for JavaScript.
import { CITY, HELLO, MODEL, hasModel, hasPieces, hasText, isTheCall, tell } from "./harness.mjs";
import { client } from "./settings.mjs";

const ask = (more) => ({ model: MODEL, messages: HELLO, max_tokens: 32, ...more });
await tell({
  models: async () => hasModel((await client.models.list()).data.map((model) => model.id)),
  chat: async () => hasText((await client.messages.create(ask({}))).content[0].text),
  stream: async () => hasPieces(client.messages.stream(ask({ temperature: 0 })), (event) => event.delta?.text),
  tools: async () => {
    const tools = [{ name: "weather", description: "Tell the weather.", input_schema: CITY }];
    const answer = await client.messages.create(
      ask({ max_tokens: 400, tools, tool_choice: { type: "any" }, temperature: 2, seed: 1 }),
    );
    const [call] = answer.content.filter((block) => block.type === "tool_use");
    isTheCall(call.name, call.input);
  },
  tokens: async () => hasText(String((await client.messages.countTokens({ model: MODEL, messages: HELLO })).input_tokens)),
});
