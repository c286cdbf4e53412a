// Where a model puts the number words: the places of their embeddings on the two directions of most variance, as pca of
// lens.py finds them, and how far these places are in the order of the numbers.

import { overlap } from "./boxes.mjs";
import { NUMBER_WORDS, numberOf } from "./words.mjs";

export const FEWEST_ON_MAP = 3; // two words are in order on every axis
const MOST_SWEEPS = 40; // of Jacobi's method, which needs fewer than ten
const CLEAR_DIFFERENCE = 0.1; // of two correlations

// The words of the map: each word that states a number, by value, and then the words that act on numbers.
/** @type {(task: TaskData) => MapWord[]} */
export function wordsOnMap({ vocabulary, operations }) {
  const words = vocabulary.map((text, id) => ({ id, text, value: numberOf([text]) }));
  const numbers = words.flatMap(({ id, text, value }) =>
    value === null ? [] : /** @type {MapWord} */ ({ id, text, value, kind: kindOf(value) }),
  );
  const acts = (/** @type {string} */ text) => operations.includes(text) || NUMBER_WORDS.includes(text);
  return [
    ...numbers.sort((a, b) => Number(a.value) - Number(b.value)),
    ...words.flatMap(({ id, text, value }) =>
      value === null && acts(text) ? /** @type {MapWord} */ ({ id, text, value, kind: "acting" }) : [],
    ),
  ];
}

/** @type {(value: number) => string} */
const kindOf = (value) => (value < 10 ? "ones" : value < 20 ? "teens" : "tens");

// Number words that follow each other: each line of the map goes through one of these rows.
/** @type {(words: MapWord[]) => { kind: string, name: string, words: MapWord[] }[]} */
export function rowsOnMap(words) {
  const rows = ["ones", "teens", "tens"].map((kind) => {
    const among = words.filter((word) => word.kind === kind && word.value !== 0);
    return { kind, name: `${among[0]?.text} … ${among.at(-1)?.text}`, words: among };
  });
  return rows.filter(({ words: { length } }) => length >= FEWEST_ON_MAP);
}

// The rows of the token embeddings that belong to these words.
/** @type {(params: Params, words: MapWord[]) => Float64Array[]} */
export function embeddingsOf({ embed: { token } }, words) {
  const width = token.shape[1];
  return words.map(({ id }) => token.data.subarray(id * width, (id + 1) * width));
}

/** @type {(a: ArrayLike<number>, b: ArrayLike<number>) => number} */
function scalarProduct(a, b) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
}

/** @type {(points: Float64Array[]) => Float64Array} */
const centreOf = (points) =>
  points[0].map((_, i) => points.reduce((total, point) => total + point[i], 0) / points.length);

/** @type {(points: Float64Array[], centre: Float64Array) => Float64Array[]} */
const around = (points, centre) => points.map((point) => point.map((x, i) => x - centre[i]));

// The eigenvectors of a symmetric matrix, that of the largest eigenvalue first, by Jacobi's method: it turns two axes at
// a time so that their entry off the diagonal becomes zero, until all of these are.
/** @type {(matrix: Float64Array[]) => { values: number[], vectors: Float64Array[] }} */
export function eigenvectors(matrix) {
  const a = matrix.map((row) => row.slice());
  const vectors = a.map((row, i) => row.map((_, j) => Number(i === j)));
  const size = a.reduce((total, row) => total + scalarProduct(row, row), 0);
  for (let sweep = 0; sweep < MOST_SWEEPS; sweep++) {
    let off = 0;
    for (let p = 0; p < a.length; p++) for (let q = 0; q < p; q++) off += a[p][q] ** 2;
    if (off <= 1e-32 * size) break;
    for (let p = 0; p < a.length; p++) for (let q = 0; q < p; q++) turnAxes(a, vectors, p, q);
  }
  const order = Array.from(a.keys()).sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => a[i][i]), vectors: order.map((i) => vectors[i]) };
}

// Makes a[p][q] zero (Golub and Van Loan, section 8.5.2).
/** @type {(a: Float64Array[], vectors: Float64Array[], p: number, q: number) => void} */
function turnAxes(a, vectors, p, q) {
  if (a[p][q] === 0) return;
  const slope = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const tangent = (slope < 0 ? -1 : 1) / (Math.abs(slope) + Math.sqrt(1 + slope * slope));
  const cosine = 1 / Math.sqrt(1 + tangent * tangent),
    sine = tangent * cosine;
  /** @type {(rows: Float64Array[], p: number, q: number) => void} */
  const turnRows = (rows, p, q) => {
    const [first, second] = [rows[p], rows[q]];
    rows[p] = first.map((x, i) => cosine * x - sine * second[i]);
    rows[q] = first.map((x, i) => sine * x + cosine * second[i]);
  };
  for (const row of a) [row[p], row[q]] = [cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]];
  turnRows(a, p, q);
  turnRows(vectors, p, q);
}

