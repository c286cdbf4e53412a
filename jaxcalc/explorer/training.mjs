// Learning from a whole batch at once, fast: the forward and the backward pass of model.mjs and backprop.mjs over all
// sequences of a batch, with the mean surprise of the answer words as the loss. A position's row is
// sequence · length + position. Only the last positions predict something, so the last block computes only those.

import { times, transposed } from "./matrices.mjs";
import { EPSILON } from "./model.mjs";
import { zerosLike } from "./trees.mjs";

/** @type {(x: Row, y: Row) => Row} */
const addRows = (x, y) => x.map((value, i) => value + y[i]);

// Sequences of one length → {loss, grads}. The model reads all tokens but the last, and the last nTargets are to be
// predicted.
/** @type {(params: Params, sequences: number[][], nTargets: number) => { loss: number; grads: Params }} */
export function batchGradient(params, sequences, nTargets) {
  const read = sequences.map((tokens) => tokens.slice(0, -1));
  const { logits, layers } = batchForward(params, read, nTargets);
  const targets = sequences.flatMap((tokens) => tokens.slice(-nTargets));
  const { loss, message } = crossEntropy(logits, targets);
  return { loss, grads: batchBackward(params, read, layers, message) };
}

// The logits [B · last, V] of the last positions, and what each layer needs on the way back.
/** @type {(params: Params, sequences: number[][], last: number) => { logits: Row; layers: LayersMade }} */
export function batchForward(params, sequences, last) {
  const n = sequences.length,
    length = sequences[0].length,
    d = params.embed.token.shape[1];
  let x = embedded(params.embed, sequences, length, d);
  const layers = params.blocks.map((block, index) => {
    const from = index === params.blocks.length - 1 ? length - last : 0;
    const attended = attentionForward(block.attention, x, n, length, from);
    const fed = mlpForward(block.mlp, attended.y);
    x = fed.y;
    return { attended, fed };
  });
  const normed = normForward(params.output.norm.data, x, d);
  const words = params.output.unembed.shape[1];
  const logits = times(normed.y, params.output.unembed.data, x.length / d, d, words);
  return { logits, layers: { blocks: layers, x, normed } };
}

/** @type {(params: Params, sequences: number[][], layers: LayersMade, toLogits: Row) => Params} */
function batchBackward(params, sequences, { blocks, x, normed }, toLogits) {
  const grads = zerosLike(params);
  const [d, words] = params.output.unembed.shape;
  const [toUnembed, toNormed] = timesBackward(normed.y, params.output.unembed.data, toLogits, x.length / d, d, words);
  grads.output.unembed.data = toUnembed;
  let message = normBackward(params.output.norm.data, normed, toNormed, grads.output.norm.data, d);
  for (let i = blocks.length - 1; i >= 0; i--) {
    message = mlpBackward(params.blocks[i].mlp, blocks[i].fed, message, grads.blocks[i].mlp);
    message = attentionBackward(params.blocks[i].attention, blocks[i].attended, message, grads.blocks[i].attention);
  }
  sequences.flat().forEach((token, row) => {
    const position = row % sequences[0].length;
    for (let i = 0; i < d; i++) {
      grads.embed.token.data[token * d + i] += message[row * d + i];
      grads.embed.position.data[position * d + i] += message[row * d + i];
    }
  });
  return grads;
}

/** @type {(params: EmbedParams, sequences: number[][], length: number, d: number) => Row} */
function embedded({ token, position }, sequences, length, d) {
  const x = new Float64Array(sequences.length * length * d);
  sequences.flat().forEach((id, row) => {
    const at = (row % length) * d;
    for (let i = 0; i < d; i++) x[row * d + i] = token.data[id * d + i] + position.data[at + i];
  });
  return x;
}

// The mean surprise at the targets in nats, and its message to the logits: (p − [target]) / n.
/** @type {(logits: Row, targets: number[]) => { loss: number; message: Row }} */
function crossEntropy(logits, targets) {
  const n = targets.length,
    words = logits.length / n,
    message = new Float64Array(logits.length);
  let total = 0;
  targets.forEach((target, row) => {
    const scores = logits.subarray(row * words, (row + 1) * words);
    const most = scores.reduce((a, b) => Math.max(a, b)),
      sum = scores.reduce((all, score) => all + Math.exp(score - most), 0);
    for (let word = 0; word < words; word++) message[row * words + word] = Math.exp(scores[word] - most) / sum / n;
    message[row * words + target] -= 1 / n;
    total += Math.log(sum) + most - scores[target];
  });
  return { loss: total / n, message };
}

