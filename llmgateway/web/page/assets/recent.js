// Requests that have ended.

import { byId, setAttribute, setText, show } from "./dom.js";
import { DASH, milliseconds, moment, rate, short } from "./format.js";
import { Table } from "./table.js";
import { NO_MODEL, OUTCOMES, asked, say, who } from "./words.js";

const COLUMNS = [
  { name: "time", label: "Ended", text: (entry) => moment(Date.parse(entry.time) / 1000), title: (entry) => `request ${entry.id}` },
  { name: "model", label: "Model", heads: true, text: (entry) => entry.model ?? NO_MODEL, note: asked },
  { name: "outcome", label: "Outcome", text: outcome, tone: (entry) => say(OUTCOMES, outcomeOf(entry))[1], note: (entry) => entry.why },
  { name: "user", label: "User", text: who },
  { name: "key", label: "Key", text: (entry) => entry.key ?? DASH },
  { name: "provider", label: "Provider", text: provider },
  { name: "endpoint", label: "Endpoint", text: (entry) => entry.endpoint.replace(/^\/v1\//, ""), title: (entry) => entry.endpoint },
  { name: "affinity", label: "Affinity", text: (entry) => entry.affinity || DASH },
  { name: "in", label: "Tokens in", number: true, text: (entry) => tokens(entry, entry.prompt_tokens) },
  { name: "out", label: "Out", number: true, text: (entry) => tokens(entry, entry.completion_tokens) },
  { name: "speed", label: "Tok/s", number: true, text: (entry) => tokensPerSecond(entry) },
  { name: "queue", label: "Queued", number: true, text: (entry) => milliseconds(entry.queue_ms) },
  { name: "first", label: "First byte", number: true, text: (entry) => milliseconds(entry.first_byte_ms) },
  { name: "total", label: "Total", number: true, text: (entry) => milliseconds(entry.total_ms) },
];

/** @param {(entry: any) => void} open @returns {(snapshot: any) => void} */
export function recentTable(open) {
  const node = byId("recent-table");
  const table = new Table(node, COLUMNS, { keyOf: (entry) => `${entry.id} ${entry.time}`, mark, open });
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

export function outcome(entry) {
  const [words] = say(OUTCOMES, outcomeOf(entry));
  return entry.status && entry.status !== 200 ? `${words} (${entry.status})` : words;
}

/** How fast its answer was written: from its first byte if it was streamed, else as far as can be told. @returns {number | null} */
export function speed(entry) {
  const { completion_tokens: out, total_ms: total, first_byte_ms: first, queue_ms: queued } = entry;
  const took_ms = entry.stream && first !== null ? total - first : total - queued;
  return out && took_ms >= 1 ? (out * 1000) / took_ms : null;
}

function tokensPerSecond(entry) {
  const written = rate(speed(entry));
  return entry.estimated && written !== DASH ? `~${written}` : written;
}

function provider(entry) {
  if (!entry.provider) return DASH;
  return entry.attempts > 1 ? `${entry.provider} (try ${entry.attempts})` : entry.provider;
}

function tokens(entry, number) {
  const written = short(number);
  return entry.estimated && written !== DASH ? `~${written}` : written;
}
