// Images that go with the next message: chosen, dropped or pasted, shown small, and taken away again.
//
// They stay in the page: what is kept over a reload has no room for them.

import { KeyedChildren, el, setAttribute, setText, show } from "./dom.js";
import { count } from "./format.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MOST = 8;
const MOST_BYTES = 20_000_000;

/** @typedef {{id: string, name: string, url: string}} Image */

export class Images {
  #list;
  #error;
  #thumbnails;
  /** @type {Image[]} */
  #images = [];
  #made = 0;

  /** @param {{button: HTMLElement, picker: HTMLInputElement, input: HTMLElement, list: HTMLElement, error: HTMLElement}} parts */
  constructor({ button, picker, input, list, error }) {
    this.#list = list;
    this.#error = error;
    this.#thumbnails = new KeyedChildren(list, ({ id }) => id, () => thumbnail((id) => this.#remove(id)));
    button.addEventListener("click", () => picker.click());
    picker.addEventListener("change", () => {
      this.add(picker.files);
      picker.value = ""; // so that the same file can be chosen again
    });
    input.addEventListener("paste", (event) => this.#dropped(event, event.clipboardData));
    input.addEventListener("drop", (event) => this.#dropped(event, event.dataTransfer));
  }

  /** Give the images for a message; the next one begins without any. @returns {Image[]} */
  take() {
    const taken = this.#images;
    this.put([]);
    return taken;
  }

  /** @param {Image[]} images */
  put(images) {
    this.#images = images;
    this.#thumbnails.render(images);
    show(this.#list, images.length > 0);
    setText(this.#error, "");
  }

  get some() {
    return this.#images.length > 0;
  }

  /** @param {Iterable<File>} files */
  async add(files) {
    const read = await Promise.all([...files].map((file) => this.#read(file)));
    const good = read.filter(({ url }) => url);
    const complaints = read.map(({ why }) => why).filter(Boolean);
    const images = [...this.#images, ...good];
    if (images.length > MOST) complaints.push(`A message takes ${MOST} images at most.`);
    this.put(images.slice(0, MOST));
    setText(this.#error, complaints.join(" "));
  }

  #dropped(event, transfer) {
    const files = [...(transfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  #remove(id) {
    this.put(this.#images.filter((each) => each.id !== id));
  }

  /** @param {File} file */
  async #read(file) {
    if (!KINDS.includes(file.type)) return { why: `${file.name} is no PNG, JPEG, WebP or GIF.` };
    if (file.size > MOST_BYTES) return { why: `${file.name} has more than ${count(MOST_BYTES)} bytes.` };
    try {
      this.#made += 1;
      return { id: `${this.#made}`, name: file.name, url: await dataUrl(file) };
    } catch {
      return { why: `${file.name} cannot be read.` };
    }
  }
}

/** What a message says, as the API wants it: text, or text and images. */
export function content(text, images) {
  if (!images.length) return text;
  const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return text ? [{ type: "text", text }, ...parts] : parts;
}

/** @param {Image[]} images */
export function pictures(images) {
  return images.map(({ name, url }) => el("img", { src: url, alt: name || "image", class: "picture" }));
}

function thumbnail(remove) {
  let shown = "";
  const picture = el("img", { class: "picture" });
  const button = el("button", { type: "button", class: "quiet", "data-testid": "try-image-remove" }, "Remove");
  button.addEventListener("click", () => remove(shown));
  const update = ({ id, name, url }) => {
    shown = id;
    setAttribute(picture, "src", url);
    setAttribute(picture, "alt", name || "image");
    setAttribute(button, "aria-label", `Remove ${name || "image"}`);
  };
  return { node: el("li", { "data-testid": "try-image" }, picture, button), update };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(String(reader.result)));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
