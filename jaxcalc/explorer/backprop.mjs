// Backpropagation, one stage at a time, like backprop.py. There jax.vjp derives each stage's vector-Jacobian product
// (vjp); here each is written out: incoming message → [gradients of the stage's parameters, outgoing message].

import { heldShares, NO_EDITS } from "./interventions.mjs";
import { attention, embed, EPSILON, lastRow, meanSquare, mlp, output, softmax, sum, surprise } from "./model.mjs";
import { add, array, treeMap, zerosLike } from "./trees.mjs";

// The network as a list of stages. The last one is the loss: the surprise at the target, the word after the last token.
// apply(the stage's parameters, input) → [output, vjp].
/** @type {(params: Params, target: number, edits?: Edits) => NetworkStage[]} */
export function stages(params, target, edits = NO_EDITS) {
  /** @type {(name: string, path: Path, apply: NetworkStage["apply"]) => NetworkStage} */
  const stage = (name, path, apply) => ({ name, path, apply });
  const network = [stage("embed", ["embed"], applyEmbed)];
  params.blocks.forEach((_, i) => {
    /** @type {Held} */
    const held = (head, to) => heldShares(edits, i, head, to);
    network.push(
      stage(`block ${i} attention`, ["blocks", i, "attention"], (weights, x) => applyAttention(weights, x, held)),
    );
    network.push(stage(`block ${i} mlp`, ["blocks", i, "mlp"], applyMlp));
  });
  network.push(stage("output", ["output"], applyOutput));
  network.push(stage("loss", null, (_, logits) => applyLoss(logits, target)));
  return network;
}

/** @type {(tree: any, path: Path) => any} */
export const select = (tree, path) => (path ?? []).reduce((node, key) => node[key], path ? tree : {});

// Walks forward through the stages and keeps the input, the output and the vjp of each.
/** @type {(params: Params, tokens: number[], network: NetworkStage[]) => Passed[]} */
export function forward(params, tokens, network) {
  /** @type {any} */
  let x = tokens;
  return network.map((stage) => {
    const input = x;
    const [y, vjp] = stage.apply(select(params, stage.path), input);
    x = y;
    return { stage, input, output: y, vjp };
  });
}

// Walks back from the loss and keeps the incoming message, the outgoing message and the gradients of each stage.
/** @type {(walked: Passed[]) => Walked[]} */
function backward(walked) {
  /** @type {any} */
  let message = array([], Float64Array.of(1)); // ∂L/∂L
  return walked.toReversed().map(({ stage, input, output, vjp }) => {
    const messageIn = message;
    const [grads, messageOut, inside = {}] = vjp(messageIn);
    message = messageOut;
    return { name: stage.name, path: stage.path, input, output, messageIn, messageOut, grads, inside, vjp };
  });
}

// Forward, then the stages backwards: the loss first, the embeddings last.
/** @type {(params: Params, tokens: number[], target: number, edits?: Edits) => Walked[]} */
export const walk = (params, tokens, target, edits) => backward(forward(params, tokens, stages(params, target, edits)));

// The whole gradient, a tree like the parameters.
/** @type {(params: Params, walked: Walked[]) => Params} */
export function collect(params, walked) {
  const total = zerosLike(params);
  for (const { path, grads } of walked) {
    if (!path) continue;
    const parent = select(total, path.slice(0, -1));
    parent[path.at(-1)] = treeMap(add, parent[path.at(-1)], grads);
  }
  return total;
}

// The stages and their vector-Jacobian products.

/** @type {(params: EmbedParams, tokens: number[]) => [Leaf, Vjp]} */
function applyEmbed(params, tokens) {
  const { residual } = embed(params, tokens);
  /** @type {Vjp} */
  const vjp = (message) => {
    const grads = zerosLike(params);
    const d = params.token.shape[1];
    tokens.forEach((token, t) => {
      for (let i = 0; i < d; i++) {
        grads.token.data[token * d + i] += message.data[t * d + i];
        grads.position.data[t * d + i] += message.data[t * d + i];
      }
    });
    return [grads, null]; // whole numbers have no derivative
  };
  return [residual, vjp];
}

/** @type {(params: AttentionParams, x: Leaf, held: Held) => [Leaf, Vjp]} */
function applyAttention(params, x, held) {
  const made = attention(params, x, held);
  /** @type {Vjp} */
  const vjp = (message) => {
    const [out, toMixed] = projectVjp(made.mixed, params.out, message);
    const { toQuery, toKey, toValue } = mixVjp(made, toMixed, held);
    const [toAsked, toOffered] = [rmsNormVjp(made.asked, toQuery), rmsNormVjp(made.offered, toKey)];
    const [query, fromQuery] = projectVjp(made.normed, params.query, toAsked);
    const [key, fromKey] = projectVjp(made.normed, params.key, toOffered);
    const [value, fromValue] = projectVjp(made.normed, params.value, toValue);
    const [norm, toX] = normVjp(x, params.norm, sum(sum(fromQuery, fromKey), fromValue));
    const inside = { toMixed, toAsked, toOffered, toValue };
    return [{ norm, query, key, value, out }, sum(message, toX), inside]; // a residual stage passes the message on unchanged and adds to it
  };
  return [made.residual, vjp];
}

