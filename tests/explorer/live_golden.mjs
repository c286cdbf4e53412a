// The Node side of test_live.py: `node live_golden.mjs TOPIC FILE` reads a question from a JSON file and prints as JSON
// what the training in the page makes of it.

import { readFileSync } from "node:fs";
import { along, gradient, loss } from "../../jaxcalc/explorer/learning.mjs";
import { batchOf, initialParams, lessonsOf } from "../../jaxcalc/explorer/lessons.mjs";
import { courseOf, sharesOf, trained, verdictsOf } from "../../jaxcalc/explorer/live.mjs";
import { scheduleOf, trainingOptimizer } from "../../jaxcalc/explorer/optimizers.mjs";
import { batchGradient } from "../../jaxcalc/explorer/training.mjs";
import { add, array, namedLeaves, treeMap } from "../../jaxcalc/explorer/trees.mjs";

const unpack = ({ shape, data }) => array(shape, new Float64Array(Uint8Array.from(Buffer.from(data, "base64")).buffer));
const listed = (tree) => Object.fromEntries(Object.entries(namedLeaves(tree)).map(([name, leaf]) => [name, Array.from(leaf.data)]));

const TOPICS = {
  // Some steps of training: the loss before each, and the parameters after all.
  train({ params: packed, batches, n_targets, name, rate, n_steps, decay }) {
    const optimizer = trainingOptimizer(name, scheduleOf(rate, n_steps), decay);
    let params = treeMap(unpack, packed), state = optimizer.init(params);
    const losses = batches.map((sequences) => {
      const made = batchGradient(params, sequences, n_targets);
      const { update, state: next } = optimizer.update(made.grads, state, params);
      params = along(params, update);
      state = next;
      return made.loss;
    });
    return { losses, params: listed(params) };
  },

  // A batch's loss and gradient against the mean over its words, one sequence at a time by the readable engine.
  readable({ params: packed, sequences, n_targets }) {
    const params = treeMap(unpack, packed), ours = batchGradient(params, sequences, n_targets);
    const words = sequences.flatMap((tokens) =>
      Array.from({ length: n_targets }, (_, i) => {
        const place = tokens.length - n_targets + i;
        return [tokens.slice(0, place), tokens[place]];
      }));
    const mean = treeMap(({ shape, data }) => array(shape, data.map((value) => value / words.length)),
      words.map((word) => gradient(params, ...word)).reduce((a, b) => treeMap(add, a, b)));
    return {
      losses: [ours.loss, words.reduce((total, word) => total + loss(params, ...word), 0) / words.length],
      gradients: [listed(ours.grads), listed(mean)],
      shares: sharesOf(ours.grads),
    };
  },

  lessons: ({ task, settings, sizes }) => {
    const lessons = lessonsOf(task, settings), training = lessons.filter(({ held }) => !held);
    const epoch = Math.ceil(training.length / 16);
    return {
      lessons,
      batches: Array.from({ length: 2 * epoch }, (_, step) => batchOf(training, settings.seed, step, 16)),
      params: listed(initialParams(settings.seed, sizes)),
    };
  },

  // Steps until one is refused: the sentence, and whether the numbers before it are finite.
  refusal({ data, settings }) {
    const course = courseOf(data, settings);
    let run = course.start();
    try {
      while (run.step < 20) run = trained(run, course, settings).run;
    } catch (error) {
      const leaves = Object.values(namedLeaves(run.params));
      return { message: error.message, finite: leaves.every(({ data }) => data.every(Number.isFinite)) };
    }
    return { message: null };
  },

  verdicts: ({ params, lessons, end }) => Array.from(verdictsOf(treeMap(unpack, params), lessons, end)),
};

const [topic, file] = process.argv.slice(2);
process.stdout.write(JSON.stringify(TOPICS[topic](JSON.parse(readFileSync(file, "utf8")))));
