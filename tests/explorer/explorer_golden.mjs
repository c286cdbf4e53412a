// The Node side of test_engine.py: `node explorer_golden.mjs TOPIC FILE` reads a question from a JSON file and
// prints as JSON what the explorer's engine makes of it.

import { readFileSync } from "node:fs";
import { walk } from "../../jaxcalc/explorer/backprop.mjs";
import {
  adam, along, blame, credit, finiteDifference, gaussLegendre, gradient, loss, sgd,
} from "../../jaxcalc/explorer/learning.mjs";
import { trace } from "../../jaxcalc/explorer/model.mjs";
import { InputError, Tokenizer } from "../../jaxcalc/explorer/tokenizer.mjs";
import { array, fromLeaves, namedLeaves, norm, placeOf, rowNorms, treeMap } from "../../jaxcalc/explorer/trees.mjs";
import { numberToWords } from "../../jaxcalc/explorer/words.mjs";

const unpack = ({ shape, data }) => array(shape, new Float64Array(Uint8Array.from(Buffer.from(data, "base64")).buffer));
const scalar = (value) => array([], Float64Array.of(value));

// max |ours − theirs| / max |theirs − origin|; NaN where the two are not alike in shape.
function relativeError(ours, theirs, origin) {
  if (ours.shape.join() !== theirs.shape.join() || ours.data.length !== theirs.data.length) return NaN;
  let difference = 0, size = 0;
  theirs.data.forEach((value, i) => {
    difference = Math.max(difference, Math.abs(ours.data[i] - value));
    size = Math.max(size, Math.abs(value - (origin?.data[i] ?? 0)));
  });
  return difference === 0 ? 0 : difference / size;
}

// Everything that the engine computes of one lesson: {"quantity/name": array}.
function recompute(params, { tokens, target, weights, n_points }, optimizers) {
  const found = {};
  const put = (quantity, tree) => {
    for (const [name, leaf] of Object.entries(namedLeaves(tree))) found[`${quantity}/${name}`] = leaf;
  };
  const putAccount = (quantity, { nats, total }) => {
    for (const [name, value] of Object.entries({ ...nats, total })) put(quantity, { [name]: scalar(value) });
  };
  for (const [name, index] of weights) {
    put("difference", { [`${name}[${index}]`]: scalar(finiteDifference(params, name, index, tokens, target)) });
  }
  const { logits, activations } = trace(params, tokens);
  put("logits", logits);
  put("activation", activations);
  put("loss", scalar(loss(params, tokens, target)));
  for (const { name, messageIn } of walk(params, tokens, target)) put("message", { [name]: messageIn });
  const grads = gradient(params, tokens, target);
  put("gradient", grads);
  for (const [name, optimizer] of Object.entries(optimizers)) {
    const { update } = optimizer.update(grads, optimizer.init(params));
    put(name, along(params, update));
    if (name !== "sgd") continue;
    putAccount("blame", blame(grads, update));
    if (n_points) putAccount("credit", credit(params, update, tokens, target, n_points));
  }
  return found;
}

const made = (optimizers) =>
  Object.fromEntries(Object.entries(optimizers).map(([name, args]) => [name, { sgd, adam }[name](...args)]));

const TOPICS = {
  // The relative error of each expected array, lesson by lesson. After a step it is relative to the step.
  lessons({ models, lessons, optimizers }) {
    const unpacked = Object.fromEntries(Object.entries(models).map(([name, tree]) => [name, treeMap(unpack, tree)]));
    return lessons.map((lesson) => {
      const params = unpacked[lesson.model], leaves = namedLeaves(params);
      const found = recompute(params, lesson, made(optimizers));
      return Object.fromEntries(Object.entries(lesson.expected).map(([name, expected]) => {
        const [quantity, leaf] = name.split("/");
        return [name, relativeError(found[name], unpack(expected), quantity in optimizers ? leaves[leaf] : undefined)];
      }));
    });
  },

  // The relative error of each update of several in a row.
  updates({ gradients, updates, optimizers }) {
    return Object.entries(made(optimizers)).flatMap(([name, optimizer]) => {
      let state = optimizer.init(treeMap(unpack, gradients[0]));
      return gradients.flatMap((packed, step) => {
        const result = optimizer.update(treeMap(unpack, packed), state);
        state = result.state;
        const theirs = namedLeaves(treeMap(unpack, updates[name][step]));
        return Object.entries(namedLeaves(result.update)).map(([leaf, ours]) => relativeError(ours, theirs[leaf]));
      });
    });
  },

  // What is read in each text, or the error that refuses it.
  texts: (tasks) => tasks.map(({ task, texts }) => {
    const tokenizer = new Tokenizer(task);
    return texts.map((text) => {
      try {
        const question = tokenizer.parse(text);
        const { a, operation, b, answer } = question, ids = tokenizer.encode(question);
        return { problem: [a, operation, b], answer, spelled: answer === null ? null : tokenizer.spell(answer), ids };
      } catch (error) {
        return error instanceof InputError ? error.message : { crash: String(error) };
      }
    });
  }),

  numbers: ({ numbers, n_points }) => ({
    words: numbers.map((number) => numberToWords(number).join(" ")),
    quadrature: gaussLegendre(n_points),
  }),

  trees({ tree, rows, shape }) {
    const unpacked = treeMap(unpack, tree);
    return {
      names: Object.keys(namedLeaves(unpacked)),
      rebuilt: JSON.stringify(fromLeaves(namedLeaves(unpacked))) === JSON.stringify(unpacked),
      norm: norm(unpacked),
      rowNorms: rowNorms(unpack(rows)),
      places: Array.from({ length: shape.reduce((a, b) => a * b) }, (_, index) => placeOf(shape, index)),
    };
  },
};

const [topic, file] = process.argv.slice(2);
process.stdout.write(JSON.stringify(TOPICS[topic](JSON.parse(readFileSync(file, "utf8")))));