// y = rmsNorm(x) · gain, row by row; d is the length of a row. Without a gain it is 1.
/** @type {(gain: Float64Array | null, x: Row, d: number) => NormMade} */
function normForward(gain, x, d) {
  const y = new Float64Array(x.length),
    factors = new Float64Array(x.length / d);
  for (let row = 0; row < factors.length; row++) {
    let squares = 0;
    for (let i = row * d; i < (row + 1) * d; i++) squares += x[i] * x[i];
    const r = 1 / Math.sqrt(squares / d + EPSILON);
    factors[row] = r;
    for (let i = 0; i < d; i++) y[row * d + i] = x[row * d + i] * r * (gain ? gain[i] : 1);
  }
  return { x, y, factors };
}

// Adds to the gradient of the gain and returns the message to x.
/** @type {(gain: Float64Array | null, made: NormMade, message: Row, toGain: Float64Array | null, d: number) => Row} */
function normBackward(gain, { x, factors }, message, toGain, d) {
  const toX = new Float64Array(x.length);
  factors.forEach((r, row) => {
    const start = row * d;
    let dot = 0;
    for (let i = 0; i < d; i++) {
      const m = message[start + i];
      if (toGain) toGain[i] += m * x[start + i] * r;
      dot += m * (gain ? gain[i] : 1) * x[start + i];
    }
    const pull = (r * r * dot) / d;
    for (let i = 0; i < d; i++) toX[start + i] = r * (message[start + i] * (gain ? gain[i] : 1) - x[start + i] * pull);
  });
  return toX;
}

// Back through x · w: [gradient of w, message to x].
/** @type {(x: Row, w: Float64Array, message: Row, n: number, k: number, m: number) => [Row, Row]} */
const timesBackward = (x, w, message, n, k, m) => [
  times(transposed(x, n, k), message, k, n, m),
  times(message, transposed(w, k, m), n, m, k),
];

/** @type {(params: MlpParams, x: Row) => MlpMade} */
function mlpForward({ norm, up, down }, x) {
  const [d, f] = up.shape,
    n = x.length / d;
  const normed = normForward(norm.data, x, d);
  const hidden = times(normed.y, up.data, n, d, f).map((value) => Math.max(value, 0));
  return { normed, hidden, y: addRows(x, times(hidden, down.data, n, f, d)) };
}

/** @type {(params: MlpParams, made: MlpMade, message: Row, grads: MlpParams) => Row} */
function mlpBackward({ norm, up, down }, { normed, hidden }, message, grads) {
  const [d, f] = up.shape,
    n = message.length / d;
  const [toDown, toHidden] = timesBackward(hidden, down.data, message, n, f, d);
  const open = toHidden.map((value, i) => (hidden[i] > 0 ? value : 0));
  const [toUp, toNormed] = timesBackward(normed.y, up.data, open, n, d, f);
  grads.down.data = toDown;
  grads.up.data = toUp;
  return addRows(message, normBackward(norm.data, normed, toNormed, grads.norm.data, d));
}

// The rows of the positions from `from` on, and back: zeros elsewhere.
/** @type {(x: Row, n: number, length: number, from: number, d: number) => Row} */
function gathered(x, n, length, from, d) {
  if (!from) return x;
  const rows = new Float64Array(n * (length - from) * d);
  for (let b = 0; b < n; b++)
    rows.set(x.subarray((b * length + from) * d, (b + 1) * length * d), b * (length - from) * d);
  return rows;
}

/** @type {(rows: Row, n: number, length: number, from: number, d: number) => Row} */
function scattered(rows, n, length, from, d) {
  if (!from) return rows;
  const x = new Float64Array(n * length * d);
  for (let b = 0; b < n; b++)
    x.set(rows.subarray(b * (length - from) * d, (b + 1) * (length - from) * d), (b * length + from) * d);
  return x;
}

// The positions from `from` on look at themselves and at those before.
/** @type {(params: AttentionParams, x: Row, n: number, length: number, from: number) => AttentionMade} */
function attentionForward(params, x, n, length, from) {
  const [d, heads, k] = params.query.shape,
    m = heads * k;
  const normed = normForward(params.norm.data, x, d),
    asking = gathered(normed.y, n, length, from, d);
  const nAsking = asking.length / d;
  const query = normForward(null, times(asking, params.query.data, nAsking, d, m), k);
  const key = normForward(null, times(normed.y, params.key.data, n * length, d, m), k);
  const value = times(normed.y, params.value.data, n * length, d, m);
  const sizes = { n, length, from, heads, k };
  const { shares, mixed } = mixForward(query.y, key.y, value, sizes);
  const y = addRows(gathered(x, n, length, from, d), times(mixed, params.out.data, nAsking, m, d));
  return { normed, asking, query, key, value, shares, mixed, y, sizes };
}

