// The gateway's vocabulary in words, each with the tone of its mark.
//
// A tone picks colour *and* shape (see base.css); the words carry the meaning.

/** Where no server was reached, the name of a model could be any. */
export const NO_MODEL = "(no model)";

export const GATEWAY_STATES = {
  ready: ["Ready", "ok"],
  starting: ["Starting", "busy"],
  draining: ["Draining", "warn"],
};

export const CONNECTION_STATES = {
  connecting: ["Connecting", "busy"],
  live: ["Live", "ok"],
  reconnecting: ["Reconnecting", "bad"],
};

export const PROVIDER_STATES = {
  online: ["Online", "ok"],
  warming: ["Warming up", "busy"],
  offline: ["Offline", "bad"],
  taken_out: ["Taken out", "bad"],
  misconfigured: ["Misconfigured", "warn"],
  unknown: ["Not checked yet", "idle"],
};

export const PHASES = {
  reading: ["Reading request", "idle"],
  waiting: ["Waiting", "warn"],
  sent: ["Waiting for answer", "busy"],
  streaming: ["Streaming", "ok"],
};

export const OUTCOMES = {
  ok: ["Done", "ok"],
  client_gone: ["Client left", "idle"],
  truncated: ["Cut off", "bad"],
  no_provider: ["No provider", "bad"],
  upstream_error: ["Server failed", "bad"],
  overloaded: ["Overloaded", "bad"],
  draining: ["Shutting down", "warn"],
  cancelled: ["Ended by hand", "idle"],
  rate_limited: ["Over a limit", "warn"],
  invalid_request: ["Bad request", "warn"],
  invalid_api_key: ["Bad key", "warn"],
  model_not_allowed: ["Model not allowed", "warn"],
  request_too_large: ["Too large", "warn"],
  request_timeout: ["Request too slow", "warn"],
  refused_by_server: ["Refused by server", "warn"],
};

/** @returns {[string, string]} words and tone; a name that is not in the table is shown as it is */
export function say(table, name) {
  return Object.hasOwn(table, name) ? table[name] : [sentence(name), "idle"];
}

/** @returns {string} the user and, if it was told, who of those behind its keys it is */
export function who({ user, person }) {
  return person ? `${person} (${user})` : (user ?? "–");
}

/** @returns {string} what the client asked for, where that is not the name of the model */
export const asked = ({ asked_model: name }) => (name ? `asked for as ${name}` : "");

/** "tokens_per_day" -> "Tokens per day" */
export function sentence(name) {
  const words = String(name).replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
