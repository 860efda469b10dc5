// Limits of users and keys, and how much of each is used.

import { KeyedChildren, byId, el, setAttribute, setText, show } from "./dom.js";
import { age, short } from "./format.js";
import { sentence, who as named } from "./words.js";

const NEARLY = 0.8;

/** @returns {(snapshot: any, elapsed_s: number) => void} */
export function limitMeters() {
  const meters = new KeyedChildren(byId("limit-list"), keyOf, meter);
  return ({ limits }, elapsed_s) => {
    meters.render(limits, elapsed_s);
    show(byId("limits"), limits.length > 0);
    show(byId("jump-limits"), limits.length > 0);
  };
}

const keyOf = (limit) => JSON.stringify([limit.user, limit.person, limit.key, limit.name]);

function meter() {
  const who = el("span", { class: "who" });
  const name = el("span", { class: "name" });
  const used = el("span", { class: "used num" });
  const reset = el("span", { class: "reset" });
  const fill = el("span");
  const bar = el("div", { class: "bar", role: "meter", "aria-valuemin": "0" }, fill);
  const node = el("li", { "data-testid": "limit" }, el("p", {}, who, name, used), bar, reset);
  const update = (limit, elapsed_s) => {
    const share = limit.limit ? Math.min(1, limit.used / limit.limit) : 1;
    const label = limit.key ? `${limit.user}, key ${limit.key}` : named(limit);
    setText(who, label);
    setText(name, sentence(limit.name));
    setText(used, `${short(limit.used)} of ${short(limit.limit)}`);
    setText(reset, resets(limit, share, elapsed_s));
    setAttribute(bar, "aria-label", `${label}: ${sentence(limit.name)}`);
    setAttribute(bar, "aria-valuemax", limit.limit);
    setAttribute(bar, "aria-valuenow", Math.min(limit.used, limit.limit));
    setAttribute(bar, "aria-valuetext", used.textContent);
    setAttribute(bar, "data-full", share >= 1 ? "true" : null);
    setAttribute(bar, "data-nearly", share >= NEARLY ? "true" : null);
    fill.style.width = `${share * 100}%`;
  };
  return { node, update };
}

function resets(limit, share, elapsed_s) {
  const said = share >= 1 ? ["reached"] : [];
  if (limit.resets_in_s > 0 && limit.used > 0) said.push(`resets in ${age(limit.resets_in_s - elapsed_s)}`);
  return said.join(", ");
}
