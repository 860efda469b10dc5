// One chat completion, as the pieces of its answer.

import { ApiError, chat, refusalOf } from "./api.js";
import { eventsOf } from "./sse.js";

/**
 * @typedef {{kind: "content" | "reasoning", text: string} | {kind: "usage", tokens: number}} Piece
 */

/**
 * Ask a model to go on with a conversation.
 * @param {{model: string, messages: {role: string, content: string}[], temperature?: number}} request
 * @param {AbortSignal} signal ends the request, also on the server
 * @returns {AsyncGenerator<Piece>}
 * @throws {ApiError} a refusal, before the answer or in the middle of it
 */
export async function* complete(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await chat(body, signal);
  const type = response.headers.get("Content-Type") ?? "";
  if (!type.startsWith("text/event-stream")) {
    yield* pieces(await response.json(), "message");
    return;
  }
  for await (const { event, data } of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    yield* pieces(parsed(data, event), "delta");
  }
}

function parsed(data, event) {
  try {
    const body = JSON.parse(data);
    return event === "error" && !body.error ? { error: body } : body;
  } catch {
    throw new ApiError(0, event === "error" ? data : "The answer cannot be understood.");
  }
}

// llama.cpp and vLLM say `reasoning_content`, Ollama says `reasoning`.
function* pieces(body, part) {
  const refused = refusalOf(body, 0);
  if (refused) throw refused;
  const said = body?.choices?.[0]?.[part];
  const reasoning = said?.reasoning_content ?? said?.reasoning;
  if (reasoning) yield { kind: "reasoning", text: String(reasoning) };
  if (said?.content) yield { kind: "content", text: String(said.content) };
  const tokens = body?.usage?.completion_tokens;
  if (Number.isFinite(tokens)) yield { kind: "usage", tokens };
}
