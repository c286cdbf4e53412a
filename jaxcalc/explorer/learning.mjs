// A step of learning on one example: SGD or Adam, blame before the step and credit after it, like blame.py.

import { collect, walk } from "./backprop.mjs";
import { lastRow, surprise, trace } from "./model.mjs";
import { elementwise, inner, treeMap, zerosLike } from "./trees.mjs";

// An optimizer is a pair of functions: init(params) → state, update(grads, state) → {update, state}. SGD's state is null.
export const sgd = (rate) => ({
  init: () => null,
  update: (grads, state) => ({
    update: treeMap(
      elementwise((g) => -rate * g),
      grads,
    ),
    state,
  }),
});

// Kingma and Ba 2015: the running mean of the gradients divided by the root of the running mean of their squares.
export const adam = (rate, b1, b2, epsilon = 1e-8) => ({
  init: (params) => ({ count: 0, mu: zerosLike(params), nu: zerosLike(params) }),
  update: (grads, state) => {
    const count = state.count + 1;
    const mu = treeMap(
      elementwise((mean, g) => b1 * mean + (1 - b1) * g),
      state.mu,
      grads,
    );
    const nu = treeMap(
      elementwise((mean, g) => b2 * mean + (1 - b2) * g * g),
      state.nu,
      grads,
    );
    const correction1 = 1 - b1 ** count, // both means start at 0 and are too small at first
      correction2 = 1 - b2 ** count;
    const step = elementwise((m, v) => (-rate * (m / correction1)) / (Math.sqrt(v / correction2) + epsilon));
    return { update: treeMap(step, mu, nu), state: { count, mu, nu } };
  },
});

export const loss = (params, tokens, target) => surprise(lastRow(trace(params, tokens).logits), target);

export const gradient = (params, tokens, target) => collect(params, walk(params, tokens, target));

// θ + t Δ
export const along = (params, update, t = 1) =>
  treeMap(
    elementwise((theta, delta) => theta + t * delta),
    params,
    update,
  );

const stagesOf = (params) => [
  ["embed", (tree) => tree.embed],
  ...params.blocks.flatMap((_, i) => [
    [`block ${i} attention`, (tree) => tree.blocks[i].attention],
    [`block ${i} mlp`, (tree) => tree.blocks[i].mlp],
  ]),
  ["output", (tree) => tree.output],
];

// The predicted drop in loss −⟨g, Δ⟩, in nats: of each stage and in total.
export function blame(grads, update) {
  const nats = Object.fromEntries(
    stagesOf(grads).map(([name, pick]) => [name, -inner(pick(grads), pick(update))]),
  );
  return { nats, total: sumOf(nats) };
}

// The actual drop in loss, by stage: blame with the mean gradient along the step instead of the gradient at its start.
// The way is cut in halves where the credits miss its drop most, until their sum is within 1 % of the whole drop (and what
// the pieces miss, in both directions, within 5 %), or until `most` gradients are spent. The remainder is what no stage
// has got. A generator, which yields after each gradient, so that a worker can be stopped.
export function* credit(params, update, tokens, target, most = 1024) {
  const lossAt = (t) => loss(along(params, update, t), tokens, target);
  let n = 0;
  function* piece(from, to) {
    const length = to.t - from.t,
      nats = {};
    for (const [node, weight] of gaussLegendre(N_NODES)) {
      const here = blame(gradient(along(params, update, from.t + node * length), tokens, target), update).nats;
      for (const name of Object.keys(here)) nats[name] = (nats[name] ?? 0) + weight * length * here[name];
      yield ++n;
    }
    const drop = from.loss - to.loss;
    return { from, to, nats, missed: drop - sumOf(nats) };
  }
  const [start, end] = [0, 1].map((t) => ({ t, loss: lossAt(t) }));
  const drop = start.loss - end.loss;
  const rounding = 1e-13 * (start.loss + end.loss);
  const within = (missed, share) => Math.abs(missed) <= share * Math.abs(drop) + rounding;
  const isClose = (pieces) =>
    within(pieces.reduce((sum, { missed }) => sum + missed, 0), 0.01) &&
    within(pieces.reduce((sum, { missed }) => sum + Math.abs(missed), 0), 0.05);
  const pieces = [yield* piece(start, end)];
  while (n < most && !isClose(pieces)) {
    const worst = pieces.reduce((a, b) => (Math.abs(b.missed) > Math.abs(a.missed) ? b : a));
    const t = (worst.from.t + worst.to.t) / 2;
    const middle = { t, loss: lossAt(t) };
    const halves = [yield* piece(worst.from, middle), yield* piece(middle, worst.to)];
    pieces.splice(pieces.indexOf(worst), 1, ...halves);
  }
  const nats = Object.fromEntries(
    Object.keys(pieces[0].nats).map((name) => [name, pieces.reduce((sum, each) => sum + each.nats[name], 0)]),
  );
  const total = sumOf(nats);
  return { nats, total, drop, remainder: drop - total };
}

const N_NODES = 8;
const sumOf = (nats) => Object.values(nats).reduce((a, b) => a + b, 0);

// Runs a generator to its end and returns its result.
export function finish(generator) {
  for (;;) {
    const { done, value } = generator.next();
    if (done) return value;
  }
}

// Nodes and weights of Gauss-Legendre quadrature on 0 … 1: Newton's method finds the roots of the n-th Legendre
// polynomial.
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

// ∂L/∂w of one weight, measured: the loss a little above and a little below its value.
export function finiteDifference(params, name, index, tokens, target, h = 1e-6) {
  const leaf = name.split(".").reduce((node, key) => node[key], params);
  const value = leaf.data[index];
  const lossAt = (offset) => {
    leaf.data[index] = value + offset;
    const result = loss(params, tokens, target);
    leaf.data[index] = value;
    return result;
  };
  return (lossAt(h) - lossAt(-h)) / (2 * h);
}
