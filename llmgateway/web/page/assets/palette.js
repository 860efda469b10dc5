// The look of each provider's line: eight colours, then the same again with other dashes.
//
// The colours are CSS variables, for light and dark; the legend and the cards use them through classes.

const COLOURS = 8;
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];

/** @param {number} index the provider's place in the list */
export const seriesClass = (index) => `series-${index % COLOURS} dash-${dashIndex(index)}`;

/** @returns {{stroke: string, dash: number[]}} as of now; it changes with the colour scheme */
export function seriesLook(index) {
  return { stroke: cssColour(`--series-${index % COLOURS}`), dash: DASHES[dashIndex(index)] };
}

/** The value of a CSS variable. */
export const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const dashIndex = (index) => Math.floor(index / COLOURS) % DASHES.length;