// The two directions of most variance of some points, from their scalar products, and the centre of the points. Each
// direction points to where the larger values are.
/** @type {(points: Float64Array[], values: number[]) => MapAxes} */
export function principalAxes(points, values) {
  const centre = centreOf(points);
  const centred = around(points, centre);
  const products = centred.map((a) => Float64Array.from(centred, (b) => scalarProduct(a, b)));
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const directions = eigenvectors(products)
    .vectors.slice(0, 2)
    .map((shares) => {
      const direction = centre.map((_, i) => centred.reduce((sum, point, n) => sum + shares[n] * point[i], 0));
      const length = Math.sqrt(scalarProduct(direction, direction));
      const sign = values.reduce((sum, value, n) => sum + (value - mean) * shares[n], 0) < 0 ? -1 : 1;
      return direction.map((x) => (length ? (sign * x) / length : 0));
    });
  return { centre, directions };
}

/** @type {(axes: MapAxes, points: Float64Array[]) => [number, number][]} */
export const placesOn = ({ centre, directions: [first, second] }, points) =>
  around(points, centre).map((point) => [scalarProduct(first, point), scalarProduct(second, point)]);

// The share of the variance of these points that each axis holds.
/** @type {(axes: MapAxes, points: Float64Array[]) => number[]} */
export function variancesOn({ directions }, points) {
  const centred = around(points, centreOf(points));
  const total = centred.reduce((sum, point) => sum + scalarProduct(point, point), 0);
  return directions.map((axis) => centred.reduce((sum, point) => sum + scalarProduct(axis, point) ** 2, 0) / total);
}

// Pearson's correlation; 0 where one of the two does not vary.
/** @type {(a: number[], b: number[]) => number} */
export function pearson(a, b) {
  /** @type {(values: number[]) => number[]} */
  const aroundMean = (values) => {
    const mean = values.reduce((x, y) => x + y, 0) / values.length;
    return values.map((value) => value - mean);
  };
  const [x, y] = [aroundMean(a), aroundMean(b)];
  const size = Math.sqrt(scalarProduct(x, x) * scalarProduct(y, y));
  return size ? scalarProduct(x, y) / size : 0;
}

// The place of each value in the order of all, from 0; equal values share the middle of theirs.
/** @type {(values: number[]) => number[]} */
const ranksOf = (values) =>
  values.map(
    (value) =>
      values.filter((other) => other < value).length + (values.filter((other) => other === value).length - 1) / 2,
  );

// Spearman's correlation: Pearson's of the ranks.
/** @type {(a: number[], b: number[]) => number} */
export const spearman = (a, b) => pearson(ranksOf(a), ranksOf(b));

// The correlation of the number words' values with their places on both axes: of all in proportion and in order, and in
// order of the words on each line.
/** @type {(words: MapWord[], places: [number, number][]) => MapOrder[]} */
export function orderOnMap(words, places) {
  /** @type {(name: string, measure: typeof pearson, among: MapWord[]) => MapOrder} */
  const order = (name, measure, among) => {
    const values = among.map(({ value }) => Number(value));
    const at = among.map((word) => places[words.indexOf(word)]);
    const on = [0, 1].map((axis) =>
      measure(
        values,
        at.map((place) => place[axis]),
      ),
    );
    return { name, on, byChance: chanceOf(among.length) };
  };
  const numbers = words.filter(({ value }) => value !== null);
  return [
    order(`all ${numbers.length}, proportion`, pearson, numbers),
    order(`all ${numbers.length}`, spearman, numbers),
    ...rowsOnMap(words).map(({ name, words: among }) => order(name, spearman, among)),
  ];
}

// The correlation that n values in random order stay within, in nineteen of twenty orders.
/** @type {(n: number) => number} */
const chanceOf = (n) => Math.min(1.96 / Math.sqrt(n - 1), 1);

// Whether the words are more in order now than before, in a word.
/** @type {(now: number, before: number) => string} */
export function comparedOrder(now, before) {
  if (Math.abs(now - before) < CLEAR_DIFFERENCE) return "about as much in order as";
  return now > before ? "more in order than" : "less in order than";
}

// Where labels of these widths go, as [dx, dy] from their points: to the side where they cover least.
/** @type {(points: [number, number][], widths: number[], height: number) => [number, number][]} */
export function labelsBeside(points, widths, height) {
  const mark = 6; // from a point to the edge of its mark
  /** @type {(x: number, y: number, w: number, h: number) => Box} */
  const around = (x, y, w, h) => ({ left: x - w, top: y - h, right: x + w, bottom: y + h });
  const taken = points.map(([x, y]) => around(x, y, mark, mark));
  return points.map(([x, y], n) => {
    const [w, h] = [widths[n] / 2, height / 2];
    /** @type {[number, number][]} */
    const sides = [1, -1, 0].flatMap((across) =>
      [0, -1, 1].flatMap((down) => {
        if (!across && !down) return [];
        const gap = across && down ? mark - 2 : mark + 2;
        return /** @type {[number, number][]} */ ([[across * (gap + w), down * (gap + h)]]);
      }),
    );
    const boxes = sides.map(([dx, dy]) => around(x + dx, y + dy, w, h));
    const covered = boxes.map((box) => taken.reduce((sum, other) => sum + overlap(box, other), 0));
    const best = covered.indexOf(Math.min(...covered));
    taken.push(boxes[best]);
    return sides[best];
  });
}
