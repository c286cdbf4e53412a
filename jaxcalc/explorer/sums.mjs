// A number as the sum that it is: its largest terms, each a product of named factors, and the rest.

import { array, namedLeaves, placeOf } from "./trees.mjs";

const MOST_TERMS = 8;

// values: the value of each term; term(i): its label and its factors, asked for only where the term is shown.
/** @type {(about: SumAbout & { values: ArrayLike<number>, term: (i: number) => Omit<Term, "value"> }) => Sum} */
export function sumUp({ values, term, ...about }) {
  const shown = farthestFew(values, values.length === MOST_TERMS + 1 ? values.length : MOST_TERMS);
  const isShown = new Set(shown);
  let rest = 0;
  for (let i = 0; i < values.length; i++) if (!isShown.has(i)) rest += values[i];
  return {
    ...about,
    terms: shown.map((i) => ({ ...term(i), value: values[i] })),
    rest: values.length > shown.length ? { n: values.length - shown.length, value: rest } : null,
  };
}

// The indices of the n values that are farthest from 0, the farthest first, in one pass over what may be many.
/** @type {(values: ArrayLike<number>, n: number) => number[]} */
function farthestFew(values, n) {
  /** @type {number[]} */
  const found = [];
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]);
    if (found.length === n && !(size > Math.abs(values[found[n - 1]]))) continue;
    const at = found.findIndex((other) => size > Math.abs(values[other]));
    found.splice(at < 0 ? found.length : at, 0, i);
    if (found.length > n) found.pop();
  }
  return found;
}

// An element of an array by its place.
/** @type {(array: Leaf, ...place: number[]) => number} */
export const valueAt = ({ shape, data }, ...place) =>
  data[place.reduce((index, i, axis) => index * shape[axis] + i, 0)];

// "blocks.0.mlp.down[3, 12]"
/** @type {(params: Params, name: string, index: number) => string} */
export const weightName = (params, name, index) =>
  `${name}[${placeOf(namedLeaves(params)[name].shape, index).join(", ")}]`;

// A number that is a weight; from there one goes on to the weight's own arithmetic.
/** @type {(params: Params, name: string, index: number) => Factor} */
export const weightFactor = (params, name, index) => ({
  name: weightName(params, name, index),
  value: namedLeaves(params)[name].data[index],
  to: { kind: "weight", weight: { name, index } },
});

// "block 0 mlp" → "blocks.0.mlp"
/** @type {(path: Path) => string} */
export const dotted = (path) => (path ?? []).join(".");

// A row t of an array [T, …], as a view.
/** @type {(array: Leaf, t: number) => Float64Array} */
export function rowView({ shape, data }, t) {
  const size = data.length / shape[0];
  return data.subarray(t * size, (t + 1) * size);
}

// The index of the largest size.
/** @type {(values: Float64Array) => number} */
export const farthest = (values) => values.reduce((best, x, i) => (Math.abs(x) > Math.abs(values[best]) ? i : best), 0);

// The message to what several matrices [D, …] read, from the messages [T, …] to what they make.
/** @type {(paths: [weights: Leaf, message: Leaf][]) => Leaf} */
export function backThrough(paths) {
  const [[first, { shape }]] = paths;
  const [t, d] = [shape[0], first.shape[0]];
  const result = array([t, d]);
  for (const [weights, message] of paths) {
    for (let row = 0; row < t; row++) {
      const told = rowView(message, row);
      for (let i = 0; i < d; i++) {
        const by = rowView(weights, i);
        for (let j = 0; j < told.length; j++) result.data[row * d + i] += by[j] * told[j];
      }
    }
  }
  return result;
}