// mixed = shares · value and shares = softmax(query · key / √K), for each sequence, head and asking position.
/** @type {(query: Row, key: Row, value: Row, sizes: MixSizes) => { shares: Row; mixed: Row }} */
function mixForward(query, key, value, { n, length, from, heads, k }) {
  const m = heads * k,
    asks = length - from;
  const shares = new Float64Array(n * heads * asks * length),
    mixed = new Float64Array(n * asks * m);
  forEachAsked({ n, length, from, heads, k }, (q, kv, at, visible) => {
    let sum = 0;
    for (let j = 0; j < visible; j++) {
      let dot = 0;
      for (let c = 0; c < k; c++) dot += query[q + c] * key[kv + j * m + c];
      shares[at + j] = Math.exp(dot / Math.sqrt(k)); // at most e^√K, since queries and keys have unit size
      sum += shares[at + j];
    }
    for (let j = 0; j < visible; j++) {
      shares[at + j] /= sum;
      for (let c = 0; c < k; c++) mixed[q + c] += shares[at + j] * value[kv + j * m + c];
    }
  });
  return { shares, mixed };
}

// Calls visit(where the query starts, where the sequence's keys start, where the shares start, how many are visible).
/** @type {(sizes: MixSizes, visit: (q: number, kv: number, at: number, visible: number) => void) => void} */
function forEachAsked({ n, length, from, heads, k }, visit) {
  const m = heads * k,
    asks = length - from;
  for (let b = 0; b < n; b++)
    for (let head = 0; head < heads; head++)
      for (let i = 0; i < asks; i++)
        visit(
          (b * asks + i) * m + head * k,
          b * length * m + head * k,
          ((b * heads + head) * asks + i) * length,
          from + i + 1,
        );
}

/** @type {(params: AttentionParams, made: AttentionMade, message: Row, grads: AttentionParams) => Row} */
function attentionBackward(params, made, message, grads) {
  const { n, length, from, heads, k } = made.sizes;
  const d = params.norm.data.length,
    m = heads * k,
    nAsking = message.length / d;
  const [toOut, toMixed] = timesBackward(made.mixed, params.out.data, message, nAsking, m, d);
  const { toQuery, toKey, toValue } = mixBackward(made, toMixed);
  /** @type {(name: "query" | "key" | "value", x: Row, toY: Row, rows: number) => Row} */
  const back = (name, x, toY, rows) => {
    const [toWeights, toX] = timesBackward(x, params[name].data, toY, rows, d, m);
    grads[name].data = toWeights;
    return toX;
  };
  grads.out.data = toOut;
  const fromQuery = back("query", made.asking, normBackward(null, made.query, toQuery, null, k), nAsking);
  const fromKey = back("key", made.normed.y, normBackward(null, made.key, toKey, null, k), n * length);
  const fromValue = back("value", made.normed.y, toValue, n * length);
  const toNormed = addRows(addRows(fromKey, fromValue), scattered(fromQuery, n, length, from, d));
  const toX = normBackward(params.norm.data, made.normed, toNormed, grads.norm.data, d);
  return addRows(toX, scattered(message, n, length, from, d));
}

/** @type {(made: AttentionMade, toMixed: Row) => { toQuery: Row; toKey: Row; toValue: Row }} */
function mixBackward({ query, key, value, shares, sizes }, toMixed) {
  const { k } = sizes,
    m = sizes.heads * k;
  const toQuery = new Float64Array(query.y.length),
    toKey = new Float64Array(key.y.length),
    toValue = new Float64Array(value.length),
    toShare = new Float64Array(sizes.length);
  forEachAsked(sizes, (q, kv, at, visible) => {
    let mean = 0;
    for (let j = 0; j < visible; j++) {
      let dot = 0;
      for (let c = 0; c < k; c++) {
        dot += toMixed[q + c] * value[kv + j * m + c];
        toValue[kv + j * m + c] += shares[at + j] * toMixed[q + c];
      }
      toShare[j] = dot;
      mean += shares[at + j] * dot;
    }
    for (let j = 0; j < visible; j++) {
      const toScore = (shares[at + j] * (toShare[j] - mean)) / Math.sqrt(k);
      for (let c = 0; c < k; c++) {
        toQuery[q + c] += toScore * key.y[kv + j * m + c];
        toKey[kv + j * m + c] += toScore * query.y[q + c];
      }
    }
  });
  return { toQuery, toKey, toValue };
}
