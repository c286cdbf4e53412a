// The arithmetic behind what is asked: each of its numbers as the sum that it is.

import { outputError, toScores } from "./backprop.mjs";
import { heldShares } from "./interventions.mjs";
import { lastRow } from "./model.mjs";
import { rowView, sumUp, valueAt, weightFactor } from "./sums.mjs";
import { ofStream } from "./sums_of_stream.mjs";
import { ofWeight } from "./sums_of_weight.mjs";
import { inner, namedLeaves } from "./trees.mjs";

/** @type {Record<Asked["kind"], (moment: Moment, asked: Asked, about: ArithmeticAbout) => Arithmetic>} */
const KINDS = { bar: ofWord, loss: ofWord, arc: ofArc, node: ofStream, cell: ofPart, weight: ofWeight };

/** @type {(moment: Moment, asked: Asked, about: ArithmeticAbout) => Arithmetic} */
export const arithmeticOf = (moment, asked, about) => KINDS[asked.kind](moment, asked, about);

// A word that could come next: its score, its probability, the gradient of its score; of the right word, the surprise.
/** @type {(moment: Moment, asked: Asked, about: ArithmeticAbout) => Arithmetic} */
function ofWord(moment, asked, { words }) {
  const { params, tokens, target, probabilities, activations, loss, logits } = moment;
  const w = asked.kind === "loss" ? target : Number(asked.word);
  const word = `“${words[w]}”`;
  const t = tokens.length - 1;
  const [, v] = params.output.unembed.shape;
  const scores = lastRow(logits);
  const likeliest = scores.indexOf(Math.max(...scores));
  const most = scores[likeliest];
  const normed = rowView(activations.output.normed, t);
  const powers = scores.map((score) => Math.exp(score - most));
  const error = outputError(scores, target);
  const others = Array.from(scores.keys()).filter((other) => other !== target);
  /** @type {(other: number, show: string, value: number) => Factor} */
  const ofBar = (other, show, value) => ({
    name: `${show} of “${words[other]}”`,
    value,
    to: { kind: "bar", stage: "output", position: t, word: other, show },
  });
  const score = sumUp({
    name: "score",
    title: `score of ${word}`,
    text: "The dot product of the normalised stream and the word's column of the unembedding matrix.",
    ...{ unit: "", scene: "forward", total: scores[w], follows: [] },
    columns: ["number", "stream", "weight"],
    values: normed.map((x, i) => x * params.output.unembed.data[i * v + w]),
    term: (i) => ({
      label: String(i),
      factors: [
        {
          name: `number ${i} of the normalised stream`,
          value: normed[i],
          to: { kind: "node", stage: "output", position: t, dimension: i, show: "number" },
        },
        weightFactor(params, "output.unembed", i * v + w),
      ],
    }),
  });
  const probability = sumUp({
    name: "probability",
    title: "sum over all words",
    text: `Softmax: e^(score − largest score) of ${word}, divided by the sum of it over all ${v} words.`,
    ...{ unit: "", scene: "forward", total: powers.reduce((a, b) => a + b, 0), values: powers },
    columns: ["word", "e^(score − largest)"],
    term: (i) => ({ label: words[i], factors: [ofBar(i, "score", powers[i])] }),
    follows: [
      [`e^(score − largest) of ${word}`, powers[w]],
      [`p = that, divided by the sum`, probabilities[w], "%"],
    ],
  });
  const isRight = w === target;
  const gradient = sumUp({
    name: "gradient",
    title: `∂loss/∂score of ${word}`,
    text: isRight
      ? "p − 1 at the right word. It is minus the sum of p of all other words, as all p add up to 1."
      : "p: this word is not the right one, so its score should fall in proportion to its probability.",
    ...{ unit: "nats", scene: "backward", total: error[w], follows: [] },
    columns: ["word", isRight ? "−p" : "p"],
    values: isRight ? others.map((other) => -probabilities[other]) : [probabilities[w]],
    term: (i) => {
      const other = isRight ? others[i] : w;
      return {
        label: words[other],
        factors: [ofBar(other, "probability", isRight ? -probabilities[other] : probabilities[other])],
      };
    },
  });
  const rest = powers.reduce((sum, power, i) => (i === likeliest ? sum : sum + power), 0);
  const surprise = sumUp({
    name: "surprise",
    title: `−ln p(${words[w]})`,
    text: "The loss: minus the logarithm of the probability. It is the logarithm of the sum in softmax, plus how far the score is below the largest.",
    ...{ unit: "nats", scene: "surprise", total: loss, values: [Math.log1p(rest), most - scores[target]] },
    columns: ["", "nats"],
    term: (i) => ({
      label: i ? "largest score − score" : "ln of the sum",
      factors: [
        i
          ? ofBar(target, "score", most - scores[target])
          : { ...ofBar(target, "probability", Math.log1p(rest)), name: "ln of the sum of e^(score − largest)" },
      ],
    }),
    follows: [["p = e^−surprise", Math.exp(-loss), "%"]],
  });
  return {
    title: asked.kind === "loss" ? `the surprise at ${word}` : `the word ${word}`,
    sums: [score, probability, gradient, ...(isRight ? [surprise] : [])],
  };
}

