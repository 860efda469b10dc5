// The stream of snapshots, kept alive.
//
// EventSource says neither why it failed nor whether it will try again, so after every failure it is closed, the
// status is probed (401: signed out), and a new one is opened after a growing pause.

import { status } from "./api.js";

const PAUSES_MS = [500, 1000, 2000, 4000, 8000, 15_000];
const SILENCE_MS = 30_000;

export class Live {
  #on;
  /** @type {EventSource | null} */
  #source = null;
  #failures = 0;
  #timer = 0;
  #running = false;

  /** @param {{snapshot: (snapshot: any) => void, state: (state: string) => void, signedOut: () => void}} on */
  constructor(on) {
    this.#on = on;
    window.addEventListener("online", () => this.retry());
  }

  start() {
    this.#running = true;
    this.#failures = 0;
    this.#on.state("connecting");
    this.#open();
  }

  stop() {
    this.#running = false;
    this.#close();
  }

  /** Try again now instead of when the pause is over. */
  retry() {
    if (this.#running && !this.#source) this.#open();
  }

  #open() {
    this.#close();
    const source = new EventSource("events");
    source.addEventListener("snapshot", (event) => this.#received(JSON.parse(event.data)));
    source.addEventListener("error", () => this.#lost());
    this.#source = source;
    this.#watch();
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #received(snapshot) {
    this.#failures = 0;
    this.#watch();
    this.#on.state("live");
    this.#on.snapshot(snapshot);
  }

  // A connection that died without a word (a laptop that slept, a router that forgot) raises no error for minutes.
  #watch() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), SILENCE_MS);
  }

  async #ask() {
    const source = this.#source;
    const snapshot = await status().catch(() => null);
    if (source !== this.#source) return;
    if (snapshot) this.#received(snapshot);
    else this.#lost();
  }

  async #lost() {
    this.#close();
    this.#on.state("reconnecting");
    const pause = PAUSES_MS[Math.min(this.#failures, PAUSES_MS.length - 1)];
    this.#failures += 1;
    this.#timer = setTimeout(() => this.retry(), pause * (1 + Math.random() / 2));
    await this.#probe();
  }

  async #probe() {
    try {
      const snapshot = await status();
      if (this.#running) this.#on.snapshot(snapshot);
    } catch (error) {
      if (this.#running && error.status === 401) {
        this.stop();
        this.#on.signedOut();
      }
    }
  }
}
