// The try-it box: a short conversation with one of the models.

import { ApiError } from "./api.js";
import { complete } from "./completion.js";
import { KeyedChildren, byId, setAttribute, show } from "./dom.js";
import { Frames } from "./frames.js";
import { Images, content } from "./images.js";
import { conversation, forget, keep, keepModel, lastModel } from "./memory.js";
import { choice, modelOption, modelsOf } from "./models.js";
import { Turn } from "./turn.js";

const MOST_TURNS = 12;
const NEAR_END_PX = 40;

export class Chat {
  #announce;
  #signedOut;
  #log = byId("try-log");
  #empty = byId("try-empty");
  #input = byId("try-input");
  #model = byId("try-model");
  #system = byId("try-system");
  #temperature = byId("try-temperature");
  #options = new KeyedChildren(this.#model, (option) => option.id, modelOption);
  /** @type {Turn[]} oldest first; those without an answer are no part of the conversation */
  #turns = [];
  /** @type {Turn | null} */
  #latest = null;
  /** @type {AbortController | null} */
  #running = null;
  #following = true;
  #images = new Images({
    button: byId("try-attach"),
    picker: byId("try-file"),
    input: this.#input,
    list: byId("try-images"),
    error: byId("try-image-error"),
  });
  #blind = new Set(); // models that are known to take no images
  #frames = new Frames(() => this.#paint());
  #user = "";
  #wanted = ""; // the model that was used last

  /** @param {{announce: (text: string) => void, signedOut: () => void}} on */
  constructor({ announce, signedOut }) {
    this.#announce = announce;
    this.#signedOut = signedOut;
    byId("try-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#model.addEventListener("change", () => {
      keepModel(this.#user, this.#model.value);
      this.#controls();
    });
    byId("try-stop").addEventListener("click", () => this.#running?.abort());
    byId("try-new").addEventListener("click", () => this.#restart());
    this.#log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    window.addEventListener("pagehide", () => this.#keep());
    this.#controls();
  }

  /** Offer the models that can answer now. */
  render({ providers, aliases, viewer }) {
    if (!this.#user) this.#recall(viewer.user);
    const chosen = this.#model.value;
    const options = modelsOf(providers, aliases);
    this.#blind = new Set(options.filter(({ sees }) => sees === false).map(({ id }) => id));
    // A model that went away stays chosen: a message must not go to another one unnoticed.
    const gone = chosen && !options.some(({ id }) => id === chosen);
    this.#options.render(gone ? [...options, { id: chosen, note: "not available" }] : options);
    if (!chosen && options.length) this.#model.value = choice(options, this.#wanted);
    this.#controls();
  }

  /** Forget what was said, also in the browser's storage. */
  forget() {
    this.#user = "";
    this.#images.put([]);
    forget();
  }

  // -- what outlasts a reload

  #recall(user) {
    this.#user = user;
    const told = conversation(user);
    this.#wanted = told?.model || lastModel(user);
    if (!told) return;
    this.#system.value = told.system ?? "";
    this.#temperature.value = told.temperature ?? "";
    this.#input.value ||= told.draft ?? "";
    byId("try-settings").open = Boolean(told.system || told.temperature);
    this.#turns = (told.turns ?? []).map((each) => Turn.from(each, (turn) => this.#regenerate(turn)));
    this.#turns.forEach((turn) => this.#add(turn));
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #keep() {
    if (!this.#user) return;
    const turns = this.#running && this.#latest ? [...this.#turns, this.#latest] : this.#turns;
    keep(this.#user, {
      turns: turns.map((turn) => turn.tell()).filter(({ content }) => content),
      model: this.#model.value,
      system: this.#system.value,
      temperature: this.#temperature.value,
      draft: this.#input.value,
    });
  }

  // -- a message and its answer

  #key(event) {
    if (event.key === "Escape") this.#running?.abort();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    const question = this.#input.value.trim();
    if (!(question || this.#images.some) || !this.#model.value || this.#running) return;
    this.#input.value = "";
    this.#ask(question, this.#images.take());
  }

  #regenerate(turn) {
    if (this.#running || !this.#model.value) return;
    this.#turns = this.#turns.filter((each) => each !== turn);
    turn.node.remove();
    if (this.#input.value === turn.question) {
      this.#input.value = ""; // it was given back, unanswered
      if (turn.images.length) this.#images.take();
    }
    this.#ask(turn.question, turn.images);
  }

  async #ask(question, images) {
    const model = this.#model.value;
    keepModel(this.#user, model);
    const request = { model, messages: this.#messages(question, images), ...this.#settings() };
    const turn = this.#begin(model, question, images);
    try {
      for await (const piece of complete(request, this.#running.signal)) {
        turn.add(piece);
        this.#frames.request();
      }
      turn.end("done");
      this.#announce("The answer is complete.");
    } catch (error) {
      this.#failed(turn, error);
    }
    this.#finish(turn);
  }

  #begin(model, question, images) {
    this.#running = new AbortController();
    const turn = new Turn(model, question, images, (which) => this.#regenerate(which));
    this.#add(turn);
    this.#following = true;
    this.#frames.request();
    this.#controls();
    return turn;
  }

  #add(turn) {
    this.#empty.remove();
    this.#latest?.retire();
    this.#latest = turn;
    this.#log.append(turn.node);
  }

  // The one place where the answer's layout is asked for, once a frame at most.
  #paint() {
    this.#latest?.paint();
    if (this.#following) this.#log.scrollTop = this.#log.scrollHeight;
  }

  #scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.#log;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  #settings() {
    const temperature = this.#temperature.valueAsNumber;
    return Number.isFinite(temperature) ? { temperature } : {};
  }

  #messages(question, images) {
    const system = this.#system.value.trim();
    const before = this.#turns.flatMap((turn) => [
      { role: "user", content: content(turn.question, turn.images) },
      { role: "assistant", content: turn.content },
    ]);
    return [...(system ? [{ role: "system", content: system }] : []), ...before, { role: "user", content: content(question, images) }];
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
  #finish(turn) {
    this.#running = null;
    if (turn.content && turn.node.isConnected) this.#turns = [...this.#turns, turn].slice(-MOST_TURNS);
    else if (!turn.content && !this.#input.value && !this.#images.some) {
      this.#input.value = turn.question;
      this.#images.put(turn.images);
    }
    this.#frames.flush();
    this.#controls();
    this.#keep();
  }

  #restart() {
    this.#running?.abort();
    this.#images.put([]);
    this.#turns = [];
    this.#latest = null;
    this.#log.replaceChildren(this.#empty);
    this.#input.focus();
    this.#keep();
    this.#controls();
  }

  #controls() {
    const [send, stop] = [byId("try-send"), byId("try-stop")];
    const running = this.#running !== null;
    const talking = this.#log.querySelector(".turn") !== null;
    const focused = document.activeElement;
    show(stop, running);
    show(byId("try-attach"), !this.#blind.has(this.#model.value));
    setAttribute(send, "disabled", running || !this.#model.value ? "" : null);
    show(byId("try-new"), talking);
    setAttribute(byId("gateway"), "data-talking", talking ? "true" : null);
    if (running && focused === send) stop.focus();
    if (!running && focused === stop) this.#input.focus();
  }
}