// An arc: how much of its attention a head at one position gives to another, and what comes back over it.
/** @type {(moment: Moment, asked: Asked, about: ArithmeticAbout) => Arithmetic} */
function ofArc({ tokens, edits, activations, walked }, asked, { words }) {
  const { stage, head = 0, from = 0 } = asked;
  const to = Number(asked.position);
  const { path, inside } = /** @type {Walked} */ (walked.find(({ name }) => name === stage));
  const block = Number(path?.[1]);
  const made = activations.blocks[block].attention;
  const k = made.query.shape[2];
  const name = (/** @type {number} */ t) => `“${words[tokens[t]]}”`;
  /** @type {(rows: Leaf, t: number) => Float64Array} */
  const ofHead = (rows, t) => rowView(rows, t).subarray(head * k, (head + 1) * k);
  const dot = (/** @type {Float64Array} */ a, /** @type {Float64Array} */ b) =>
    a.reduce((sum, x, c) => sum + x * b[c], 0);
  const seen = Array.from({ length: to + 1 }, (_, j) => j);
  const scores = seen.map((j) => dot(ofHead(made.query, to), ofHead(made.key, j)) / Math.sqrt(k));
  const powers = scores.map((score) => Math.exp(score - Math.max(...scores)));
  const shares = seen.map((j) => valueAt(made.pattern, head, to, j));
  const toShares = seen.map((j) => dot(ofHead(inside.toMixed, to), ofHead(made.value, j)));
  const held = heldShares(edits, block, head, to);
  /** @type {(j: number, show: string, value: number) => Factor} */
  const ofOther = (j, show, value) => ({
    name: `of ${name(j)}`,
    value,
    to: { ...asked, from: j, word: tokens[j], show },
  });
  /** @type {(first: string, pairs: [string, Float64Array][], scale: number) => { columns: string[], values: number[], term: (i: number) => Omit<Term, "value"> }} */
  const products = (first, pairs, scale) => ({
    columns: [first, ...pairs.map(([title]) => title.split(" of ")[0]), ...(scale === 1 ? [] : ["1/√K"])],
    values: Array.from({ length: k }, (_, c) => pairs.reduce((product, [, row]) => product * row[c], scale)),
    term: (c) => ({
      label: String(c),
      factors: [
        ...pairs.map(([title, row]) => ({ name: title, value: row[c] })),
        ...(scale === 1 ? [] : [{ name: "one divided by the root of the width of a head", value: scale }]),
      ],
    }),
  });
  const total = powers.reduce((a, b) => a + b, 0);
  const isHeld = held[from] !== undefined;
  const shareIs = isHeld
    ? "share, held by hand"
    : held.length
      ? "share = that, divided by the sum of those that are free, times what the held ones leave"
      : "share = that, divided by the sum";
  const title = `${stage}, head ${head}: ${name(to)} looks at ${name(from)}`;
  return {
    title,
    sums: [
      sumUp({
        name: "share",
        title: "sum over what it may look at",
        text: `Softmax: e^(score − largest score) of ${name(from)}, divided by the sum of it over all positions up to ${name(to)}.`,
        ...{ unit: "", scene: "forward", total, values: powers },
        columns: ["position", "e^(score − largest)"],
        term: (j) => ({ label: `${name(j)} ${j}`, factors: [ofOther(j, "score", powers[j])] }),
        follows: [
          [`e^(score − largest) of ${name(from)}`, powers[from]],
          [shareIs, shares[from], "%"],
        ],
      }),
      sumUp({
        name: "score",
        title: "query · key / √K",
        text: `How well what ${name(to)} asks for fits what ${name(from)} offers: the dot product of query and key, divided by the root of their width ${k}.`,
        ...{ unit: "", scene: "forward", total: scores[from], follows: [] },
        ...products(
          "number",
          [
            [`query of ${name(to)}`, ofHead(made.query, to)],
            [`key of ${name(from)}`, ofHead(made.key, from)],
          ],
          1 / Math.sqrt(k),
        ),
      }),
      sumUp({
        name: "message",
        title: "∂loss/∂share",
        text: `The chain rule: the message that comes back to ${name(to)} in this head, times the value that ${name(from)} sends over the arc. A negative number means that the share should grow.`,
        ...{ unit: "nats", scene: "backward", total: toShares[from] },
        ...products(
          "number",
          [
            [`message of ${name(to)}`, ofHead(inside.toMixed, to)],
            [`value of ${name(from)}`, ofHead(made.value, from)],
          ],
          1,
        ),
        follows: [
          [
            isHeld
              ? "∂loss/∂score: none, as the share is held by hand"
              : "∂loss/∂score = share · (∂loss/∂share − its mean over the free shares)",
            toScores(shares, toShares, held)[from],
          ],
        ],
      }),
    ],
  };
}

