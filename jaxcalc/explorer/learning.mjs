// A step of learning on one example: SGD or Adam, blame before the step and credit after it, like blame.py.

import { collect, walk } from "./backprop.mjs";
import { lastRow, surprise, trace } from "./model.mjs";
import { elementwise, inner, treeMap, zerosLike } from "./trees.mjs";

// An optimizer is a pair of functions: init(params) → state, update(grads, state) → {update, state}. SGD's state is null.
/** @type {(rate: number) => Optimizer} */
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
/** @type {(rate: number, b1: number, b2: number, epsilon?: number) => Optimizer} */
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

/** @type {(params: Params, tokens: number[], target: number, edits?: Edits) => number} */
export const loss = (params, tokens, target, edits) => surprise(lastRow(trace(params, tokens, edits).logits), target);

/** @type {(params: Params, tokens: number[], target: number, edits?: Edits) => Params} */
export const gradient = (params, tokens, target, edits) => collect(params, walk(params, tokens, target, edits));

// θ + t Δ
/** @type {(params: Params, update: Params, t?: number) => Params} */
export const along = (params, update, t = 1) =>
  treeMap(
    elementwise((theta, delta) => theta + t * delta),
    params,
    update,
  );

/** @type {(params: Params) => [string, (tree: Params) => any][]} */
const stagesOf = (params) => [
  ["embed", (tree) => tree.embed],
  ...params.blocks.flatMap(
    (_, i) =>
      /** @type {ReturnType<typeof stagesOf>} */ ([
        [`block ${i} attention`, (tree) => tree.blocks[i].attention],
        [`block ${i} mlp`, (tree) => tree.blocks[i].mlp],
      ]),
  ),
  ["output", (tree) => tree.output],
];

/** @type {(nats: Record<string, number>) => number} */
export const sumOf = (nats) => Object.values(nats).reduce((a, b) => a + b, 0);

// The predicted drop in loss −⟨g, Δ⟩, in nats: of each stage and in total.
/** @type {(grads: Params, update: Params) => Account} */
export function blame(grads, update) {
  const nats = Object.fromEntries(stagesOf(grads).map(([name, pick]) => [name, -inner(pick(grads), pick(update))]));
  return { nats, total: sumOf(nats) };
}

// ∂L/∂w of one weight, measured: the loss a little above and a little below its value.
/** @type {(params: Params, name: string, index: number, tokens: number[], target: number, edits?: Edits, h?: number) => number} */
export function finiteDifference(params, name, index, tokens, target, edits, h = 1e-6) {
  const leaf = name.split(".").reduce((node, key) => node[key], /** @type {any} */ (params));
  const value = leaf.data[index];
  /** @type {(offset: number) => number} */
  const lossAt = (offset) => {
    leaf.data[index] = value + offset;
    const result = loss(params, tokens, target, edits);
    leaf.data[index] = value;
    return result;
  };
  return (lossAt(h) - lossAt(-h)) / (2 * h);
}
