// As harness.py, for programs in JavaScript.
import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";

export const MODEL = process.env.CLIENTS_MODEL;
export const EMBEDDINGS = process.env.CLIENTS_EMBEDDINGS;
export const HELLO = [{ role: "user", content: "hello world" }];
export const CITY = { type: "object", properties: { city: { enum: ["Oslo"] } }, required: ["city"] };
export const FUNCTION = { name: "weather", description: "Tell the weather.", parameters: CITY };
export const TOOL = { type: "function", function: FUNCTION };
export const TEXTS = ["hello", "world"];

export async function tell(tries) {
  for (const name of process.argv.slice(2)) {
    let line = { try: name, failed: null };
    try {
      await tried(tries[name]);
    } catch (error) {
      line = { try: name, failed: error.constructor.name, says: String(error.message) };
    }
    appendFileSync(process.env.CLIENTS_SEEN, JSON.stringify(line) + "\n");
  }
}

// Once more where nothing came: now and then the little model ends its turn with its first token.
async function tried(attempt) {
  try {
    await attempt();
  } catch (error) {
    if (!(error instanceof assert.AssertionError)) throw error;
    await attempt();
  }
}

export const hasText = (text) => assert.ok(text && text.trim(), `no text: ${text}`);
export const isTheCall = (name, args) =>
  assert.deepEqual([name, typeof args === "string" ? JSON.parse(args) : args], ["weather", { city: "Oslo" }]);
export const hasModel = (names) => assert.ok(names.includes(MODEL), `${MODEL} is not among ${names}`);
export function hasVectors(vectors) {
  assert.equal(vectors.length, TEXTS.length);
  for (const vector of vectors) assert.ok(vector.some((each) => each !== 0), "a vector of zeros");
}
export async function hasPieces(stream, textOf = (piece) => piece) {
  let count = 0;
  for await (const piece of stream) if (textOf(piece)) count += 1;
  assert.ok(count > 1, `${count} pieces`);
}
