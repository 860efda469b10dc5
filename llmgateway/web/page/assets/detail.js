// All that is known of one request, in flight or ended, for who clicks its row.

import { byId, el, setText, show } from "./dom.js";
import { DASH, count, duration, milliseconds, moment, rate } from "./format.js";
import { phase } from "./requests.js";
import { outcome, speed } from "./recent.js";
import { who } from "./words.js";

const IN_FLIGHT = [
  ["Request", (request) => request.id],
  ["Phase", phase],
  ["Model", (request) => request.model],
  ["Asked for as", (request) => request.asked_model],
  ["Endpoint", (request) => request.endpoint],
  ["User", who],
  ["Provider", (request) => request.provider],
  ["Age", (request) => duration(request.age_s)],
  ["Tokens out", (request) => count(request.tokens)],
];

const ENDED = [
  ["Request", (entry) => entry.id],
  ["Ended", (entry) => moment(Date.parse(entry.time) / 1000)],
  ["Outcome", outcome],
  ["Why", (entry) => entry.why],
  ["Model", (entry) => entry.model],
  ["Asked for as", (entry) => entry.asked_model],
  ["Endpoint", (entry) => entry.endpoint],
  ["User", who],
  ["Key", (entry) => entry.key],
  ["Provider", (entry) => entry.provider],
  ["Tries", (entry) => count(entry.attempts)],
  ["Affinity", (entry) => entry.affinity],
  ["Streamed", (entry) => (entry.stream ? "yes" : "no")],
  ["Queued", (entry) => milliseconds(entry.queue_ms)],
  ["First byte", (entry) => milliseconds(entry.first_byte_ms)],
  ["Total", (entry) => milliseconds(entry.total_ms)],
  ["Tokens in", (entry) => tokens(entry, entry.prompt_tokens)],
  ["of those cached", (entry) => count(entry.cached_tokens)],
  ["Tokens out", (entry) => tokens(entry, entry.completion_tokens)],
  ["of those reasoning", (entry) => count(entry.reasoning_tokens)],
  ["Tokens/s", (entry) => rate(speed(entry))],
  ["Bytes in", (entry) => count(entry.bytes_in)],
  ["Bytes out", (entry) => count(entry.bytes_out)],
];

export class Detail {
  #dialog = byId("detail");
  #list = byId("detail-list");
  #end = byId("detail-end");
  #id = "";
  #time = "";
  /** @type {any} */
  #snapshot = null;

  /** @param {(id: string) => void} end */
  constructor(end) {
    byId("detail-close").addEventListener("click", () => this.#dialog.close());
    this.#end.addEventListener("click", () => end(this.#id));
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // beside it
    });
  }

  /** @param {{id: string, time?: string}} item */
  open({ id, time = "" }) {
    [this.#id, this.#time] = [id, time];
    this.#fill();
    this.#dialog.showModal();
  }

  render(snapshot) {
    this.#snapshot = snapshot;
    if (this.#dialog.open) this.#fill();
  }

  // One that ends while it is looked at goes on being shown.
  #fill() {
    const { requests, recent } = this.#snapshot;
    const running = this.#time ? undefined : requests.find(({ id }) => id === this.#id);
    const ended = recent.find(({ id, time }) => id === this.#id && (!this.#time || time === this.#time));
    show(this.#end, Boolean(running));
    if (running ?? ended) this.#list.replaceChildren(...rows(running ?? ended, running ? IN_FLIGHT : ENDED));
    setText(byId("detail-title"), running ? "Request in flight" : "Request");
  }
}

function rows(item, fields) {
  const told = fields.map(([name, text]) => [name, String(text(item) ?? "") || DASH]);
  return told
    .filter(([, text]) => text !== DASH)
    .map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)));
}

const tokens = (entry, number) => (entry.estimated && number !== null ? `~${count(number)}` : count(number));
