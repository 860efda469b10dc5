// One question and its answer in the conversation.

import { el, setText, show } from "./dom.js";
import { milliseconds, plural, rate } from "./format.js";

export class Turn {
  content = "";
  #question;
  #thinking = el("pre", { class: "said" });
  #details = el("details", { class: "thinking", hidden: "" }, el("summary", {}, "Thinking"), this.#thinking);
  #answer = el("div", { class: "said", "data-testid": "try-answer", "aria-busy": "true" });
  #error = el("p", { class: "form-error", role: "alert" });
  #note = el("p", { class: "note" }, "Waiting for the first token …");
  #started = performance.now();
  #firstToken = 0;
  #pieces = 0;
  /** @type {number | null} */
  #tokens = null;

  constructor(model, question) {
    this.#question = el("div", { class: "said" }, question);
    const you = el("div", { class: "message you" }, el("h3", {}, "You"), this.#question);
    const it = el("div", { class: "message it" }, el("h3", {}, model), this.#details, this.#answer, this.#error, this.#note);
    this.node = el("article", { class: "turn" }, you, it);
    this.#details.open = true;
  }

  /** @param {import("./completion.js").Piece} piece */
  add(piece) {
    if (piece.kind === "usage") {
      this.#tokens = piece.tokens;
      return;
    }
    this.#pieces += 1;
    this.#firstToken ||= performance.now();
    if (piece.kind === "content") this.#say(piece.text);
    else this.#think(piece.text);
    setText(this.#note, "");
  }

  /** @param {"done" | "stopped" | "failed"} how @param {string} [why] */
  end(how, why = "") {
    this.#answer.removeAttribute("aria-busy");
    this.#details.open = false;
    setText(this.#error, why);
    setText(this.#note, [how === "stopped" ? "Stopped" : "", ...this.#measures()].filter(Boolean).join(" · "));
  }

  /** Only the newest answer is the one that tests and scripts look for. */
  retire() {
    this.#answer.removeAttribute("data-testid");
  }

  #say(text) {
    if (!this.content) this.#details.open = false;
    this.content += text;
    append(this.#answer, text);
  }

  #think(text) {
    show(this.#details, true);
    append(this.#thinking, text);
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
