// What is to be learned: a small table of problems, its held-out part and its batches, like tasks/table.py.

import { normalOf, randomOf, shuffled } from "./random.mjs";
import { answerOf, END } from "./tokenizer.mjs";
import { array } from "./trees.mjs";
import { EQUALS, numberToWords } from "./words.mjs";

// The streams of a seed. Epoch e has the stream EPOCHS + e.
const [WEIGHTS, HELD_OUT, EPOCHS] = [0, 1, 2];
const TWINS = ["plus", "times"]; // a + b is b + a

// The rows of the table, by operation, then a, then b: {a, operation, b, tokens, held}. A share of each operation's
// problems is held out. A problem and its twin, such as 2 + 3 and 3 + 2, are always on the same side.
/** @type {(task: TaskData, settings: Pick<LiveSettings, "operations" | "share" | "seed">) => Lesson[]} */
export function lessonsOf(task, { operations, share, seed }) {
  const random = randomOf(seed, HELD_OUT);
  return task.operations
    .filter((name) => operations.includes(name))
    .flatMap((name) => {
      const rows = lessonRows(task, name);
      /** @type {Record<string, Lesson[]>} */
      const groups = {};
      for (const row of rows) {
        const pair = TWINS.includes(name) ? [row.a, row.b].sort((x, y) => x - y) : [row.a, row.b];
        groups[pair.join()] ??= [];
        groups[pair.join()].push(row);
      }
      let room = Math.round(share * rows.length);
      for (const group of shuffled(Object.values(groups), random)) {
        room -= group.length;
        if (room < 0) break;
        for (const row of group) row.held = true;
      }
      return rows;
    });
}

// All problems of one operation whose answer is in the vocabulary, encoded: the question, the answer, its end.
/** @type {(task: TaskData, operation: string) => Lesson[]} */
function lessonRows(task, operation) {
  const ids = Object.fromEntries(task.vocabulary.map((word, id) => [word, id]));
  const rows = [];
  for (let a = 0; a <= task.max_number; a++) {
    for (let b = 0; b <= task.max_number; b++) {
      const answer = answerOf(a, operation, b, task.max_number);
      if (answer === null) continue;
      const question = [...numberToWords(a), operation, ...numberToWords(b), EQUALS];
      const words = [...question, ...numberToWords(answer), END];
      rows.push({ a, operation, b, tokens: words.map((word) => ids[word]), held: false });
    }
  }
  return rows;
}

// The sequences of one training step. An epoch visits every lesson once, in an order of its own; the next one follows
// without a gap.
/** @type {(lessons: Lesson[], seed: number, step: number, size: number) => number[][]} */
export function batchOf(lessons, seed, step, size) {
  /** @type {Record<number, Lesson[]>} */
  const orders = {};
  return Array.from({ length: size }, (_, i) => {
    const place = step * size + i,
      epoch = Math.floor(place / lessons.length);
    orders[epoch] ??= shuffled(lessons, randomOf(seed, EPOCHS + epoch));
    return orders[epoch][place % lessons.length].tokens;
  });
}

// Random parameters, like init of model.py: matrices have the standard deviation 1/√fan-in, half of that where they
// write to the stream, and 0.02 in the embeddings and the output.
/** @type {(seed: number, sizes: LiveModel & { words: number }) => Params} */
export function initialParams(seed, { words, positions, width, heads, hidden, blocks }) {
  const random = randomOf(seed, WEIGHTS);
  /** @type {(scale: number, ...shape: number[]) => Leaf} */
  const normal = (scale, ...shape) => {
    const leaf = array(shape);
    leaf.data.forEach((_, i) => (leaf.data[i] = scale * normalOf(random)));
    return leaf;
  };
  const ones = () => array([width], new Float64Array(width).fill(1));
  const scale = width ** -0.5,
    head = width / heads;
  return {
    embed: { token: normal(0.02, words, width), position: normal(0.02, positions, width) },
    blocks: Array.from({ length: blocks }, () => ({
      attention: {
        norm: ones(),
        query: normal(scale, width, heads, head),
        key: normal(scale, width, heads, head),
        value: normal(scale, width, heads, head),
        out: normal(0.5 * scale, heads, head, width),
      },
      mlp: {
        norm: ones(),
        up: normal(scale, width, hidden),
        down: normal(0.5 * hidden ** -0.5, hidden, width),
      },
    })),
    output: { norm: ones(), unembed: normal(0.02, width, words) },
  };
}
