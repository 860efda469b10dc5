// What a screen reader is told unasked: changes that matter, at most one message every few seconds.

import { byId } from "./dom.js";
import { PROVIDER_STATES, GATEWAY_STATES, say } from "./words.js";
import { plural } from "./format.js";

const QUIET_MS = 4000;
const MOST_PROVIDERS = 3;

export class Announcer {
  #node = byId("announcer");
  /** @type {string[]} */
  #waiting = [];
  #timer = 0;

  say(text) {
    if (this.#waiting.at(-1) === text) return;
    this.#waiting = [...this.#waiting, text].slice(-5);
    if (!this.#timer) this.#speak();
  }

  #speak() {
    this.#timer = 0;
    if (!this.#waiting.length) return;
    this.#node.textContent = this.#waiting.join(" ");
    this.#waiting = [];
    this.#timer = setTimeout(() => this.#speak(), QUIET_MS);
  }
}

/** What changed between two snapshots that is worth saying. @returns {string[]} */
export function changes(before, after) {
  const said = [];
  if (before.gateway.state !== after.gateway.state) {
    said.push(`The gateway is now: ${say(GATEWAY_STATES, after.gateway.state)[0]}.`);
  }
  const problems = after.gateway.config.problems.length;
  if (problems > before.gateway.config.problems.length) said.push(`${plural(problems, "config problem")}.`);
  return [...said, ...providerChanges(before.providers, after.providers)];
}

function providerChanges(before, after) {
  const states = new Map(before.map((provider) => [provider.name, provider.state]));
  const changed = after.filter(({ name, state }) => states.has(name) && states.get(name) !== state);
  if (changed.length > MOST_PROVIDERS) return [`${plural(changed.length, "provider")} changed state.`];
  return changed.map(({ name, state }) => `${name}: ${say(PROVIDER_STATES, state)[0]}.`);
}
