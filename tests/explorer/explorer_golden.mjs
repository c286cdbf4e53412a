// The Node side of test_engine.py: `node explorer_golden.mjs TOPIC FILE` reads a question from a JSON file and
// prints as JSON what the explorer's engine makes of it.

import { readFileSync } from "node:fs";
import { walk } from "../../jaxcalc/explorer/backprop.mjs";
import { credit, finish, gaussLegendre } from "../../jaxcalc/explorer/credit.mjs";
import {
  adam, along, blame, finiteDifference, gradient, loss, sgd,
} from "../../jaxcalc/explorer/learning.mjs";
import { Reader } from "../../jaxcalc/explorer/table.mjs";
import { History, optimizerOf } from "../../jaxcalc/explorer/teaching.mjs";
import { TASKS } from "../../jaxcalc/explorer/worker.mjs";
import { momentOf } from "../../jaxcalc/explorer/moment.mjs";
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

async function resultOf(task) {
  for (;;) {
    const { done, value } = await task.next();
    if (done) return value;
  }
}

// Everything that the engine computes of one lesson: {"quantity/name": array}.
function recompute(params, { tokens, target, weights }, optimizers) {
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
    if (name === "sgd") putAccount("blame", blame(grads, update));
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

  // The credits of a step of SGD at each rate, beside the drop that two forward passes show.
  credits({ models, lessons, rates }) {
    const unpacked = Object.fromEntries(Object.entries(models).map(([name, tree]) => [name, treeMap(unpack, tree)]));
    return lessons.flatMap(({ model, tokens, target }) => rates.map((rate) => {
      const params = unpacked[model];
      const { update } = sgd(rate).update(gradient(params, tokens, target), null);
      const actual = loss(params, tokens, target) - loss(along(params, update), tokens, target);
      return { model, rate, actual, ...finish(credit(params, update, tokens, target)) };
    }));
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

Object.assign(TOPICS, {
  // One step of each lesson with each rate, or the sentence that refuses it.
  async teach({ models, lessons, kinds, rates, betas }) {
    const unpacked = Object.fromEntries(Object.entries(models).map(([name, tree]) => [name, treeMap(unpack, tree)]));
    const answers = [];
    for (const { model, tokens, target } of lessons) for (const kind of kinds) for (const rate of rates) {
      const params = unpacked[model], was = JSON.stringify(namedLeaves(params)["output.norm"]);
      const before = loss(params, tokens, target), asked = { kind, given: rate, before };
      try {
        const taught = await resultOf(TASKS.teach({ params, state: null, tokens, target, kind, rate, betas }));
        const ts = [0.013, 0.31, 0.77, 1.21, 1.93];
        const along_ = ts.map((t) => [t, loss(along(params, taught.update, t), tokens, target)]);
        const { losses, blame: { total: promise }, after, remainder, credit: { drop } } = taught;
        answers.push({
          ...asked, rate: taught.rate, losses, promise, after: after.loss, remainder, drop, along: along_,
          measured: loss(taught.params, tokens, target),
        });
      } catch (error) {
        if (!(error instanceof InputError)) throw error;
        answers.push({ ...asked, refused: error.message });
      }
      if (was !== JSON.stringify(namedLeaves(params)["output.norm"])) throw new Error("the weights have changed");
    }
    return answers;
  },

  // A thousand own steps: how many bytes they hold, and whether going back gives the same weights again.
  async history({ params: packed, tokens, target, kind, betas, n }) {
    let params = treeMap(unpack, packed), state = null;
    const history = new History(), firsts = [];
    const used = async () => {
      for (let round = 0; round < 3; round++) { // buffers are freed a little later
        globalThis.gc();
        await new Promise((resume) => setTimeout(resume, 50));
      }
      return process.memoryUsage().arrayBuffers + process.memoryUsage().heapUsed;
    };
    const moment = momentOf({ params, tokens, target, optimizer: optimizerOf(kind, 1e-4, betas) }), base = await used();
    for (let step = 0; step < n; step++) {
      history.push({ params, state });
      firsts.push(params.output.norm.data[0]);
      const grown = treeMap(copy, params); // what a step makes is of the same size whatever the step is
      grown.output.norm.data[0] = step;
      params = grown;
      state = kind === "sgd" ? null : { ...moment.next, mu: treeMap(copy, moment.next.mu), nu: treeMap(copy, moment.next.nu) };
    }
    const bytes = await used() - base, { depth } = history, back = [];
    for (let entry = history.undo(); entry; entry = history.undo()) back.push(entry.params.output.norm.data[0]);
    return { bytes, depth, same: back.every((value, i) => value === firsts.at(-1 - i)), left: history.depth };
  },

  // Every verdict that the page's table shows, and the largest difference between both ways to read.
  async table({ params: packed, task, sequences, sample }) {
    const params = treeMap(unpack, packed), reader = new Reader(params);
    const differences = sequences.map((tokens) => {
      const scores = trace(params, tokens).logits.data.slice(-params.output.unembed.shape[1]);
      tokens.forEach((token, t) => reader.read(token, t, t === tokens.length - 1));
      return Math.max(...scores.map((score, word) => Math.abs(score - reader.logits[word])));
    });
    const progress = [], answering = TASKS.table({ params, task, sample });
    for (;;) {
      const { done, value } = await answering.next();
      progress.push([value.done, value.verdicts.filter((byte) => byte).length, value.all]);
      if (done) return { verdicts: Array.from(value.verdicts), progress, difference: Math.max(...differences) };
    }
  },
});

const copy = ({ shape, data }) => array(shape, data.slice());
const [topic, file] = process.argv.slice(2);
process.stdout.write(JSON.stringify(await TOPICS[topic](JSON.parse(readFileSync(file, "utf8")))));
