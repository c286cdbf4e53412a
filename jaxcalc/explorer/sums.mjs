// A number as the sum that it is: its largest terms, each a product of named factors, and the rest.

import { largest } from "./numbers.mjs";
import { array, namedLeaves, placeOf } from "./trees.mjs";

const MOST_TERMS = 8;

// values: the value of each term; term(i): its label and its factors, asked for only where the term is shown.
/** @type {(about: SumAbout & { values: ArrayLike<number>, term: (i: number) => Omit<Term, "value"> }) => Sum} */
export function sumUp({ values, term, ...about }) {
  const sizes = Array.from(values, Math.abs);
  const order = largest(sizes, sizes.length);
  const shown = order.slice(0, order.length === MOST_TERMS + 1 ? order.length : MOST_TERMS);
  const others = order.slice(shown.length);
  return {
    ...about,
    terms: shown.map((i) => ({ ...term(i), value: values[i] })),
    rest: others.length ? { n: others.length, value: others.reduce((total, i) => total + values[i], 0) } : null,
  };
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
