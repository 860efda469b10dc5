// Painting once a frame, however often something changes; and less often where painting takes long.

const REST = 6; // times as long as painting took is left to everything else

export class Frames {
  #paint;
  #frame = 0;
  #notBefore_ms = 0;

  /** @param {() => void} paint */
  constructor(paint) {
    this.#paint = paint;
  }

  /** Something has changed. */
  request() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#run());
  }

  /** Paint now: a frame may not come, as in a hidden tab. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#paint();
  }

  #run() {
    this.#frame = 0;
    const began = performance.now();
    if (began < this.#notBefore_ms) {
      this.request();
      return;
    }
    this.#paint();
    const ended = performance.now();
    this.#notBefore_ms = ended + REST * (ended - began);
  }
}
