// The model, stage by stage, like model.py, for one sequence: T and S positions, D width, H heads, K head width,
// F hidden width, V words. Numbers are float64.

import { heldShares, NO_EDITS } from "./interventions.mjs";
import { array } from "./trees.mjs";

// trace(params, tokens) → the logits [T, V] and every activation on the way there. Of edits, interventions, it sees the
// heads and the shares of attention; swapped tokens come as tokens.
/** @type {(params: Params, tokens: number[], edits?: Edits) => { logits: Leaf, activations: Activations }} */
export function trace(params, tokens, edits = NO_EDITS) {
  const embedded = embed(params.embed, tokens);
  /** @type {Activations["blocks"]} */
  const blocks = [];
  let x = embedded.residual;
  for (const [i, block] of params.blocks.entries()) {
    const attended = attention(block.attention, x, (head, to) => heldShares(edits, i, head, to));
    const fedForward = mlp(block.mlp, attended.residual);
    blocks.push({ attention: attended, mlp: fedForward });
    x = fedForward.residual;
  }
  const activations = { embed: embedded, blocks, output: output(params.output, x) };
  return { logits: activations.output.logits, activations };
}

// The embedding of each token plus the embedding of its position.
/** @type {(params: EmbedParams, tokens: number[]) => { residual: Leaf }} */
export function embed(params, tokens) {
  const d = params.token.shape[1];
  const residual = array([tokens.length, d]);
  tokens.forEach((token, t) => {
    for (let i = 0; i < d; i++)
      residual.data[t * d + i] = params.token.data[token * d + i] + params.position.data[t * d + i];
  });
  return { residual };
}

// Every position gathers from itself and those before it: pattern = softmax(query · key / √K), mixed = pattern · value.
// held(head, to): the shares of a row that are held, see heldShares.
/** @type {(params: AttentionParams, x: Leaf, held?: Held) => AttentionActivations} */
export function attention(params, x, held = () => []) {
  const normed = scale(rmsNorm(x), params.norm);
  const asked = project(normed, params.query),
    offered = project(normed, params.key);
  const query = rmsNorm(asked),
    key = rmsNorm(offered),
    value = project(normed, params.value);
  const [t, h, k] = query.shape;
  const pattern = array([h, t, t]),
    mixed = array([t, h, k]);
  for (let head = 0; head < h; head++) {
    for (let i = 0; i < t; i++) {
      const scores = [];
      for (let j = 0; j <= i; j++) {
        let dot = 0;
        for (let c = 0; c < k; c++) dot += query.data[(i * h + head) * k + c] * key.data[(j * h + head) * k + c];
        scores.push(dot / Math.sqrt(k));
      }
      attentionShares(scores, held(head, i)).forEach((share, j) => {
        pattern.data[(head * t + i) * t + j] = share;
        for (let c = 0; c < k; c++) mixed.data[(i * h + head) * k + c] += share * value.data[(j * h + head) * k + c];
      });
    }
  }
  const out = project(mixed, params.out, 2);
  return { normed, asked, offered, query, key, value, pattern, mixed, out, residual: sum(x, out) };
}

// The softmax of the scores. Where some shares are held, the others keep their ratios and make up the rest.
/** @type {(scores: number[], held: number[]) => number[]} */
function attentionShares(scores, held) {
  const rest = held.reduce((left, share) => left - share, 1);
  const free = softmax(scores.filter((_, j) => held[j] === undefined));
  return scores.map((_, j) => held[j] ?? rest * /** @type {number} */ (free.shift()));
}

// The feed-forward layer, which works on each position by itself.
/** @type {(params: MlpParams, x: Leaf) => MlpActivations} */
export function mlp(params, x) {
  const normed = scale(rmsNorm(x), params.norm);
  const before = project(normed, params.up);
  const hidden = array(
    before.shape,
    before.data.map((value) => Math.max(value, 0)),
  );
  const out = project(hidden, params.down);
  return { normed, hidden, out, residual: sum(x, out) };
}

// The stream → a score for each word that could come next.
/** @type {(params: OutputParams, x: Leaf) => OutputActivations} */
export function output(params, x) {
  const normed = scale(rmsNorm(x), params.norm);
  return { normed, logits: project(normed, params.unembed) };
}

// x times weights, summed over the last `nAxes` axes of x and the first `nAxes` axes of the weights.
/** @type {(x: Leaf, weights: Leaf, nAxes?: number) => Leaf} */
function project(x, weights, nAxes = 1) {
  const shape = [...x.shape.slice(0, x.shape.length - nAxes), ...weights.shape.slice(nAxes)];
  const n = x.shape[0],
    m = weights.shape.slice(nAxes).reduce((a, b) => a * b, 1),
    k = x.data.length / n;
  const product = array(shape),
    [from, by, to] = [x.data, weights.data, product.data];
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < k; j++) {
      const factor = from[i * k + j];
      if (factor === 0) continue; // as most hidden values are
      for (let c = 0, at = i * m, w = j * m; c < m; c++) to[at + c] += factor * by[w + c];
    }
  }
  return product;
}

// The same as NORM_EPSILON of jaxcalc/model.py, which a test checks.
export const EPSILON = 1e-6;

// x / √(mean of x² over the last axis + ε).
/** @type {(x: Leaf) => Leaf} */
export function rmsNorm(x) {
  const d = x.shape.at(-1);
  const result = array(x.shape);
  for (let start = 0; start < x.data.length; start += d) {
    const factor = 1 / Math.sqrt(meanSquare(x.data, start, d) + EPSILON);
    for (let i = start; i < start + d; i++) result.data[i] = x.data[i] * factor;
  }
  return result;
}

/** @type {(data: Float64Array, start: number, d: number) => number} */
export function meanSquare(data, start, d) {
  let total = 0;
  for (let i = start; i < start + d; i++) total += data[i] * data[i];
  return total / d;
}

/** @type {(x: Leaf, gain: Leaf) => Leaf} */
function scale(x, gain) {
  const d = gain.data.length;
  return array(
    x.shape,
    x.data.map((value, i) => value * gain.data[i % d]),
  );
}

/** @type {(x: Leaf, y: Leaf) => Leaf} */
export const sum = (x, y) =>
  array(
    x.shape,
    x.data.map((value, i) => value + y.data[i]),
  );

/** @type {(scores: Iterable<number>) => number[]} */
export function softmax(scores) {
  const most = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - most));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}

// The scores of the last position, which predict the next word.
/** @type {(rows: Leaf) => Float64Array} */
export const lastRow = ({ shape: [n, v], data }) => data.subarray((n - 1) * v, n * v);

// −ln p of one word in nats, from the scores. If the word is the likeliest, log1p keeps all digits of a p near 1;
// otherwise subtracting the largest score keeps the exponentials from overflowing.
/** @type {(scores: Float64Array, target: number) => number} */
export function surprise(scores, target) {
  const most = Math.max(...scores);
  const sumOf = (/** @type {number} */ from) =>
    scores.reduce((sum, score, word) => (word === target ? sum : sum + Math.exp(score - from)), 0);
  if (scores[target] === most) return Math.log1p(sumOf(most));
  return Math.log(sumOf(most) + Math.exp(scores[target] - most)) + most - scores[target];
}
