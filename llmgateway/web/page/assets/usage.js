// Tokens of the day, by user and model, with a sum.

import { byId, setAttribute, setText, show } from "./dom.js";
import { count, plural, short } from "./format.js";
import { Table } from "./table.js";
import { NO_MODEL, who } from "./words.js";

const COLUMNS = [
  { name: "model", label: "Model", heads: true, text: modelOf, title: why },
  { name: "user", label: "User", text: who },
  { name: "requests", label: "Requests", number: true, text: (row) => count(row.requests) },
  { name: "prompt", label: "Prompt", number: true, text: (row) => tokens(row, "prompt_tokens"), title },
  { name: "cached", label: "Cached", number: true, text: (row) => short(row.cached_tokens) },
  { name: "completion", label: "Completion", number: true, text: (row) => tokens(row, "completion_tokens"), title },
  { name: "reasoning", label: "Reasoning", number: true, text: (row) => short(row.reasoning_tokens) },
];

const OTHERS = "(others)";
const SUMMED = ["requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "estimated"];

/** @returns {(snapshot: any) => void} */
export function usageTable() {
  const node = byId("usage-table");
  const table = new Table(node, COLUMNS, { keyOf: (row) => JSON.stringify([row.user, row.person, row.model, Boolean(row.sum)]), mark });
  return ({ usage }) => {
    table.render(usage.rows.length > 1 ? [...usage.rows, sum(usage.rows)] : usage.rows);
    show(node.parentElement, usage.rows.length > 0);
    show(byId("usage-empty"), usage.rows.length === 0);
    setText(byId("usage-summary"), summary(usage));
  };
}

// The last row of many may stand for all that are not shown.
function modelOf(row) {
  return row.model || (row.user === OTHERS ? OTHERS : NO_MODEL);
}

function why(row) {
  return modelOf(row) === NO_MODEL ? "Requests that reached no server: refused, or ended before that" : null;
}

function summary({ day, rows }) {
  const estimated = sum(rows).estimated;
  return estimated ? `${day}; ~ includes estimates for ${plural(estimated, "request")}` : day;
}

function sum(rows) {
  const start = { user: "", model: "All", sum: true };
  return rows.reduce((total, row) => ({ ...total, ...added(total, row) }), { ...start, ...added({}, {}) });
}

function added(a, b) {
  return Object.fromEntries(SUMMED.map((name) => [name, (a[name] ?? 0) + (b[name] ?? 0)]));
}

function tokens(row, name) {
  return row.estimated ? `~${short(row[name])}` : short(row[name]);
}

function title(row) {
  return row.estimated ? `estimated for ${row.estimated} of ${plural(row.requests, "request")}` : null;
}

function mark(node, row) {
  setAttribute(node, "data-testid", row.sum ? "usage-sum" : "usage-row");
  setAttribute(node, "class", row.sum ? "sum" : null);
}
