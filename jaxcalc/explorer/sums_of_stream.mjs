// The arithmetic of one box of the network, a stage at a position: a number of the stream there, its length, the
// message back, and the blame.

import { select } from "./backprop.mjs";
import { EPSILON, meanSquare } from "./model.mjs";
import { backThrough, dotted, farthest, rowView, sumUp, valueAt, weightFactor, weightName } from "./sums.mjs";
import { array, namedLeaves } from "./trees.mjs";

/** @type {(moment: Moment, asked: Asked, about: ArithmeticAbout) => Arithmetic} */
export function ofStream(moment, asked, { words }) {
  const t = Number(asked.position);
  const at = moment.walked.findIndex(({ name }) => name === asked.stage);
  const place = { ...moment.walked[at], t, below: moment.walked[at + 1], above: moment.walked[at - 1], words };
  const feels = rowView(place.messageIn, t).some((value) => value !== 0);
  return {
    title: `${asked.stage?.replace("mlp", "feed-forward")} at “${words[moment.tokens[t]]}”`,
    sums: [
      numberSum(moment, place, asked.dimension),
      lengthSum(moment, place),
      blameSum(moment, place),
      ...(feels && place.messageOut ? [messageSum(moment, place, asked.dimension)] : []),
      arrivingSum(moment, place),
    ],
  };
}

// The stream after a stage; after the output stage, the normalised stream that the scores are made of.
/** @type {(moment: Moment, place: StreamPlace) => Leaf} */
const streamAfter = ({ activations }, { name, output }) => (name === "output" ? activations.output.normed : output);

/** @type {(words: string[], tokens: number[], t: number) => string} */
const placeName = (words, tokens, t) => `“${words[tokens[t]]}”`;

// One number of the stream: what was there before, and what each part of the stage added to it.
/** @type {(moment: Moment, place: StreamPlace, dimension: number | undefined) => Sum} */
function numberSum(moment, place, dimension) {
  const { params, tokens, activations } = moment;
  const { name, path, t, below, words } = place;
  const stream = streamAfter(moment, place);
  const d = dimension ?? farthest(rowView(stream, t));
  const n = stream.shape[1];
  const about = {
    name: "number",
    title: `number ${d} of the stream`,
    ...{ unit: "", scene: /** @type {const} */ ("forward"), total: valueAt(stream, t, d), follows: [] },
    dimension: { at: d, n },
  };
  if (name === "embed") {
    const rows = [
      weightFactor(params, "embed.token", tokens[t] * n + d),
      weightFactor(params, "embed.position", t * n + d),
    ];
    return sumUp({
      ...about,
      text: "The embedding of the word plus the embedding of its position.",
      columns: ["", "weight"],
      values: rows.map(({ value }) => value),
      term: (i) => ({ label: i ? `position ${t}` : placeName(words, tokens, t), factors: [rows[i]] }),
    });
  }
  /** @type {Factor} */
  const before = {
    name: `number ${d} of the stream after ${below.name}`,
    value: valueAt(place.input, t, d),
    to: askedOf(below.name, t, d),
  };
  if (name === "output") {
    const factor = shrink(place.input, t);
    const gain = weightFactor(params, "output.norm", d);
    return sumUp({
      ...about,
      title: `number ${d} of the normalised stream`,
      text: "The stream, divided by the root of the mean of its squares, times the gain of this number, a weight.",
      columns: ["", "stream", "1 / size", "gain"],
      values: [before.value * factor * gain.value],
      term: () => ({
        label: "product",
        factors: [before, { name: "1 / √(mean of the squares + 10⁻⁶)", value: factor }, gain],
      }),
    });
  }
  const leaf = name.endsWith("mlp") ? "down" : "out";
  const block = activations.blocks[Number(path?.[1])];
  const given = rowView(name.endsWith("mlp") ? block.mlp.hidden : block.attention.mixed, t);
  const weights = select(params, path)[leaf];
  const by = (/** @type {number} */ j) => weights.data[j * n + d];
  return sumUp({
    ...about,
    text: name.endsWith("mlp")
      ? "What was there before, plus each hidden unit times its weight to this number."
      : "What was there before, plus each number that the heads brought here times its weight to this number.",
    columns: ["", name.endsWith("mlp") ? "hidden unit" : "mixed value", "weight"],
    values: [before.value, ...Array.from(given, (value, j) => value * by(j))],
    term: (i) =>
      i === 0
        ? { label: "before", factors: [before] }
        : {
            label: placeLabel(weights, (i - 1) * n + d),
            factors: [
              { name: name.endsWith("mlp") ? `hidden unit ${i - 1}` : "mixed by attention", value: given[i - 1] },
              weightFactor(params, `${dotted(path)}.${leaf}`, (i - 1) * n + d),
            ],
          },
    follows: [["what this stage added", valueAt(stream, t, d) - before.value]],
  });
}

