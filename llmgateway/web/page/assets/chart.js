// Tokens per second over the last hour, a line for each provider; its legend is a table that says the same in numbers.

import uPlot from "./vendor/uPlot.esm.js";
import { KeyedChildren, byId, el, setAttribute, setText, show } from "./dom.js";
import { minute, rate } from "./format.js";
import { cssColour, seriesClass, seriesLook } from "./palette.js";

const MINUTE_S = 60;
const HEIGHT_REM = 11;

export class Throughput {
  #box = byId("chart");
  #legend;
  #plot = null;
  #names = "";
  #drawn = "";
  /** @type {any} */
  #snapshot = null;
  #at = null; // index of the minute under the pointer
  #alone = ""; // the provider that is picked out

  constructor() {
    const body = byId("legend").querySelector("tbody");
    this.#legend = new KeyedChildren(body, (row) => row.name, () => legendRow((name) => this.#pick(name)));
    new ResizeObserver(() => this.#fit()).observe(this.#box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#rebuild());
  }

  render(snapshot) {
    this.#snapshot = snapshot;
    show(byId("throughput"), snapshot.providers.length > 0);
    const names = JSON.stringify(snapshot.providers.map(({ name }) => name));
    if (names !== this.#names) {
      this.#names = names;
      this.#rebuild();
    } else {
      this.#redraw();
    }
    this.#renderLegend();
    setAttribute(this.#box, "aria-label", inWords(snapshot.providers));
  }

  #redraw() {
    const data = dataOf(this.#snapshot);
    const drawn = JSON.stringify(data);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    this.#plot?.setData(data);
  }

  #rebuild() {
    this.#plot?.destroy();
    if (!this.#snapshot || !this.#box.clientWidth) {
      this.#plot = null;
      return;
    }
    const names = this.#snapshot.providers.map(({ name }) => name);
    const options = { ...this.#size(), ...optionsOf(names, (index) => this.#point(index)) };
    const data = dataOf(this.#snapshot);
    this.#drawn = JSON.stringify(data);
    this.#plot = new uPlot(options, data, this.#box);
    this.#focus();
  }

  #fit() {
    if (!this.#plot) this.#rebuild();
    else if (this.#box.clientWidth) this.#plot.setSize(this.#size());
  }

  #size() {
    return { width: this.#box.clientWidth, height: Math.round(HEIGHT_REM * rootPx()) };
  }

  #point(index) {
    if (index === this.#at) return;
    this.#at = index;
    this.#renderLegend();
  }

  #pick(name) {
    this.#alone = this.#alone === name ? "" : name;
    this.#focus();
    this.#renderLegend();
  }

  #focus() {
    const index = this.#snapshot.providers.findIndex(({ name }) => name === this.#alone);
    this.#plot?.setSeries(index < 0 ? null : index + 1, { focus: true });
  }

  #renderLegend() {
    const { providers, gateway } = this.#snapshot;
    const at = this.#at;
    setText(byId("legend-at"), at === null ? "Last min" : minute(minutesUntil(gateway.now)[at]));
    const value = ({ hour }) => (at === null ? lastMinute(hour, gateway.now) : hour[at]);
    const rows = providers.map((provider, index) => ({ ...provider, index, value: value(provider) }));
    this.#legend.render(rows, this.#alone);
  }
}

function legendRow(pick) {
  let name = "";
  const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
  const label = el("span");
  const button = el("button", { type: "button", class: "legend-name", "aria-pressed": "false" }, swatch, label);
  const [now, mean, peak] = [0, 1, 2].map(() => el("td", { class: "num" }));
  button.addEventListener("click", () => pick(name));
  const update = (row, alone) => {
    name = row.name;
    setText(label, name);
    setAttribute(button, "title", `${name}: pick out its line`);
    setAttribute(button, "aria-pressed", String(name === alone));
    setAttribute(swatch, "class", `swatch ${seriesClass(row.index)}`);
    setText(now, rate(row.value));
    setText(mean, rate(meanOf(row.hour)));
    setText(peak, rate(Math.max(0, row.value, ...row.hour)));
  };
  return { node: el("tr", {}, el("th", { scope: "row" }, button), now, mean, peak), update };
}

const meanOf = (hour) => (hour.length ? hour.reduce((sum, value) => sum + value, 0) / hour.length : 0);

/** The mean of the 60 seconds until now: of this minute so far, and of the rest of the one before. */
function lastMinute(hour, now_s) {
  const before = 1 - (now_s % MINUTE_S) / MINUTE_S;
  return (hour.at(-1) ?? 0) + (hour.at(-2) ?? 0) * before;
}

function minutesUntil(now_s) {
  const last = Math.floor(now_s / MINUTE_S) * MINUTE_S;
  return Array.from({ length: 60 }, (_, index) => last - (59 - index) * MINUTE_S);
}

function dataOf({ providers, gateway }) {
  return [minutesUntil(gateway.now), ...providers.map(({ hour }) => hour)];
}

function inWords(providers) {
  const total = providers.reduce((sum, provider) => sum + meanOf(provider.hour), 0);
  const what = "Chart of tokens per second over the last hour, by provider";
  return `${what}; ${rate(total)} on average in all. The table has the numbers.`;
}

const rootPx = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

function optionsOf(names, point) {
  const font = `${Math.round(0.75 * rootPx())}px system-ui, sans-serif`;
  const axis = { font, stroke: cssColour("--muted"), ticks: { show: false }, grid: { stroke: cssColour("--line"), width: 1 } };
  const hours = (_, ticks) => ticks.map(minute);
  return {
    legend: { show: false },
    padding: [8, 4, 0, 0],
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    focus: { alpha: 0.15 },
    scales: { y: { range: (_, _low, high) => [0, Math.max(10, high * 1.08)] } },
    axes: [
      { ...axis, grid: { show: false }, size: 1.75 * rootPx(), gap: 6, values: hours },
      { ...axis, size: 2.5 * rootPx(), gap: 6, space: 32, values: (_, ticks) => ticks.map(rate) },
    ],
    series: [{}, ...names.map((label, index) => ({ label, width: 1.75, points: { show: false }, ...seriesLook(index) }))],
    hooks: { setCursor: [(plot) => point(plot.cursor.idx ?? null)] },
  };
}
