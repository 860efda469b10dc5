// Requests that have ended.

import { byId, setAttribute, setText, show } from "./dom.js";
import { DASH, milliseconds, moment, short } from "./format.js";
import { Table } from "./table.js";
import { OUTCOMES, say, who } from "./words.js";

const COLUMNS = [
  { name: "time", label: "Ended", text: (entry) => moment(Date.parse(entry.time) / 1000), title: (entry) => `request ${entry.id}` },
  { name: "model", label: "Model", heads: true, text: (entry) => entry.model ?? DASH, title: (entry) => entry.endpoint },
  { name: "outcome", label: "Outcome", text: outcome, tone: (entry) => say(OUTCOMES, outcomeOf(entry))[1] },
  { name: "user", label: "User", text: who, title: key },
  { name: "provider", label: "Provider", text: provider },
  { name: "in", label: "Tokens in", number: true, text: (entry) => tokens(entry, entry.prompt_tokens) },
  { name: "out", label: "Out", number: true, text: (entry) => tokens(entry, entry.completion_tokens) },
  { name: "queue", label: "Queued", number: true, text: (entry) => milliseconds(entry.queue_ms) },
  { name: "first", label: "First byte", number: true, text: (entry) => milliseconds(entry.first_byte_ms) },
  { name: "total", label: "Total", number: true, text: (entry) => milliseconds(entry.total_ms) },
];

/** @returns {(snapshot: any) => void} */
export function recentTable() {
  const node = byId("recent-table");
  const table = new Table(node, COLUMNS, { keyOf: (entry) => `${entry.id} ${entry.time}`, mark });
  return ({ recent }) => {
    table.render(recent);
    show(node.parentElement, recent.length > 0);
    show(byId("recent-empty"), recent.length === 0);
  };
}

function mark(row, entry) {
  setAttribute(row, "data-testid", "recent-row");
  setAttribute(row, "data-id", entry.id);
  setAttribute(row, "data-outcome", entry.outcome);
}

// A provider's own refusal (a 400, say) passes through, and is "ok" to the gateway, but not to the reader.
function outcomeOf({ outcome, status }) {
  return outcome === "ok" && status >= 400 ? "refused_by_server" : outcome;
}

function outcome(entry) {
  const [words] = say(OUTCOMES, outcomeOf(entry));
  return entry.status && entry.status !== 200 ? `${words} (${entry.status})` : words;
}

function key(entry) {
  return entry.key ? `key ${entry.key}` : null;
}

function provider(entry) {
  if (!entry.provider) return DASH;
  return entry.attempts > 1 ? `${entry.provider} (try ${entry.attempts})` : entry.provider;
}

function tokens(entry, number) {
  const written = short(number);
  return entry.estimated && written !== DASH ? `~${written}` : written;
}
