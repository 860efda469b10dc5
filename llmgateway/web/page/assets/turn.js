// One question and its answer in the conversation.

import { copy } from "./clipboard.js";
import { el, setText, show } from "./dom.js";
import { milliseconds, plural, rate } from "./format.js";
import { pictures } from "./images.js";
import { Markdown } from "./markdown.js";

const COPIED_MS = 1500;

/** @typedef {{model: string, question: string, content: string, reasoning: string, note: string, error: string, pictures?: number}} Told */

export class Turn {
  content = "";
  #model;
  #asked;
  #said;
  /** @type {import("./images.js").Image[]} */
  images;
  #lost = 0; // images that were not kept over a reload
  #reasoning = "";
  #thinking = el("pre", { class: "said" });
  #details = el("details", { class: "thinking", hidden: "" }, el("summary", {}, "Thinking"), this.#thinking);
  #answer = el("div", { class: "said markdown", "data-testid": "try-answer", "aria-busy": "true" });
  #markdown = new Markdown(this.#answer);
  #error = el("p", { class: "form-error", role: "alert" });
  #note = el("p", { class: "note" }, "Waiting for the first token …");
  #copy = el("button", { type: "button", class: "quiet", "data-testid": "try-copy" }, "Copy");
  #again = el("button", { type: "button", class: "quiet again", "data-testid": "try-again" }, "Regenerate");
  #actions = el("div", { class: "turn-actions", hidden: "" }, this.#copy, this.#again);
  #shown = { content: "", reasoning: "" };
  #started = performance.now();
  #firstToken = 0;
  #pieces = 0;
  /** @type {number | null} */
  #tokens = null;

  /**
   * @param {string} model
   * @param {string} question
   * @param {import("./images.js").Image[]} images
   * @param {(turn: Turn) => void} again
   */
  constructor(model, question, images, again) {
    this.#model = model;
    this.#asked = question;
    this.images = images;
    this.#said = el("div", { class: "said" }, ...pictures(images), question);
    const you = el("div", { class: "message you" }, el("h3", {}, "You"), this.#said);
    const it = el("div", { class: "message it" }, el("h3", {}, model), this.#details, this.#answer, this.#error, this.#note, this.#actions);
    this.node = el("article", { class: "turn" }, you, it);
    this.#details.open = true;
    this.#copy.addEventListener("click", () => this.#copyAnswer());
    this.#again.addEventListener("click", () => again(this));
  }

  get question() {
    return this.#asked;
  }

  /** A turn as it was told before a reload. @param {Told} told */
  static from(told, again) {
    const turn = new Turn(told.model, told.question, [], again);
    turn.#lost = told.pictures ?? 0;
    if (turn.#lost) turn.#said.append(el("p", { class: "note" }, `${plural(turn.#lost, "image")}, not kept over the reload`));
    turn.content = told.content;
    turn.#reasoning = told.reasoning;
    turn.#finish(told.error, told.note);
    return turn;
  }

  /** @returns {Told} */
  tell() {
    const [error, note] = [this.#error.textContent, this.#note.textContent];
    const pictured = this.images.length + this.#lost;
    const told = { model: this.#model, question: this.#asked, content: this.content, reasoning: this.#reasoning, note, error };
    return pictured ? { ...told, pictures: pictured } : told;
  }

  /** Take a piece; `paint` shows it. @param {import("./completion.js").Piece} piece */
  add(piece) {
    if (piece.kind === "usage") {
      this.#tokens = piece.tokens;
      return;
    }
    this.#pieces += 1;
    this.#firstToken ||= performance.now();
    const text = piece.text.replaceAll("\r", "");
    if (piece.kind === "content") this.content += text;
    else this.#reasoning += text;
  }

  /** Show what has come since it was last called. */
  paint() {
    if (this.#reasoning !== this.#shown.reasoning) {
      show(this.#details, true);
      append(this.#thinking, this.#reasoning.slice(this.#shown.reasoning.length));
      this.#shown.reasoning = this.#reasoning;
    }
    if (this.content !== this.#shown.content) {
      if (!this.#shown.content) this.#details.open = false;
      this.#markdown.show(this.content);
      this.#shown.content = this.content;
    }
    if (this.#pieces && this.#answer.hasAttribute("aria-busy")) setText(this.#note, "");
  }

  /** @param {"done" | "stopped" | "failed"} how @param {string} [why] */
  end(how, why = "") {
    this.#finish(why, [how === "stopped" ? "Stopped" : "", ...this.#measures()].filter(Boolean).join(" · "));
  }

  #finish(error, note) {
    this.paint();
    this.#markdown.end();
    this.#answer.removeAttribute("aria-busy");
    this.#details.open = false;
    setText(this.#error, error);
    setText(this.#note, note);
    show(this.#copy, Boolean(this.content));
    show(this.#actions, true);
  }

  /** Only the newest answer is the one that tests and scripts look for. */
  retire() {
    this.#answer.removeAttribute("data-testid");
  }

  async #copyAnswer() {
    setText(this.#copy, (await copy(this.content)) ? "Copied" : "Not allowed");
    setTimeout(() => setText(this.#copy, "Copy"), COPIED_MS);
  }

  #measures() {
    if (!this.#pieces) return [];
    const writing_s = (performance.now() - this.#firstToken) / 1000;
    const tokens = this.#tokens ?? this.#pieces;
    const sign = this.#tokens === null ? "~" : "";
    const measures = [`first token after ${milliseconds(this.#firstToken - this.#started)}`, sign + plural(tokens, "token")];
    return writing_s > 0.2 ? [...measures, `${sign}${rate(tokens / writing_s)} tok/s`] : measures;
  }
}

function append(node, text) {
  if (node.firstChild) node.firstChild.appendData(text);
  else node.append(text);
}