/** @type {(weights: Leaf, index: number) => string} */
function placeLabel({ shape }, index) {
  if (shape.length === 2) return `unit ${Math.floor(index / shape[1])}`;
  const [, k, n] = shape;
  return `head ${Math.floor(index / (k * n))}, ${Math.floor(index / n) % k}`;
}

// 1 / √(mean of x² + ε) of a row.
/** @type {(x: Leaf, t: number) => number} */
const shrink = (x, t) => 1 / Math.sqrt(meanSquare(x.data, t * x.shape[1], x.shape[1]) + EPSILON);

/** @type {(stage: string, position: number, dimension?: number, show?: string) => Asked} */
const askedOf = (stage, position, dimension, show) => ({ kind: "node", stage, position, dimension, show });

/** @type {(row: Float64Array, about: Pick<SumAbout, "name" | "title" | "text" | "scene">, factor: (i: number) => Factor, follows: (length: number) => [string, number][]) => Sum} */
function squares(row, about, factor, then) {
  const values = row.map((x) => x * x);
  const total = values.reduce((a, b) => a + b, 0);
  return sumUp({
    ...about,
    ...{ unit: "", total, values, columns: ["number", "itself", "itself"], follows: then(Math.sqrt(total)) },
    term: (i) => ({ label: String(i), factors: [factor(i), { name: "the same", value: row[i] }] }),
  });
}

// The length of the stream: √Σ x².
/** @type {(moment: Moment, place: StreamPlace) => Sum} */
function lengthSum(moment, place) {
  const row = rowView(streamAfter(moment, place), place.t);
  const isAdding = place.name !== "embed" && place.name !== "output";
  const added = isAdding ? row.map((x, i) => x - rowView(place.input, place.t)[i]) : null;
  return squares(
    row,
    {
      name: "length",
      title: "sum of the squares",
      text: "How large the stream is here: the root of the sum of the squares of its numbers.",
      scene: "forward",
    },
    (i) => ({ name: `number ${i} of the stream`, value: row[i], to: askedOf(place.name, place.t, i, "number") }),
    (length) => [
      ["length = √ of the sum", length],
      ...(added ? [/** @type {[string, number]} */ (["length of what this stage added", Math.hypot(...added)])] : []),
    ],
  );
}

// The length of the message that arrives: √Σ m².
/** @type {(moment: Moment, place: StreamPlace) => Sum} */
function arrivingSum({ tokens }, { name, t, messageIn, above, words }) {
  const row = rowView(messageIn, t);
  return squares(
    row,
    {
      name: "strength",
      title: "sum of the squares",
      text:
        name === "output"
          ? "How strong the message ∂loss/∂score is that arrives here: p of each word, and p − 1 of the right word."
          : "How strong the message ∂loss/∂x is that arrives here from above.",
      scene: "backward",
    },
    (i) =>
      name === "output"
        ? {
            name: `∂loss/∂score of “${words[i]}”`,
            value: row[i],
            to:
              t === tokens.length - 1
                ? { kind: "bar", stage: "output", position: t, word: i, show: "gradient" }
                : undefined,
          }
        : {
            name: `∂loss/∂x of number ${i}`,
            value: row[i],
            to: above.name === "output" && t < tokens.length - 1 ? undefined : askedOf(above.name, t, i, "message"),
          },
    (length) => [["length = √ of the sum", length]],
  );
}

