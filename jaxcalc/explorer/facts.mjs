// @ts-nocheck
// The numbers that the stage draws of a moment. Levels go up: the embeddings, each block's attention and feed-forward
// layer, the output.

import { forward, outputError, rmsNormVjp, select, stages, toScores } from "./backprop.mjs";
import { heldShares } from "./interventions.mjs";
import { lastRow, output, softmax } from "./model.mjs";
import { largest } from "./numbers.mjs";
import { array, inner, namedLeaves, norm, placeOf, rowNorms } from "./trees.mjs";

const factsKnown = new WeakMap();

// A moment never changes, so its facts are computed once.
export function factsOf(moment) {
  if (!factsKnown.has(moment)) factsKnown.set(moment, computeFacts(moment));
  return factsKnown.get(moment);
}

function computeFacts(moment) {
  const { params, tokens, target, edits, logits, probabilities, loss, walked, update } = moment;
  const levels = walked.filter(({ path }) => path).toReversed();
  const byColumn = blameByColumn(moment, levels);
  const total = moment.blame.total;
  return {
    tokens,
    target,
    probabilities,
    loss,
    error: outputError(lastRow(logits), target)[target], // p − 1 of the right word
    names: levels.map(({ name }) => name),
    says: levels.map((level) => lensWord(params, level)),
    edits,
    arcs: params.blocks.flatMap((block, i) =>
      arcsOf(block.attention, levels[1 + 2 * i], moment.activations.blocks[i], (head, to) =>
        heldShares(edits, i, head, to),
      ),
    ),
    messages: levels.map(({ messageIn }, i) => (i < levels.length - 1 ? rowNorms(messageIn) : [])), // above each level
    shares: levels.map(({ name }) => (total ? moment.blame.nats[name] / total : 0)),
    cells: byColumn.map((row) => row.map((nats) => (total ? nats / total : 0))),
    total,
    steps: levels.map(({ path }) => norm(select(update, path))),
    moved: levels.map(({ path }) => mostMoved(moment, path)),
  };
}

// The word that the output stage would say if it came right after this level.
function lensWord(params, { name, output: stream }) {
  const q = softmax(lastRow(name === "output" ? stream : output(params.output, stream).logits));
  const [word] = largest(q, 1);
  return { word, p: q[word] };
}

// The blame of what each level wrote in each column. All of it adds up to the blame of the whole network.
function blameByColumn({ params, tokens, target, edits, update }, levels) {
  const made = forward(params, tokens, stages(params, target, edits));
  return levels.map(({ path, messageIn }, i) =>
    tokens.map((_, column) => {
      const d = messageIn.shape[1];
      const rows = i ? column + 1 : tokens.length; // a column only looks at itself and at those before it
      const message = array([rows, d]);
      message.data.set(messageIn.data.subarray(column * d, (column + 1) * d), column * d);
      if (message.data.every((value) => value === 0)) return 0;
      const input = i ? firstRows(made[i].input, rows) : tokens;
      const [grads] = made[i].stage.apply(select(params, path), input)[1](message);
      return -inner(grads, select(update, path));
    }),
  );
}

const firstRows = ({ shape: [, d], data }, rows) => array([rows, d], data.subarray(0, rows * d));

// Every arc of one attention layer: column `to` looks at column `from`. Its message is the length of what goes back over
// the arc into the stream of `from`, through the value and through the key. All arcs into a column, its own query and
// its rail add up to the message below the layer.
function arcsOf(params, { name, input, messageIn }, { attention: made }, held) {
  const [t, heads, k] = made.query.shape;
  const arcs = [];
  for (let head = 0; head < heads; head++) {
    for (let to = 0; to < t; to++) {
      const asked = rowOf(made.query, to, head);
      const toMixed = messageToMixed(params.out, messageIn, to, head);
      const shares = Array.from({ length: to + 1 }, (_, from) => made.pattern.data[(head * t + to) * t + from]);
      const toShares = shares.map((_, from) => dotProduct(toMixed, rowOf(made.value, from, head)));
      const isHeld = held(head, to);
      const scores = toScores(shares, toShares, isHeld);
      shares.forEach((share, from) => {
        const toScore = scores[from] / Math.sqrt(k);
        const toValue = toMixed.map((value) => share * value);
        const toKey = rmsNormVjp(
          asVector(rowOf(made.offered, from, head)),
          asVector(asked.map((q) => toScore * q)),
        ).data;
        const normed = toStream(params, head, toValue, toKey);
        const message = norm(rmsNormVjp(asVector(rowOf(input, from, 0)), asVector(normed)));
        arcs.push({ stage: name, head, to, from, share, message, held: isHeld[from] !== undefined });
      });
    }
  }
  return arcs;
}

const asVector = (data) => array([data.length], data);
const dotProduct = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0);

// Row [t, head] of an array [T, H, K], or row t of an array [T, D].
function rowOf({ shape, data }, t, head) {
  const d = shape.at(-1),
    heads = shape.length > 2 ? shape[1] : 1;
  const start = (t * heads + head) * d;
  return data.slice(start, start + d);
}

// ∂loss/∂mixed of one head in one column: the message times the head's part of the output matrix.
function messageToMixed({ shape: [, k, d], data }, message, column, head) {
  const row = rowOf(message, column, 0);
  return Float64Array.from({ length: k }, (_, c) => {
    const start = (head * k + c) * d;
    return dotProduct(row, data.subarray(start, start + d));
  });
}

// Back through a head's value and key matrices and the gain of the norm before them.
function toStream({ value, key, norm: gain }, head, toValue, toKey) {
  const [d, heads, k] = value.shape;
  return Float64Array.from({ length: d }, (_, i) => {
    const start = (i * heads + head) * k;
    let total = 0;
    for (let c = 0; c < k; c++) total += toValue[c] * value.data[start + c] + toKey[c] * key.data[start + c];
    return total * gain.data[i];
  });
}

// The weight of a level that the step moves most.
function mostMoved({ params, grads, update }, path) {
  let best = null;
  const values = namedLeaves(select(params, path)),
    gradients = namedLeaves(select(grads, path));
  for (const [leaf, { shape, data }] of Object.entries(namedLeaves(select(update, path)))) {
    data.forEach((step, index) => {
      if (best && Math.abs(step) <= Math.abs(best.step)) return;
      best = { leaf, shape, index, step };
    });
  }
  const { leaf, shape, index, step } = best;
  const value = values[leaf].data[index];
  const name = `${[...path, leaf].join(".")}[${placeOf(shape, index).join(", ")}]`;
  return {
    name,
    leaf: [...path, leaf].join("."),
    index,
    value,
    gradient: gradients[leaf].data[index],
    step,
    next: value + step,
  };
}

// The story's four boxes, with the share of the blame of each. The tokenizer has no weights.
export function fourBoxes({ names, shares }) {
  const share = (isIn) => names.reduce((total, name, i) => total + (isIn(name) ? shares[i] : 0), 0);
  return [
    { name: "tokenizer", share: null },
    { name: "embeddings", share: share((name) => name === "embed") },
    { name: "attention, feed-forward", share: share((name) => name.startsWith("block")) },
    { name: "output", share: share((name) => name === "output") },
  ];
}

// The words whose bars are shown: the likeliest ones, and the right one. A lesson keeps the words of the moment before.
export function shownWords({ probabilities, target }, n = 5) {
  const words = largest(probabilities, n);
  if (!words.includes(target)) words[n - 1] = target;
  return words;
}
