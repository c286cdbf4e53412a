// The actual drop in loss of a step, by stage, like blame.py.

import { along, blame, gradient, loss, sumOf } from "./learning.mjs";

// Blame with the mean gradient along the step instead of the gradient at its start. The way is cut in halves where the
// credits miss its drop most, until their sum is within 1 % of the whole drop (and what the pieces miss, in both
// directions, within 5 %), or until `most` gradients are spent. The remainder is what no stage has got. A generator,
// which yields after each gradient, so that a worker can be stopped.
/** @type {(params: Params, update: Params, tokens: number[], target: number, edits?: Edits, most?: number) => Generator<void, Credit>} */
export function* credit(params, update, tokens, target, edits, most = 1024) {
  const lossAt = (/** @type {number} */ t) => loss(along(params, update, t), tokens, target, edits);
  const ends = [0, 1].map((t) => ({ t, loss: lossAt(t) }));
  const drop = ends[0].loss - ends[1].loss;
  const rounding = 1e-13 * (ends[0].loss + ends[1].loss);
  /** @type {(missed: number[], share: number) => boolean} */
  const within = (missed, share) => Math.abs(total(missed)) <= share * Math.abs(drop) + rounding;
  const isClose = (/** @type {Piece[]} */ pieces) =>
    within(missedBy(pieces), 0.01) && within(missedBy(pieces).map(Math.abs), 0.05);

  /** @type {(from: PlaceOnStep, to: PlaceOnStep) => Generator<void, Piece>} */
  function* piece(from, to) {
    const length = to.t - from.t;
    /** @type {Record<string, number>} */
    const nats = {};
    for (const [node, weight] of gaussLegendre(NODES)) {
      const here = gradient(along(params, update, from.t + node * length), tokens, target, edits);
      for (const [name, value] of Object.entries(blame(here, update).nats))
        nats[name] = (nats[name] ?? 0) + weight * length * value;
      yield;
    }
    return { from, to, nats, missed: from.loss - to.loss - sumOf(nats) };
  }

  const pieces = [yield* piece(ends[0], ends[1])];
  while (pieces.length * NODES < most / 2 && !isClose(pieces)) {
    const worst = pieces.reduce((a, b) => (Math.abs(b.missed) > Math.abs(a.missed) ? b : a));
    const t = (worst.from.t + worst.to.t) / 2;
    const middle = { t, loss: lossAt(t) };
    const halves = [yield* piece(worst.from, middle), yield* piece(middle, worst.to)];
    pieces.splice(pieces.indexOf(worst), 1, ...halves);
  }
  const names = Object.keys(pieces[0].nats);
  const nats = Object.fromEntries(names.map((name) => [name, total(pieces.map((each) => each.nats[name]))]));
  return { nats, total: sumOf(nats), drop, remainder: drop - sumOf(nats) };
}

const NODES = 8; // of each piece
const total = (/** @type {number[]} */ values) => values.reduce((a, b) => a + b, 0);
const missedBy = (/** @type {Piece[]} */ pieces) => pieces.map(({ missed }) => missed);

// Runs a generator to its end and returns its result.
/** @type {<T>(generator: Generator<unknown, T>) => T} */
export function finish(generator) {
  for (;;) {
    const { done, value } = generator.next();
    if (done) return value;
  }
}

// Nodes and weights of Gauss-Legendre quadrature on 0 … 1: Newton's method finds the roots of the n-th Legendre
// polynomial.
/** @type {(n: number) => [number, number][]} */
export function gaussLegendre(n) {
  return Array.from({ length: n }, (_, i) => {
    let x = Math.cos((Math.PI * (i + 0.75)) / (n + 0.5)),
      slope = 1;
    for (let round = 0; round < 50; round++) {
      let [before, p] = [1, x];
      for (let k = 2; k <= n; k++) [before, p] = [p, ((2 * k - 1) * x * p - (k - 1) * before) / k];
      slope = (n * (x * p - before)) / (x * x - 1);
      x -= p / slope;
    }
    return [(x + 1) / 2, 1 / ((1 - x * x) * slope * slope)];
  });
}
