// Server-Sent Events, parsed as they arrive: https://html.spec.whatwg.org/multipage/server-sent-events.html
//
// Chunks may be cut anywhere, also between a CR and its LF. EventSource cannot be used for a POST, hence this.

const MAX_EVENT_CHARS = 16 * 1024 * 1024;

/** @typedef {{event: string, data: string}} SseEvent */

export class SseParser {
  #line = "";
  #afterCr = false;
  #event = "";
  /** @type {string[]} */
  #data = [];
  #size = 0;

  /**
   * Take the next piece of text.
   * @param {string} text
   * @returns {SseEvent[]} the events that it completed
   */
  push(text) {
    const events = [];
    let start = 0;
    if (this.#afterCr && text) {
      if (text.startsWith("\n")) start = 1;
      this.#afterCr = false;
    }
    const ends = /\r\n|\r|\n/g;
    ends.lastIndex = start;
    for (let match = ends.exec(text); match; match = ends.exec(text)) {
      this.#take(this.#line + text.slice(start, match.index), events);
      this.#line = "";
      start = ends.lastIndex;
      this.#afterCr = match[0] === "\r" && start === text.length;
    }
    this.#line += text.slice(start);
    this.#guard();
    return events;
  }

  /** Take the end: some servers forget the empty line after their last event. */
  end() {
    const events = [];
    if (this.#line) this.#take(this.#line, events);
    this.#dispatch(events);
    this.#line = "";
    return events;
  }

  #take(line, events) {
    if (line === "") return this.#dispatch(events);
    if (line.startsWith(":")) return undefined;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#event = value;
    if (field === "data") {
      this.#data.push(value);
      this.#size += value.length;
    }
    return undefined;
  }

  #dispatch(events) {
    if (this.#data.length) events.push({ event: this.#event || "message", data: this.#data.join("\n") });
    this.#event = "";
    this.#data = [];
    this.#size = 0;
  }

  #guard() {
    if (this.#line.length + this.#size > MAX_EVENT_CHARS) throw new Error("The answer holds an event without an end.");
  }
}

/**
 * The events of a response body, as they come. Ending the loop early cancels the body.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<SseEvent>}
 */
export async function* eventsOf(body) {
  const parser = new SseParser();
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) yield* parser.push(piece.value);
    yield* parser.end();
  } finally {
    reader.cancel().catch(() => {}); // an aborted body is already gone
  }
}
