// What a model writes, as far as it is Markdown.
//
// It is the one place where text becomes HTML: tags that a model writes are shown as text, and what the renderer makes is
// sanitised before it gets into the document. Nothing in it can load or run anything.

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.js";

const TAGS = (
  "p br hr em strong del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td a"
).split(" ");
const RULES = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const DEFINITIONS = /^ {0,3}\[[^\]]+\]:/m;

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => text.replace(/[&<>"']/g, (character) => ENTITIES[character]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ raw }) => escaped(raw),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

const fragment = (tokens) => purify.sanitize(marked.parser(tokens), RULES);

/** A text that grows, shown in `node`. Blocks that are complete are rendered once; only the last one changes. */
export class Markdown {
  #node;
  #text = "";
  #done = 0;
  /** @type {ChildNode[]} what stands for the part that may still change */
  #open = [];

  constructor(node) {
    this.#node = node;
  }

  /** @param {string} text all of it: what was shown, and more */
  show(text) {
    this.#text = text;
    const tokens = marked.lexer(text.slice(this.#done));
    let last = tokens.length - 1;
    while (last > 0 && tokens[last].type === "space") last -= 1;
    this.#open.forEach((node) => node.remove());
    const closed = tokens.slice(0, Math.max(0, last));
    closed.links = tokens.links;
    const rest = tokens.slice(Math.max(0, last));
    rest.links = tokens.links;
    if (closed.length) this.#node.append(fragment(closed));
    this.#done += closed.reduce((sum, token) => sum + token.raw.length, 0);
    const end = fragment(rest);
    this.#open = [...end.childNodes];
    this.#node.append(end);
  }

  /** Links may be defined far below the text that uses them. */
  end() {
    if (DEFINITIONS.test(this.#text)) this.#node.replaceChildren(fragment(marked.lexer(this.#text)));
  }
}
