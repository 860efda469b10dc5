// The try-it box: a short conversation with one of the models.

import { ApiError } from "./api.js";
import { complete } from "./completion.js";
import { KeyedChildren, byId, el, setAttribute, setText, show } from "./dom.js";
import { Turn } from "./turn.js";

const MOST_TURNS = 12;
const NEAR_END_PX = 40;

export class Chat {
  #announce;
  #signedOut;
  #log = byId("try-log");
  #input = byId("try-input");
  #model = byId("try-model");
  #options = new KeyedChildren(this.#model, (option) => option.id, modelOption);
  /** @type {{question: string, turn: Turn}[]} those that were answered, oldest first */
  #turns = [];
  /** @type {Turn | null} */
  #latest = null;
  /** @type {AbortController | null} */
  #running = null;

  /** @param {{announce: (text: string) => void, signedOut: () => void}} on */
  constructor({ announce, signedOut }) {
    this.#announce = announce;
    this.#signedOut = signedOut;
    byId("try-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    byId("try-stop").addEventListener("click", () => this.#running?.abort());
    byId("try-new").addEventListener("click", () => this.#restart());
    this.#controls();
  }

  /** Offer the models that can answer now. */
  render({ providers }) {
    const chosen = this.#model.value;
    const options = modelsOf(providers);
    // A model that went away stays chosen: a message must not go to another one unnoticed.
    const gone = chosen && !options.some(({ id }) => id === chosen);
    this.#options.render(gone ? [...options, { id: chosen, note: "not available" }] : options);
    if (!chosen && options.length) this.#model.value = (options.find(({ note }) => note) ?? options[0]).id;
    this.#controls();
  }

  #key(event) {
    if (event.key === "Escape") this.#running?.abort();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#send();
  }

  async #send() {
    const question = this.#input.value.trim();
    const model = this.#model.value;
    if (!question || !model || this.#running) return;
    const turn = this.#begin(model, question);
    try {
      await this.#stream(turn, model, this.#messages(question));
      turn.end("done");
      this.#announce("The answer is complete.");
    } catch (error) {
      this.#failed(turn, error);
    }
    this.#finish(turn, question);
  }

  #begin(model, question) {
    this.#running = new AbortController();
    this.#log.querySelector("#try-empty")?.remove();
    this.#latest?.retire();
    const turn = new Turn(model, question);
    this.#latest = turn;
    this.#log.append(turn.node);
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#input.value = "";
    this.#controls();
    return turn;
  }

  async #stream(turn, model, messages) {
    for await (const piece of complete(model, messages, this.#running.signal)) {
      const { scrollTop, clientHeight, scrollHeight } = this.#log;
      turn.add(piece);
      if (scrollHeight - scrollTop - clientHeight < NEAR_END_PX) this.#log.scrollTop = this.#log.scrollHeight;
    }
  }

  #messages(question) {
    const before = this.#turns.flatMap(({ question: content, turn }) => [
      { role: "user", content },
      { role: "assistant", content: turn.content },
    ]);
    return [...before, { role: "user", content: question }];
  }

  #failed(turn, error) {
    if (this.#running.signal.aborted) {
      turn.end("stopped");
      this.#announce("Stopped.");
      return;
    }
    const broke = "The connection broke before the answer was complete.";
    turn.end("failed", error instanceof ApiError ? error.message : broke);
    if (error.status === 401) this.#signedOut();
  }

  // What was not answered at all is not part of the conversation; the question goes back to be sent again.
  #finish(turn, question) {
    this.#running = null;
    if (turn.content) this.#turns = [...this.#turns, { question, turn }].slice(-MOST_TURNS);
    else if (!this.#input.value) this.#input.value = question;
    this.#controls();
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #restart() {
    this.#running?.abort();
    this.#turns = [];
    this.#log.replaceChildren();
    this.#input.focus();
    this.#controls();
  }

  #controls() {
    const [send, stop] = [byId("try-send"), byId("try-stop")];
    const running = this.#running !== null;
    const focused = document.activeElement;
    show(stop, running);
    setAttribute(send, "disabled", running || !this.#model.value ? "" : null);
    show(byId("try-new"), this.#log.querySelector(".turn") !== null);
    if (running && focused === send) stop.focus();
    if (!running && focused === stop) this.#input.focus();
  }
}

function modelsOf(providers) {
  const able = providers.filter(({ state }) => state === "online" || state === "warming");
  const loaded = new Map();
  for (const { id, loaded: now } of able.flatMap(({ models }) => models)) loaded.set(id, loaded.get(id) || now === true);
  const options = [...loaded].map(([id, now]) => ({ id, note: now ? "loaded" : "" }));
  return options.sort((a, b) => a.id.localeCompare(b.id));
}

function modelOption() {
  const node = el("option");
  const update = ({ id, note }) => {
    setAttribute(node, "value", id);
    setText(node, note ? `${id} (${note})` : id);
  };
  return { node, update };
}