// One of the story's four boxes: its blame, array by array.
/** @type {(moment: Moment, asked: Asked, about: ArithmeticAbout) => Arithmetic} */
function ofPart({ grads, update, blame }, { stage }) {
  const ways = /** @type {Record<string, string[]>} */ ({
    embeddings: ["embed"],
    "attention, feed-forward": ["blocks"],
    output: ["output"],
  });
  const isIn = (/** @type {string} */ name) => (ways[String(stage)] ?? []).includes(name.split(".")[0]);
  const [slopes, steps] = [namedLeaves(grads), namedLeaves(update)];
  const names = Object.keys(slopes).filter(isIn);
  const values = names.map((name) => -inner(slopes[name], steps[name]));
  const total = values.reduce((a, b) => a + b, 0);
  return {
    title: `blame of the ${stage}`,
    sums: [
      sumUp({
        name: "blame",
        title: `blame of the ${stage}`,
        text: names.length
          ? "The part of the promised drop in loss that comes from each array: minus the sum of gradient · step over its weights. A name leads to its most blamed weight."
          : "The tokenizer has no weights, so there is nothing to blame and nothing to learn.",
        ...{ unit: "nats", scene: "backward", total, values },
        columns: ["array"],
        term: (i) => {
          const weight = mostBlamed({ grads, update }, names[i]);
          return { label: names[i], factors: [], to: { kind: "weight", weight } };
        },
        follows: names.length ? [["share of all blame", total / blame.total, "%"]] : [],
      }),
    ],
  };
}

// The weight with the most blame among those whose name is `prefix` or begins with it: {name, index}.
/** @type {(moment: Pick<Moment, "grads" | "update">, prefix: string) => { name: string, index: number }} */
export function mostBlamed({ grads, update }, prefix) {
  const steps = namedLeaves(update);
  let found = { name: "", index: 0, blame: -Infinity };
  for (const [name, { data }] of Object.entries(namedLeaves(grads))) {
    if (name !== prefix && !name.startsWith(`${prefix}.`)) continue;
    data.forEach((gradient, index) => {
      const blame = -gradient * steps[name].data[index];
      if (blame > found.blame) found = { name, index, blame };
    });
  }
  return { name: found.name, index: found.index };
}
