// A table described by a list of columns.

import { KeyedChildren, el, setAttribute, setText } from "./dom.js";

/**
 * @typedef {object} Column
 * @property {string} label        the column's heading
 * @property {string} name         class of its cells, and their place on a narrow screen
 * @property {(item: any, context: any) => string} text
 * @property {boolean} [number]    aligned right, in figures of equal width
 * @property {boolean} [heads]     the cell names its row
 * @property {(item: any) => string} [tone]  ok | busy | warn | bad | idle: a mark beside the text
 * @property {(item: any) => string | null} [title]  more words, for who asks
 */

export class Table {
  #rows;

  /**
   * @param {HTMLElement} table
   * @param {Column[]} columns
   * @param {{keyOf: (item: any) => string, mark: (row: HTMLElement, item: any) => void}} rows
   */
  constructor(table, columns, { keyOf, mark }) {
    const body = el("tbody", { role: "rowgroup" });
    table.append(heading(columns), body);
    this.#rows = new KeyedChildren(body, keyOf, () => row(columns, mark));
  }

  render(items, context) {
    this.#rows.render(items, context);
  }
}

function heading(columns) {
  const cells = columns.map((column) =>
    el("th", { scope: "col", role: "columnheader", class: classOf(column) }, column.label),
  );
  return el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...cells));
}

function row(columns, mark) {
  const cells = columns.map(cell);
  const node = el("tr", { role: "row" }, ...cells);
  const update = (item, context) => {
    mark(node, item);
    columns.forEach((column, index) => fill(cells[index], column, item, context));
  };
  return { node, update };
}

function cell(column) {
  const attributes = { class: classOf(column), "data-label": column.label };
  return column.heads
    ? el("th", { ...attributes, scope: "row", role: "rowheader" })
    : el("td", { ...attributes, role: "cell" });
}

function fill(node, column, item, context) {
  setText(node, column.text(item, context));
  if (column.tone) setAttribute(node, "data-tone", column.tone(item));
  if (column.title) setAttribute(node, "title", column.title(item));
}

function classOf(column) {
  return [column.name, column.number && "num", column.tone && "mark"].filter(Boolean).join(" ");
}