// One number of the message below a stage: the message above, and what came back through each weight of the stage.
/** @type {(moment: Moment, place: StreamPlace, dimension: number | undefined) => Sum} */
function messageSum(moment, { name, path, t, input, messageIn, messageOut, inside, above, words }, dimension) {
  const { params } = moment;
  const out = /** @type {Leaf} */ (messageOut);
  const n = out.shape[1];
  const d = dimension ?? farthest(rowView(out, t));
  const weights = select(params, path);
  /** @type {[leaf: string, message: Leaf][]} */
  let paths = [["unembed", messageIn]];
  if (name.endsWith("mlp")) paths = [["up", inside.toHidden]];
  if (name.endsWith("attention")) {
    paths = [
      ["query", inside.toAsked],
      ["key", inside.toOffered],
      ["value", inside.toValue],
    ];
  }
  const r = shrink(input, t);
  const gain = weights.norm.data;
  const toNormed = rowView(backThrough(paths.map(([leaf, message]) => [weights[leaf], message])), t);
  const x = rowView(input, t);
  const along = x.reduce((total, value, i) => total + value * gain[i] * toNormed[i], 0);
  /** @type {Term[]} */
  const first = [];
  if (name !== "output") {
    const value = valueAt(messageIn, t, d);
    /** @type {Factor} */
    const arriving = {
      name: `the message after ${name}`,
      value,
      to:
        above.name === "output" && rowView(messageIn, t).every((m) => m === 0)
          ? undefined
          : askedOf(above.name, t, d, "message"),
    };
    first.push({ label: "from above", factors: [arriving], value });
  }
  first.push({
    label: "size",
    factors: [
      {
        name: "what the norm gives back: it keeps the size of the stream, so a part along the stream has no effect",
        value: (-x[d] * r ** 3 * along) / n,
      },
    ],
    value: (-x[d] * r ** 3 * along) / n,
  });
  const each = paths.flatMap(([leaf, message]) => {
    const told = rowView(message, t);
    return Array.from(told, (value, j) => ({ leaf, j, m: told.length, value }));
  });
  const factorOf = (/** @type {number} */ i) => weights[each[i].leaf].data[d * each[i].m + each[i].j];
  const normed = r * gain[d];
  return sumUp({
    name: "message",
    title: `∂loss/∂x of number ${d}, below`,
    text:
      name === "output"
        ? "The chain rule: each word's error, times its weight for this number, times what the norm did to it."
        : "The chain rule: the message from above passes on unchanged, and through each weight comes the message behind it · the weight · what the norm did.",
    ...{ unit: "nats", scene: "backward", total: valueAt(out, t, d), follows: [] },
    columns: ["through", "message", "weight", "norm"],
    values: [...first.map(({ value }) => value), ...each.map(({ value }, i) => value * factorOf(i) * normed)],
    term: (i) => {
      if (i < first.length) return first[i];
      const { leaf, j, m, value } = each[i - first.length];
      const weight = weightFactor(params, `${dotted(path)}.${leaf}`, d * m + j);
      return {
        label:
          leaf === "unembed"
            ? words[j]
            : leaf === "up"
              ? `unit ${j}`
              : `${leaf} ${weights[leaf].shape.slice(1).length > 1 ? `${Math.floor(j / weights[leaf].shape[2])}, ${j % weights[leaf].shape[2]}` : j}`,
        factors: [
          {
            name: `the message to ${leaf === "unembed" ? `the score of “${words[j]}”` : leaf === "up" ? `hidden unit ${j}` : `the ${leaf}`}`,
            value,
          },
          weight,
          { name: "1 / size of the stream · gain of the norm", value: normed },
        ],
      };
    },
    dimension: { at: d, n },
  });
}

// The blame of what a stage wrote at one position: −gradient · step, weight by weight, of the loss through this position.
/** @type {(moment: Moment, place: StreamPlace) => Sum} */
function blameSum({ params, update, blame }, { path, t, messageIn, vjp }) {
  const only = array(messageIn.shape);
  rowView(only, t).set(rowView(messageIn, t));
  const [grads] = vjp(only);
  const steps = namedLeaves(select(update, path));
  const leaves = Object.entries(namedLeaves(grads)).map(([leaf, { data }]) => ({ leaf, data, step: steps[leaf].data }));
  const values = leaves.flatMap(({ data, step }) => Array.from(data, (gradient, i) => -gradient * step[i]));
  const total = values.reduce((a, b) => a + b, 0);
  const find = (/** @type {number} */ i) => {
    let index = i;
    for (const { leaf, data, step } of leaves) {
      if (index < data.length) return { leaf, index, gradient: data[index], step: step[index] };
      index -= data.length;
    }
    throw new RangeError(`no weight ${i}`);
  };
  return sumUp({
    name: "blame",
    title: "blame of this box",
    text: "The part of the promised drop in loss that comes from here: of each weight, minus its gradient through this box, times its step.",
    ...{ unit: "nats", scene: "backward", total, values },
    columns: ["weight", "−gradient", "step"],
    term: (i) => {
      const { leaf, index, gradient, step } = find(i);
      const full = `${dotted(path)}.${leaf}`;
      return {
        label: weightName(params, full, index).slice(dotted(path).length + 1),
        factors: [
          { name: "minus the gradient through this position", value: -gradient },
          { name: "the step", value: step },
        ],
        to: { kind: "weight", weight: { name: full, index } },
      };
    },
    follows: [["share of all blame", total / blame.total, "%"]],
  });
}
