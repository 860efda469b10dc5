// Building and updating the document without ever parsing text as HTML.
//
// Every string from the server or from a model is hostile: it reaches the page as a text node or an attribute value
// that cannot run. Updates touch only what differs, so focus, selection and scroll positions survive them.

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no #${id}`);
  return node;
}

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Show `text` in `node`, keeping its text node. */
export function setText(node, text) {
  const value = String(text);
  const first = node.firstChild;
  if (first && first.nodeType === Node.TEXT_NODE && !first.nextSibling) {
    if (first.data !== value) first.data = value;
  } else if (first || value) {
    node.textContent = value;
  }
}

/** Set an attribute if it differs; `null` removes it. */
export function setAttribute(node, name, value) {
  if (value === null || value === undefined) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, String(value));
  }
}

/** Show or hide; hidden nodes leave the accessibility tree too. */
export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/**
 * Children of one parent, each standing for an item of a list.
 *
 * `make()` returns `{node, update(item, ...context)}`. A node lives as long as its key is in the list, and is moved
 * only if the order of the survivors changed.
 */
export class KeyedChildren {
  #parent;
  #keyOf;
  #make;
  /** @type {Map<string, {node: HTMLElement, update: Function}>} */
  #parts = new Map();

  constructor(parent, keyOf, make) {
    this.#parent = parent;
    this.#keyOf = keyOf;
    this.#make = make;
  }

  render(items, ...context) {
    const wanted = new Map(items.map((item) => [this.#keyOf(item), item]));
    for (const [key, part] of this.#parts) {
      if (wanted.has(key)) continue;
      part.node.remove();
      this.#parts.delete(key);
    }
    let next = this.#parent.firstElementChild;
    for (const [key, item] of wanted) {
      const part = this.#part(key);
      part.update(item, ...context);
      if (part.node === next) next = next.nextElementSibling;
      else this.#parent.insertBefore(part.node, next);
    }
  }

  #part(key) {
    let part = this.#parts.get(key);
    if (!part) {
      part = this.#make();
      this.#parts.set(key, part);
    }
    return part;
  }
}

/** A keyed list of plain strings. */
export function textList(parent) {
  const make = () => {
    const node = el("li");
    return { node, update: (text) => setText(node, text) };
  };
  return new KeyedChildren(parent, (text) => text, make);
}
