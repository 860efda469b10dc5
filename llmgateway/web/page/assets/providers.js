// One card for each provider.

import { KeyedChildren, byId, el, setAttribute, setText, show } from "./dom.js";
import { context, count, plural, rate } from "./format.js";
import { PROVIDER_STATES, say } from "./words.js";
import { seriesClass } from "./palette.js";

const MODELS_AT_FIRST = 3;
const MOST_SEGMENTS = 24;
const IDLE_STATES = new Set(["offline", "misconfigured", "unknown"]);

/** @returns {(snapshot: any) => void} */
export function providerCards() {
  const cards = new KeyedChildren(byId("provider-list"), (provider) => provider.name, card);
  return ({ providers, aliases = [] }) => {
    const places = new Map(providers.map((provider, index) => [provider.name, index]));
    cards.render(providers, places, byMeaning(aliases));
    show(byId("providers-empty"), providers.length === 0);
    setText(byId("providers-summary"), summary(providers));
  };
}

/** @returns {Map<string, string[]>} the other names of each model */
function byMeaning(aliases) {
  const names = new Map();
  for (const { id, alias_of: of } of aliases) names.set(of, [...(names.get(of) ?? []), id]);
  return names;
}

function summary(providers) {
  if (!providers.length) return "";
  const online = providers.filter(({ state }) => state === "online").length;
  const waiting = providers.reduce((sum, provider) => sum + provider.waiting, 0);
  const said = [`${online} of ${providers.length} online`];
  if (waiting) said.push(`${count(waiting)} waiting`);
  return said.join(", ");
}

function card() {
  const name = el("h3");
  const key = el("span", { class: "swatch", "aria-hidden": "true" });
  const state = el("p", { class: "state mark" });
  const reason = el("p", { class: "reason" });
  const load = loadLine();
  const models = modelList();
  const node = el(
    "li",
    { class: "card", "data-testid": "provider-card" },
    el("div", { class: "card-head" }, key, name, state),
    reason,
    load.node,
    models.node,
  );
  const update = (provider, places, names) => {
    const [words, tone] = say(PROVIDER_STATES, provider.state);
    setAttribute(node, "data-name", provider.name);
    setAttribute(node, "data-state", provider.state);
    setAttribute(key, "class", `swatch ${seriesClass(places.get(provider.name))}`);
    setText(name, provider.name);
    setAttribute(name, "title", provider.owner ? `${provider.name}, owned by ${provider.owner}` : provider.name);
    setText(state, words);
    setAttribute(state, "data-tone", tone);
    setText(reason, provider.reason);
    show(reason, Boolean(provider.reason));
    load.update(provider);
    show(load.node, !IDLE_STATES.has(provider.state) || provider.in_flight > 0);
    models.update(provider.models, names);
  };
  return { node, update };
}

function loadLine() {
  const fill = el("span");
  const bar = el("div", { class: "bar", role: "meter", "aria-label": "Slots in use", "aria-valuemin": "0" }, fill);
  const slots = el("span", { class: "slots" });
  const waiting = el("span", { class: "waiting" });
  const speed = el("span", { class: "speed" });
  const node = el("div", { class: "load" }, bar, el("p", {}, slots, waiting, speed));
  const update = (provider) => {
    const { in_flight, slots: limit } = provider;
    show(bar, limit !== null);
    setText(slots, limit === null ? `${count(in_flight)} in flight` : `${count(in_flight)} of ${plural(limit, "slot")}`);
    setText(waiting, provider.waiting ? `${count(provider.waiting)} waiting` : "");
    setText(speed, `${rate(provider.tokens_per_s)} tok/s`);
    if (limit !== null) drawBar(bar, fill, in_flight, limit);
  };
  return { node, update };
}

function drawBar(bar, fill, used, limit) {
  setAttribute(bar, "aria-valuemax", Math.max(limit, used));
  setAttribute(bar, "aria-valuenow", used);
  setAttribute(bar, "aria-valuetext", `${used} of ${limit}`);
  setAttribute(bar, "data-full", used >= limit ? "true" : null);
  bar.style.setProperty("--segments", String(limit <= MOST_SEGMENTS ? Math.max(limit, 1) : 1));
  fill.style.width = `${Math.min(1, limit ? used / limit : 1) * 100}%`;
}

function modelList() {
  const first = el("ul", { class: "models" });
  const rest = el("ul", { class: "models" });
  const more = el("summary");
  const details = el("details", {}, more, rest);
  const none = el("p", { class: "empty" }, "No models known.");
  const shown = new KeyedChildren(first, (model) => model.id, modelLine);
  const hidden = new KeyedChildren(rest, (model) => model.id, modelLine);
  const update = (models, names) => {
    const sorted = loadedFirst(models);
    shown.render(sorted.slice(0, MODELS_AT_FIRST), names);
    hidden.render(sorted.slice(MODELS_AT_FIRST), names);
    show(none, models.length === 0);
    show(details, models.length > MODELS_AT_FIRST);
    setText(more, `${count(Math.max(0, models.length - MODELS_AT_FIRST))} more`);
  };
  return { node: el("div", { class: "model-box" }, first, details, none), update };
}

function loadedFirst(models) {
  return [...models].sort((a, b) => Number(b.loaded === true) - Number(a.loaded === true));
}

function modelLine() {
  const id = el("span", { class: "id" });
  const loaded = el("span", { class: "tag" }, "loaded");
  const size = el("span", { class: "context" });
  const told = el("p", { class: "told" });
  const update = (model, names) => {
    const others = names.get(model.id)?.join(", ") ?? "";
    const known = model.told_as ? `, which the server knows as ${model.told_as}` : "";
    setText(id, model.id);
    setAttribute(id, "title", `${model.id}${known}${others ? `; also asked for as ${others}` : ""}`);
    setText(told, [model.told_as, others && `also ${others}`].filter(Boolean).join("; "));
    show(told, Boolean(told.textContent));
    show(loaded, model.loaded === true);
    show(size, Boolean(model.context_length));
    setText(size, model.context_length ? context(model.context_length) : "");
    setAttribute(size, "title", model.context_length ? `context of ${count(model.context_length)} tokens` : null);
  };
  return { node: el("li", {}, el("div", { class: "line" }, id, loaded, size), told), update };
}