// Back through mixed = pattern · value and pattern = softmax(query · key / √K), head by head.
/** @type {(made: AttentionActivations, toMixed: Leaf, held: Held) => Record<"toQuery" | "toKey" | "toValue", Leaf>} */
function mixVjp({ query, key, value, pattern }, toMixed, held) {
  const [t, h, k] = query.shape;
  const toQuery = array(query.shape),
    toKey = array(key.shape),
    toValue = array(value.shape);
  for (let head = 0; head < h; head++) {
    for (let i = 0; i < t; i++) {
      const share = pattern.data.subarray((head * t + i) * t, (head * t + i) * t + i + 1);
      const index = (/** @type {number} */ position, /** @type {number} */ c) => (position * h + head) * k + c;
      const toShare = Array.from(share, (_, j) => {
        let dot = 0;
        for (let c = 0; c < k; c++) {
          dot += toMixed.data[index(i, c)] * value.data[index(j, c)];
          toValue.data[index(j, c)] += share[j] * toMixed.data[index(i, c)];
        }
        return dot;
      });
      toScores(Array.from(share), toShare, held(head, i)).forEach((message, j) => {
        const toScore = message / Math.sqrt(k);
        for (let c = 0; c < k; c++) {
          toQuery.data[index(i, c)] += toScore * key.data[index(j, c)];
          toKey.data[index(j, c)] += toScore * query.data[index(i, c)];
        }
      });
    }
  }
  return { toQuery, toKey, toValue };
}

// Back through the softmax of one row. A held share listens to no score; the free ones share the rest.
/** @type {(shares: number[], toShares: number[], held: number[]) => number[]} */
export function toScores(shares, toShares, held) {
  const free = shares.map((share, j) => (held[j] === undefined ? share : 0));
  const rest = free.reduce((total, share) => total + share, 0) || 1;
  const mean = free.reduce((total, share, j) => total + share * toShares[j], 0) / rest;
  return free.map((share, j) => share * (toShares[j] - mean));
}

/** @type {(params: MlpParams, x: Leaf) => [Leaf, Vjp]} */
function applyMlp(params, x) {
  const made = mlp(params, x);
  /** @type {Vjp} */
  const vjp = (message) => {
    const [down, toHidden] = projectVjp(made.hidden, params.down, message);
    const open = array(
      toHidden.shape,
      toHidden.data.map((value, i) => (made.hidden.data[i] > 0 ? value : 0)),
    );
    const [up, toNormed] = projectVjp(made.normed, params.up, open);
    const [norm, toX] = normVjp(x, params.norm, toNormed);
    return [{ norm, up, down }, sum(message, toX), { toHidden: open }];
  };
  return [made.residual, vjp];
}

/** @type {(params: OutputParams, x: Leaf) => [Leaf, Vjp]} */
function applyOutput(params, x) {
  const made = output(params, x);
  /** @type {Vjp} */
  const vjp = (message) => {
    const [unembed, toNormed] = projectVjp(made.normed, params.unembed, message);
    const [norm, toX] = normVjp(x, params.norm, toNormed);
    return [{ norm, unembed }, toX];
  };
  return [made.logits, vjp];
}

// The output error ∂loss/∂score of each word: p, or p − 1 for the target.
/** @type {(scores: Float64Array, target: number) => number[]} */
export function outputError(scores, target) {
  const error = softmax(scores);
  // −(the sum of all other p) is p − 1 without the rounding error of subtracting two numbers near 1.
  error[target] = -error.reduce((total, p, word) => (word === target ? total : total + p), 0);
  return error;
}

/** @type {(logits: Leaf, target: number) => [Leaf, Vjp]} */
function applyLoss(logits, target) {
  const scores = lastRow(logits);
  /** @type {Vjp} */
  const vjp = (message) => {
    const toLogits = array(logits.shape);
    lastRow(toLogits).set(outputError(scores, target).map((error) => error * message.data[0]));
    return [{}, toLogits];
  };
  return [array([], Float64Array.of(surprise(scores, target))), vjp];
}

// Back through x · weights: [gradient of the weights, message to x].
/** @type {(x: Leaf, weights: Leaf, message: Leaf) => [Leaf, Leaf]} */
function projectVjp(x, weights, message) {
  const n = x.shape[0],
    k = x.data.length / n,
    m = message.data.length / n;
  const grad = array(weights.shape),
    toX = array(x.shape),
    [slope, from, by, told] = [grad.data, x.data, weights.data, message.data];
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < k; j++) {
      const factor = from[i * k + j];
      let dot = 0;
      for (let c = 0, at = i * m, w = j * m; c < m; c++) {
        slope[w + c] += factor * told[at + c];
        dot += by[w + c] * told[at + c];
      }
      toX.data[i * k + j] = dot;
    }
  }
  return [grad, toX];
}

// Back through rmsNorm(x): with r = 1 / √(mean x² + ε), the outgoing message is r · (m − x · r² · mean(x · m)).
/** @type {(x: Leaf, message: Leaf) => Leaf} */
export function rmsNormVjp(x, message) {
  const d = x.shape.at(-1);
  const toX = array(x.shape);
  for (let start = 0; start < x.data.length; start += d) {
    const r = 1 / Math.sqrt(meanSquare(x.data, start, d) + EPSILON);
    let dot = 0;
    for (let i = start; i < start + d; i++) dot += x.data[i] * message.data[i];
    for (let i = start; i < start + d; i++) toX.data[i] = r * (message.data[i] - (x.data[i] * r * r * dot) / d);
  }
  return toX;
}

// Back through rmsNorm(x) · gain: [gradient of the gain, message to x].
/** @type {(x: Leaf, gain: Leaf, message: Leaf) => [Leaf, Leaf]} */
function normVjp(x, gain, message) {
  const d = gain.data.length;
  const grad = array(gain.shape),
    scaled = array(x.shape);
  for (let start = 0; start < x.data.length; start += d) {
    const r = 1 / Math.sqrt(meanSquare(x.data, start, d) + EPSILON);
    for (let i = 0; i < d; i++) {
      grad.data[i] += message.data[start + i] * x.data[start + i] * r;
      scaled.data[start + i] = message.data[start + i] * gain.data[i];
    }
  }
  return [grad, rmsNormVjp(x, scaled)];
}
