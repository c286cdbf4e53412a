// Optimizers for a whole training, like optimizers.py: a rate that changes with the step, momentum, weight decay.

import { times, transposed } from "./matrices.mjs";
import { array, fromLeaves, namedLeaves, zerosLike } from "./trees.mjs";

const [B1, B2] = [0.9, 0.99]; // how slowly Adam forgets: its mean of gradients, and that of their squares
const TINY = 1e-8;
const ADAM_SHARE = 0.25; // the arrays that Muon leaves to Adam learn at this share of the rate

// The rate of steps 0, 1, …: it rises in a line to its peak, then falls along a cosine to 1 % of it and stays there.
/** @type {(peak: number, nSteps: number, warmup?: number) => (step: number) => number} */
export function scheduleOf(peak, nSteps, warmup = 50) {
  const rise = Math.min(warmup, Math.floor(nSteps / 2));
  return (step) => {
    if (step < rise) return (peak * (step + 1)) / (rise + 1);
    const along = Math.min((step - rise) / (nSteps - rise), 1);
    return peak * (0.01 + (0.99 * (1 + Math.cos(Math.PI * along))) / 2);
  };
}

// init(params) → state; update(grads, state, params) → {update, state}. Weight decay is multiplied by the rate and
// applies to the hidden matrices only.
/** @type {(name: string, rateAt: (step: number) => number, decay: number) => TrainingOptimizer} */
export function trainingOptimizer(name, rateAt, decay) {
  return {
    init: (params) => ({ count: 0, mu: zerosLike(params), nu: zerosLike(params) }),
    update(grads, { count, mu, nu }, params) {
      /** @type {Record<string, Record<string, Leaf>>} */
      const made = { update: {}, mu: {}, nu: {} };
      const [g, m, v, w] = [grads, mu, nu, params].map((tree) => namedLeaves(tree));
      for (const [leaf, { shape, data: gradient }] of Object.entries(g)) {
        const hidden = HIDDEN.test(leaf);
        const stepOf = LEAF_STEPS[name === "muon" && !hidden ? "nadam" : name];
        const step = stepOf({
          shape,
          g: gradient,
          mu: m[leaf].data,
          nu: v[leaf].data,
          pull: hidden ? w[leaf].data.map((weight) => decay * weight) : null,
          rate: rateAt(count),
          t: count + 1,
          inputs: leaf.endsWith(".out") ? 2 : 1,
        });
        for (const [part, data] of Object.entries(step)) made[part][leaf] = array(shape, data);
      }
      const [update, nextMu, nextNu] = [made.update, made.mu, made.nu].map(fromLeaves);
      return { update, state: { count: count + 1, mu: nextMu, nu: nextNu } };
    },
  };
}

const HIDDEN = /\.(query|key|value|out|up|down)$/;

/** @type {(beta: number, old: Row, now: Row) => Row} */
const movingMean = (beta, old, now) => old.map((value, i) => beta * value + (1 - beta) * now[i]);

/** @type {(rate: number, direction: Row, pull: Row | null) => Row} */
const against = (rate, direction, pull) => direction.map((value, i) => -rate * (value + (pull ? pull[i] : 0)));

// The step of one array: its gradient g, running means mu and nu, decay `pull`, rate and number t → {update, mu, nu}.
/** @type {Record<string, (leaf: LeafStep) => { update: Row; mu: Row; nu: Row }>} */
const LEAF_STEPS = {
  // Gradient descent with momentum 0.9.
  sgd({ g, mu, nu, pull, rate }) {
    const next = mu.map((value, i) => 0.9 * value + g[i] + (pull ? pull[i] : 0));
    return { update: against(rate, next, null), mu: next, nu };
  },
  // Kingma and Ba 2015; Loshchilov and Hutter 2019 for the decay.
  adamw({ g, mu, nu, pull, rate, t }) {
    const next = movingMean(B1, mu, g);
    return {
      ...adamStep(
        next.map((value) => value / (1 - B1 ** t)),
        g,
        nu,
        pull,
        rate,
        t,
      ),
      mu: next,
    };
  },
  // Adam that looks one step ahead with its momentum (Dozat 2016).
  nadam({ g, mu, nu, rate, t }) {
    const next = movingMean(B1, mu, g);
    return { ...adamStep(ahead(B1, next, g, t), g, nu, null, ADAM_SHARE * rate, t), mu: next };
  },
  // Jordan et al. 2024: a step that changes all directions of a matrix equally.
  muon({ shape, g, mu, nu, pull, rate, t, inputs }) {
    const next = movingMean(0.95, mu, g);
    const n = shape.slice(0, inputs).reduce((a, b) => a * b),
      m = g.length / n;
    const even = orthogonal(ahead(0.95, next, g, t), n, m),
      size = Math.sqrt(Math.max(1, m / n));
    return {
      update: against(
        rate,
        even.map((value) => size * value),
        pull,
      ),
      mu: next,
      nu,
    };
  },
};

/** @type {(direction: Row, g: Row, nu: Row, pull: Row | null, rate: number, t: number) => { update: Row; nu: Row }} */
function adamStep(direction, g, nu, pull, rate, t) {
  const next = nu.map((value, i) => B2 * value + (1 - B2) * g[i] * g[i]);
  const scaled = direction.map((value, i) => value / (Math.sqrt(next[i] / (1 - B2 ** t)) + TINY));
  return { update: against(rate, scaled, pull), nu: next };
}

// Nesterov's momentum, corrected for means that start at 0.
/** @type {(beta: number, mu: Row, g: Row, t: number) => Row} */
const ahead = (beta, mu, g, t) =>
  mu.map((value, i) => (beta * value) / (1 - beta ** (t + 1)) + ((1 - beta) * g[i]) / (1 - beta ** t));

// Five rounds of Newton and Schulz move all singular values of x [n, m] near 1.
/** @type {(x: Row, n: number, m: number) => Row} */
function orthogonal(x, n, m) {
  if (n > m) return transposed(orthogonal(transposed(x, n, m), m, n), m, n);
  const norm = Math.sqrt(x.reduce((total, value) => total + value * value, 0)) + TINY;
  let y = x.map((value) => value / norm);
  for (let round = 0; round < 5; round++) {
    const a = times(y, transposed(y, n, m), n, m, n),
      aa = times(a, a, n, n, n);
    const polynomial = a.map((value, i) => -4.775 * value + 2.0315 * aa[i]);
    const change = times(polynomial, y, n, n, m);
    y = y.map((value, i) => 3.4445 * value + change[i]);
  }
  return y;
}
