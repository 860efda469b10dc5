// Requests in flight. Their ages tick between snapshots.

import { byId, setAttribute, setText, show } from "./dom.js";
import { DASH, age, count } from "./format.js";
import { Table } from "./table.js";
import { PHASES, asked, say, who } from "./words.js";

const columns = (end) => [
  { name: "model", label: "Model", heads: true, text: (request) => request.model || DASH, note: asked, title: (request) => request.endpoint },
  { name: "user", label: "User", text: who },
  { name: "provider", label: "Provider", text: (request) => request.provider || DASH },
  { name: "phase", label: "Phase", text: phase, tone: (request) => say(PHASES, request.phase)[1] },
  { name: "tokens", label: "Tokens", number: true, text: (request) => (request.tokens ? count(request.tokens) : DASH) },
  { name: "age", label: "Age", number: true, text: (request, elapsed_s) => age(request.age_s + elapsed_s) },
  { name: "end", label: "", text: () => "End", run: (request) => end(request.id), title: () => "End this request" },
];

/**
 * @param {(request: any) => void} open
 * @param {(id: string) => void} end
 * @returns {(snapshot: any, elapsed_s: number) => void}
 */
export function requestTable(open, end) {
  const node = byId("requests-table");
  const table = new Table(node, columns(end), { keyOf: (request) => request.id, mark, open });
  return ({ requests, in_flight }, elapsed_s) => {
    table.render(requests, elapsed_s);
    show(node.parentElement, requests.length > 0);
    show(byId("requests-empty"), requests.length === 0);
    setText(byId("requests-summary"), summary(requests.length, in_flight));
  };
}

function mark(row, request) {
  setAttribute(row, "data-testid", "request-row");
  setAttribute(row, "data-id", request.id);
  setAttribute(row, "data-phase", request.phase);
}

export function phase(request) {
  const [words] = say(PHASES, request.phase);
  return request.phase === "waiting" && request.position ? `${words}, place ${request.position}` : words;
}

function summary(shown, all) {
  if (all > shown) return `the newest ${count(shown)} of ${count(all)}`;
  return all ? count(all) : "";
}
