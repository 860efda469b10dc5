// A table described by a list of columns.

import { KeyedChildren, el, setAttribute, setText, show } from "./dom.js";

const MOST_CARDS = 10; // on a narrow screen, where rows are cards; see tables.css

/**
 * @typedef {object} Column
 * @property {string} label        the column's heading
 * @property {string} name         class of its cells, and their place on a narrow screen
 * @property {(item: any, context: any) => string} text
 * @property {boolean} [number]    aligned right, in figures of equal width
 * @property {boolean} [heads]     the cell names its row, and opens it
 * @property {(item: any) => string} [tone]  ok | busy | warn | bad | idle: a mark beside the text
 * @property {(item: any) => string} [note]  a second line
 * @property {(item: any) => string | null} [title]  more words, for who asks
 * @property {(item: any) => void} [run]  the text is on a button that does this
 */

export class Table {
  #table;
  #rows;
  #more = el("button", { type: "button", class: "quiet more", hidden: "" });

  /**
   * @param {HTMLElement} table
   * @param {Column[]} columns
   * @param {{keyOf: (item: any) => string, mark: (row: HTMLElement, item: any) => void, open?: (item: any) => void}} rows
   */
  constructor(table, columns, { keyOf, mark, open }) {
    const body = el("tbody", { role: "rowgroup" });
    table.append(heading(columns), body);
    table.parentElement.after(this.#more);
    this.#more.addEventListener("click", () => {
      setAttribute(table, "data-all", "true");
      show(this.#more, false);
    });
    this.#rows = new KeyedChildren(body, keyOf, () => row(columns, mark, open));
    this.#table = table;
  }

  render(items, context) {
    this.#rows.render(items, context);
    setText(this.#more, `Show all ${items.length}`);
    show(this.#more, items.length > MOST_CARDS && !this.#table.hasAttribute("data-all"));
  }
}

function heading(columns) {
  const cells = columns.map((column) =>
    el("th", { scope: "col", role: "columnheader", class: classOf(column) }, column.label),
  );
  return el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...cells));
}

function row(columns, mark, open) {
  let shown = null;
  const cells = columns.map((column) => cell(column, () => shown, open));
  const node = el("tr", { role: "row", class: open ? "opens" : "" }, ...cells.map((each) => each.node));
  if (open) {
    node.addEventListener("click", (event) => {
      const selecting = String(getSelection() ?? "") !== "";
      if (!selecting && !event.target.closest("button")) open(shown);
    });
  }
  const update = (item, context) => {
    shown = item;
    mark(node, item);
    columns.forEach((column, index) => fill(cells[index], column, item, context));
  };
  return { node, update };
}

/** Make a cell; its text stands in the cell itself, or in a part of it. */
function cell(column, item, open) {
  const attributes = { class: classOf(column), "data-label": column.label };
  const node = column.heads
    ? el("th", { ...attributes, scope: "row", role: "rowheader" })
    : el("td", { ...attributes, role: "cell" });
  const act = column.run ?? (column.heads ? open : undefined);
  let text = node;
  if (act) {
    text = el("button", { type: "button", class: column.run ? "quiet" : "link" });
    text.addEventListener("click", () => act(item()));
  } else if (column.note) {
    text = el("span");
  }
  const note = column.note ? el("span", { class: "why" }) : null;
  if (text !== node) node.append(text);
  if (note) node.append(note);
  return { node, text, note };
}

function fill({ node, text, note }, column, item, context) {
  setText(text, column.text(item, context));
  if (note) setText(note, column.note(item) ?? "");
  if (column.tone) setAttribute(node, "data-tone", column.tone(item));
  if (column.title) setAttribute(node, "title", column.title(item));
}

function classOf(column) {
  return [column.name, column.number && "num", column.tone && "mark"].filter(Boolean).join(" ");
}
