// The arithmetic of one weight: its gradient by the chain rule and by finite difference, its step, and its blame.

import { finiteDifference } from "./learning.mjs";
import { rmsNorm } from "./model.mjs";
import { backThrough, sumUp, weightName } from "./sums.mjs";
import { namedLeaves } from "./trees.mjs";

/** @type {(moment: Moment, asked: Asked, about: ArithmeticAbout) => Arithmetic} */
export function ofWeight(moment, { weight }, about) {
  const { name, index } = /** @type {{ name: string, index: number }} */ (weight);
  const title = weightName(moment.params, name, index);
  const of = (/** @type {Params} */ tree) => namedLeaves(tree)[name].data[index];
  const [value, gradient, step] = [of(moment.params), of(moment.grads), of(moment.update)];
  return {
    title: `weight ${title}`,
    sums: [
      gradientSum(moment, name, index, about.words),
      stepSum(moment, { value, gradient, step, of }, about),
      sumUp({
        name: "blame",
        title: "blame of the weight",
        text: "The part of the promised drop in loss that comes from this weight: minus its gradient times its step.",
        ...{ unit: "nats", scene: "backward", total: -gradient * step, values: [-gradient * step] },
        columns: ["", "−gradient", "step"],
        term: () => ({
          label: "product",
          factors: [
            { name: "minus its gradient", value: -gradient },
            { name: "its step", value: step },
          ],
        }),
        follows: [["share of all blame", (-gradient * step) / moment.blame.total, "%"]],
      }),
    ],
  };
}

// What a weight was multiplied by, times the message to what it made, at each position.
/** @type {(moment: Moment, name: string, index: number, words: string[]) => Sum} */
function gradientSum(moment, name, index, words) {
  const { params, grads, tokens, target, edits } = moment;
  const { input, message, reads, feels, row } = sidesOf(moment, name);
  const m = message.data.length / tokens.length;
  const [i, j] = name.endsWith("norm") ? [index, index] : [Math.floor(index / m), index % m];
  const k = input.data.length / tokens.length;
  const isIn = (/** @type {number} */ t) => row === null || (row === "token" ? tokens[t] : t) === i;
  const from = tokens.map((_, t) => (row === null ? input.data[t * k + i] : isIn(t) ? 1 : 0));
  const told = tokens.map((_, t) => message.data[t * m + j]);
  const measured = finiteDifference(params, name, index, tokens, target, edits);
  return sumUp({
    name: "gradient",
    title: "∂loss/∂weight",
    text: `The chain rule: at each position, ${reads} times the message ∂loss/∂x to ${feels}. Their sum says how fast the loss rises with the weight.`,
    ...{ unit: "nats", scene: "backward", total: namedLeaves(grads)[name].data[index] },
    columns: ["at", "input", "message"],
    values: from.map((x, t) => x * told[t]),
    term: (t) => ({
      label: `“${words[tokens[t]]}” ${t}`,
      factors: [
        { name: reads, value: from[t] },
        { name: `the message to ${feels}`, value: told[t] },
      ],
    }),
    follows: [["measured: (loss(w + h) − loss(w − h)) / 2h, h = 10⁻⁶", measured]],
  });
}

