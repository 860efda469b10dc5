// The gateway's HTTP interface as this page uses it.
//
// All addresses are relative to the page, which lives at BASE/gateway/, so that any base_path works.

const PATIENCE_MS = 10_000;
const JSON_TYPE = { "Content-Type": "application/json" };

/** A refusal, with the status (0: there was no answer at all) and words for the reader. */
export class ApiError extends Error {
  constructor(status, message, type = "") {
    super(message);
    this.status = status;
    this.type = type;
  }
}

/** The snapshot now. */
export async function status() {
  const response = await ask("status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  return response.json();
}

/** Exchange a key for the session cookie. @param {string} key */
export async function signIn(key) {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  await ask("session", { method: "POST", headers: JSON_TYPE, body: JSON.stringify({ key }), signal });
}

export async function signOut() {
  await ask("session", { method: "DELETE", headers: JSON_TYPE, signal: AbortSignal.timeout(PATIENCE_MS) });
}

/** End a request in flight. @param {string} id */
export async function endRequest(id) {
  const options = { method: "POST", headers: JSON_TYPE, body: "{}", signal: AbortSignal.timeout(PATIENCE_MS) };
  await ask(`requests/${encodeURIComponent(id)}/end`, options);
}

/** The log's last lines; for admins. @returns {Promise<string[]>} */
export async function logLines() {
  const response = await ask("log", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  return (await response.json()).lines;
}

/** Start a chat completion; the response is its headers and a body still to come. */
export function chat(body, signal) {
  return ask("chat", { method: "POST", headers: JSON_TYPE, body: JSON.stringify(body), signal });
}

async function ask(address, options) {
  const response = await fetch(address, { credentials: "same-origin", ...options }).catch((error) => {
    if (options.signal?.aborted && options.signal.reason?.name !== "TimeoutError") throw error;
    throw new ApiError(0, "The gateway cannot be reached.");
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  return refusalOf(body, response.status) ?? new ApiError(response.status, `The answer was HTTP ${response.status}.`);
}

/**
 * The refusal in an error envelope, OpenAI's or one with a bare string.
 * @returns {ApiError | null} null if `body` is no envelope
 */
export function refusalOf(body, statusCode) {
  const error = body?.error;
  if (!error) return null;
  const message = typeof error === "string" ? error : (error.message ?? "The server reported an error.");
  return new ApiError(statusCode, String(message), String(error.type ?? ""));
}
