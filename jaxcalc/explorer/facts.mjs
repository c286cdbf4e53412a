// The numbers that the stage draws of a moment. Levels go up: the embeddings, each block's attention and feed-forward
// layer, the output.

import { forward, outputError, rmsNormVjp, select, stages, toScores } from "./backprop.mjs";
import { heldShares } from "./interventions.mjs";
import { lastRow, output, softmax } from "./model.mjs";
import { largest } from "./numbers.mjs";
import { array, inner, namedLeaves, norm, placeOf, rowNorms } from "./trees.mjs";

/** @type {WeakMap<Moment, Facts>} */
const factsKnown = new WeakMap();

// A moment never changes, so its facts are computed once.
/** @type {(moment: Moment) => Facts} */
export function factsOf(moment) {
  const known = factsKnown.get(moment) ?? computeFacts(moment);
  factsKnown.set(moment, known);
  return known;
}

/** @type {(moment: Moment) => Facts} */
function computeFacts(moment) {
  const { params, tokens, target, edits, logits, probabilities, loss, walked, update } = moment;
  const levels = walked.filter(hasWeights).toReversed();
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
    steps: levels.map(({ path }) => norm(select(update, path))),
    moved: levels.map(({ path }) => mostMoved(moment, path)),
  };
}

/** @param {Walked} stage @returns {stage is Level} */
const hasWeights = (stage) => stage.path !== null;

// The word that the output stage would say if it came right after this level.
/** @type {(params: Params, level: Level) => Facts["says"][number]} */
function lensWord(params, { name, output: stream }) {
  const q = softmax(lastRow(name === "output" ? stream : output(params.output, stream).logits));
  const [word] = largest(q, 1);
  return { word, p: q[word] };
}

// The blame of what each level wrote in each column. All of it adds up to the blame of the whole network.
/** @type {(moment: Moment, levels: Level[]) => number[][]} */
function blameByColumn({ params, tokens, target, edits, update }, levels) {
  const made = forward(params, tokens, stages(params, target, edits));
  return levels.map(({ path, messageIn }, i) =>
    tokens.map((_, column) => {
      const d = messageIn.shape[1];
      const told = messageIn.data.subarray(column * d, (column + 1) * d);
      if (told.every((value) => value === 0)) return 0;
      // Attention looks at the column itself and at those before it; the other layers work on each column by itself.
      const first = !i || path.at(-1) === "attention" ? 0 : column;
      const rows = i ? column + 1 - first : tokens.length;
      const message = array([rows, d]);
      message.data.set(told, (column - first) * d);
      const input = i ? someRows(made[i].input, first, rows) : tokens;
      const [grads] = made[i].stage.apply(select(params, path), input)[1](message);
      return -inner(grads, select(update, path));
    }),
  );
}

/** @type {(array: Leaf, first: number, rows: number) => Leaf} */
const someRows = ({ shape: [, d], data }, first, rows) =>
  array([rows, d], data.subarray(first * d, (first + rows) * d));

// Every arc of one attention layer: column `to` looks at column `from`. Its message is the length of what goes back over
// the arc into the stream of `from`, through the value and through the key. All arcs into a column, its own query and
// its rail add up to the message below the layer.
/** @type {(params: AttentionParams, level: Level, made: { attention: AttentionActivations }, held: Held) => Arc[]} */
function arcsOf(params, { name, input, messageIn }, { attention: made }, held) {
  const [t, heads, k] = made.query.shape;
  /** @type {Arc[]} */
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

/** @type {(data: Float64Array) => Leaf} */
const asVector = (data) => array([data.length], data);

/** @type {(a: ArrayLike<number>, b: ArrayLike<number>) => number} */
function dotProduct(a, b) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
}

// Row [t, head] of an array [T, H, K], or row t of an array [T, D].
/** @type {(rows: Leaf, t: number, head: number) => Float64Array} */
function rowOf({ shape, data }, t, head) {
  const d = shape.at(-1),
    heads = shape.length > 2 ? shape[1] : 1;
  const start = (t * heads + head) * d;
  return data.slice(start, start + d);
}

// ∂loss/∂mixed of one head in one column: the message times the head's part of the output matrix.
/** @type {(out: Leaf, message: Leaf, column: number, head: number) => Float64Array} */
function messageToMixed({ shape: [, k, d], data }, message, column, head) {
  const row = rowOf(message, column, 0);
  return Float64Array.from({ length: k }, (_, c) => {
    const start = (head * k + c) * d;
    return dotProduct(row, data.subarray(start, start + d));
  });
}

// Back through a head's value and key matrices and the gain of the norm before them.
/** @type {(params: AttentionParams, head: number, toValue: Float64Array, toKey: Float64Array) => Float64Array} */
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
/** @type {(moment: Moment, path: Level["path"]) => Move} */
function mostMoved({ params, grads, update }, path) {
  const steps = namedLeaves(select(update, path));
  let [leaf] = Object.keys(steps),
    index = 0,
    step = steps[leaf].data[0];
  for (const [name, { data }] of Object.entries(steps)) {
    data.forEach((other, i) => {
      if (Math.abs(other) > Math.abs(step)) [leaf, index, step] = [name, i, other];
    });
  }
  const name = `${[...path, leaf].join(".")}[${placeOf(steps[leaf].shape, index).join(", ")}]`;
  const value = namedLeaves(select(params, path))[leaf].data[index],
    gradient = namedLeaves(select(grads, path))[leaf].data[index];
  return { name, value, gradient, step, next: value + step };
}

// The story's four boxes, with the share of the blame of each. The tokenizer has no weights.
/** @type {(facts: Facts) => { name: string, share: number | null }[]} */
export function fourBoxes({ names, shares }) {
  /** @type {(isIn: (name: string) => boolean) => number} */
  const share = (isIn) => names.reduce((total, name, i) => total + (isIn(name) ? shares[i] : 0), 0);
  return [
    { name: "tokenizer", share: null },
    { name: "embeddings", share: share((name) => name === "embed") },
    { name: "attention, feed-forward", share: share((name) => name.startsWith("block")) },
    { name: "output", share: share((name) => name === "output") },
  ];
}

// The words whose bars are shown: the likeliest ones, and the right one. A lesson keeps the words of the moment before.
/** @type {(facts: Facts, n?: number) => number[]} */
export function shownWords({ probabilities, target }, n = 5) {
  const words = largest(probabilities, n);
  if (!words.includes(target)) words[n - 1] = target;
  return words;
}