// What the weights of an array read and what they make: the input at each position, and the message to the product.
// `row` says for an embedding what chooses the row; nothing is multiplied there.
/** @type {(moment: Moment, name: string) => { input: Leaf, message: Leaf, reads: string, feels: string, row: "token" | "position" | null }} */
function sidesOf({ params, activations, walked }, name) {
  const stage = walked.find(({ path }) => path && name.startsWith(`${path.join(".")}.`));
  const { input, messageIn, path, inside } = /** @type {Walked} */ (stage);
  const leaf = name.split(".").at(-1);
  /** @type {(input: Leaf, message: Leaf, reads: string, feels: string) => ReturnType<typeof sidesOf>} */
  const sides = (input, message, reads, feels) => ({ input, message, reads, feels, row: null });
  if (leaf === "token" || leaf === "position")
    return { ...sides(messageIn, messageIn, `1 where this ${leaf} is`, "the stream"), row: leaf };
  const [normed, plain] = ["the normalised stream", "the stream before the gain"];
  if (path?.[0] === "output") {
    const made = activations.output;
    if (leaf === "unembed") return sides(made.normed, messageIn, normed, "the word's score");
    return sides(rmsNorm(input), backThrough([[params.output.unembed, messageIn]]), plain, "the normalised stream");
  }
  const block = Number(path?.[1]);
  if (path?.[2] === "mlp") {
    const [weights, made] = [params.blocks[block].mlp, activations.blocks[block].mlp];
    const { toHidden } = inside;
    if (leaf === "down") return sides(made.hidden, messageIn, "the hidden unit", "the stream");
    if (leaf === "up") return sides(made.normed, toHidden, normed, "the hidden unit");
    return sides(rmsNorm(input), backThrough([[weights.up, toHidden]]), plain, "the normalised stream");
  }
  const [weights, made] = [params.blocks[block].attention, activations.blocks[block].attention];
  const { toAsked, toOffered, toValue } = inside;
  if (leaf === "out") return sides(made.mixed, messageIn, "the value that attention mixed", "the stream");
  if (leaf === "query") return sides(made.normed, toAsked, normed, "the query");
  if (leaf === "key") return sides(made.normed, toOffered, normed, "the key");
  if (leaf === "value") return sides(made.normed, toValue, normed, "the value");
  /** @type {[Leaf, Leaf][]} */
  const paths = [
    [weights.query, toAsked],
    [weights.key, toOffered],
    [weights.value, toValue],
  ];
  return sides(rmsNorm(input), backThrough(paths), plain, "the normalised stream");
}

// The weight after the step: the weight, and what the optimizer makes of the gradient.
/** @type {(moment: Moment, weight: { value: number, gradient: number, step: number, of: (tree: Params) => number }, about: ArithmeticAbout) => Sum} */
function stepSum({ rate: given, next }, { value, gradient, step, of }, { betas }) {
  const isAdam = next && betas;
  const rateFor = (/** @type {number} */ direction) => -(given ?? (direction ? -step / direction : 0));
  /** @type {Factor[]} */
  let factors = [
    { name: "minus the learning rate", value: rateFor(gradient) },
    { name: "the gradient", value: gradient },
  ];
  /** @type {[string, number][]} */
  let then = [["the step", step]];
  if (isAdam) {
    const [b1, b2] = betas;
    const [mean, square] = [of(next.mu) / (1 - b1 ** next.count), of(next.nu) / (1 - b2 ** next.count)];
    const direction = mean / (Math.sqrt(square) + 1e-8);
    factors = [
      { name: "minus the learning rate", value: rateFor(direction) },
      { name: "μ̂, the mean of the gradients, divided by √ν̂ + 10⁻⁸", value: direction },
    ];
    then = [
      ["the gradient now", gradient],
      [`μ, the mean of the gradients, after ${next.count}`, of(next.mu)],
      [`μ̂ = μ / (1 − ${b1}ⁿ)`, mean],
      ["ν, the mean of their squares", of(next.nu)],
      [`ν̂ = ν / (1 − ${b2}ⁿ)`, square],
      ...then,
    ];
  }
  return sumUp({
    name: "step",
    title: "the weight after the step",
    text: isAdam
      ? "Adam takes a step of −rate · μ̂ / (√ν̂ + 10⁻⁸), from the running means of the gradients and of their squares."
      : "Gradient descent takes a step of −rate · gradient: against the slope, so that the loss falls.",
    ...{ unit: "", scene: "update", total: value + step, values: [value, step] },
    columns: ["", "−rate", isAdam ? "μ̂ / (√ν̂ + 10⁻⁸)" : "gradient"],
    term: (i) => (i ? { label: "step", factors } : { label: "weight", factors: [] }),
    follows: then,
  });
}
