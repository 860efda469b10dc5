// The header: the gateway, this page's own connection, and who is looking.

import { byId, setAttribute, setText, show } from "./dom.js";
import { age, clock, count, rate } from "./format.js";
import { CONNECTION_STATES, GATEWAY_STATES, say } from "./words.js";

const NAME = "llmgateway";

/** @param {any} snapshot @param {number} elapsed_s seconds since it came */
export function renderHeader({ gateway, viewer, providers, in_flight }, elapsed_s) {
  mark(byId("gateway-state"), say(GATEWAY_STATES, gateway.state), gateway.state);
  setText(byId("in-flight"), count(in_flight));
  setText(byId("total-rate"), rate(providers.reduce((sum, provider) => sum + provider.tokens_per_s, 0)));
  setText(byId("version"), gateway.version);
  setText(byId("uptime"), age(gateway.now - gateway.started_at + elapsed_s));
  setText(byId("viewer-name"), viewer.user);
  show(byId("viewer-admin"), viewer.admin);
}

/** @param {string} state @param {{gateway: any} | null} snapshot the last that came @param {number} elapsed_s */
export function renderConnection(state, snapshot, elapsed_s) {
  mark(byId("connection-state"), say(CONNECTION_STATES, state), state);
  const stale = state === "reconnecting";
  show(byId("stale"), stale);
  setAttribute(document.body, "data-stale", stale ? "true" : null);
  if (stale) setText(byId("stale-text"), staleness(snapshot, elapsed_s));
}

/** The title, which also shows in the list of tabs. */
export function renderTitle(view, state, snapshot) {
  document.title = titleOf(view, state, snapshot);
}

function titleOf(view, state, snapshot) {
  if (view === "sign-in") return `Sign in – ${NAME}`;
  if (!snapshot) return NAME;
  if (state === "reconnecting") return `(?) ${NAME}`;
  return snapshot.in_flight ? `(${snapshot.in_flight}) ${NAME}` : NAME;
}

function staleness(snapshot, elapsed_s) {
  if (!snapshot) return "The gateway cannot be reached. Trying again …";
  const why = snapshot.gateway.state === "draining" ? "The gateway is shutting down." : "The gateway cannot be reached.";
  return `${why} This is from ${clock(snapshot.gateway.now)}, ${age(elapsed_s)} ago. Trying again …`;
}

function mark(node, [words, tone], state) {
  setText(node, words);
  setAttribute(node, "data-tone", tone);
  setAttribute(node, "data-state", state);
}
