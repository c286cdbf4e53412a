// The answers to all problems, fast: one word at a time, and what problems with the same beginning share is read once.

import { EPSILON, meanSquare } from "./model.mjs";
import { answerOf, END, Tokenizer } from "./tokenizer.mjs";
import { TASKS } from "./worker.mjs";

// Reads a sequence word by word, as model.mjs reads it as a whole. It keeps the keys and the values of each position, so
// another sequence with the same beginning goes on from there.
export class Reader {
  /** @param {Params} params */
  constructor(params) {
    this.params = params;
    const longest = params.embed.position.shape[0];
    const [width, heads, headWidth] = params.blocks[0].attention.query.shape;
    this.width = width;
    this.heads = heads;
    this.headWidth = headWidth;
    const size = this.heads * this.headWidth;
    this.caches = params.blocks.map(() => ({
      key: new Float64Array(longest * size),
      value: new Float64Array(longest * size),
    }));
    const of = (/** @type {number} */ n) => new Float64Array(n);
    const hidden = Math.max(...params.blocks.map(({ mlp }) => mlp.up.shape[1]));
    this.x = of(this.width);
    this.normed = of(this.width);
    this.query = of(size);
    this.mixed = of(size);
    this.hidden = of(hidden);
    this.logits = of(params.output.unembed.shape[1]);
    this.shares = of(longest);
  }

  // Reads the word at a position. Returns the scores of the next word, valid until the next call; with `scored` false it
  // leaves out what only they need.
  /** @type {(token: number, position: number, scored: boolean) => Float64Array} */
  read(token, position, scored) {
    const { embed, blocks, output } = this.params;
    const { width, x, normed } = this;
    for (let i = 0; i < width; i++)
      x[i] = embed.token.data[token * width + i] + embed.position.data[position * width + i];
    for (let b = 0; b < blocks.length; b++) {
      const { attention, mlp } = blocks[b];
      normInto(normed, x, attention.norm.data);
      if (!this.#attend(attention, b, position, scored || b < blocks.length - 1)) return this.logits;
      normInto(normed, x, mlp.norm.data);
      const n = mlp.up.shape[1];
      const hidden = this.hidden.subarray(0, n).fill(0);
      addProduct(hidden, normed, mlp.up.data);
      for (let i = 0; i < n; i++) if (hidden[i] < 0) hidden[i] = 0;
      addProduct(x, hidden, mlp.down.data);
    }
    normInto(normed, x, output.norm.data);
    addProduct(this.logits.fill(0), normed, output.unembed.data);
    return this.logits;
  }

  /** @type {(params: AttentionParams, block: number, position: number, mixes: boolean) => boolean} */
  #attend(params, block, position, mixes) {
    const { heads, headWidth, normed, query, mixed, shares } = this;
    const size = heads * headWidth,
      { key, value } = this.caches[block];
    const here = (/** @type {Float64Array} */ cache) => cache.subarray(position * size, (position + 1) * size);
    addProduct(here(key).fill(0), normed, params.key.data);
    addProduct(here(value).fill(0), normed, params.value.data);
    for (let head = 0; head < heads; head++) normalize1(here(key), head * headWidth, headWidth);
    if (!mixes) return false;
    addProduct(query.fill(0), normed, params.query.data);
    mixed.fill(0);
    for (let head = 0; head < heads; head++) {
      const start = head * headWidth;
      normalize1(query, start, headWidth);
      let most = -Infinity,
        total = 0;
      for (let s = 0; s <= position; s++) {
        let dot = 0;
        for (let c = start; c < start + headWidth; c++) dot += query[c] * key[s * size + c];
        shares[s] = dot / Math.sqrt(headWidth);
        if (shares[s] > most) most = shares[s];
      }
      for (let s = 0; s <= position; s++) total += shares[s] = Math.exp(shares[s] - most);
      for (let s = 0; s <= position; s++) {
        const share = shares[s] / total;
        for (let c = start; c < start + headWidth; c++) mixed[c] += share * value[s * size + c];
      }
    }
    addProduct(this.x, mixed, params.out.data);
    return true;
  }
}

/** @type {(to: Float64Array, x: Float64Array, gain: Float64Array) => void} */
function normInto(to, x, gain) {
  const factor = 1 / Math.sqrt(meanSquare(x, 0, x.length) + EPSILON);
  for (let i = 0; i < x.length; i++) to[i] = x[i] * factor * gain[i];
}

// rmsNorm of a part of an array, in place.
/** @type {(x: Float64Array, start: number, n: number) => void} */
function normalize1(x, start, n) {
  const factor = 1 / Math.sqrt(meanSquare(x, start, n) + EPSILON);
  for (let i = start; i < start + n; i++) x[i] *= factor;
}

// to += x · weights, four rows of the weights at a time; rows whose x is 0 are left out, as most hidden values are.
/** @type {(to: Float64Array, x: Float64Array, weights: Float64Array) => void} */
function addProduct(to, x, weights) {
  const m = to.length;
  let n = 0;
  for (let j = 0; j < x.length; j++) if (x[j] !== 0) ROWS[n++] = j;
  let next = 0;
  for (; next + 3 < n; next += 4) {
    const [a, b, c, d] = [ROWS[next] * m, ROWS[next + 1] * m, ROWS[next + 2] * m, ROWS[next + 3] * m];
    const p = x[ROWS[next]],
      q = x[ROWS[next + 1]],
      r = x[ROWS[next + 2]],
      s = x[ROWS[next + 3]];
    for (let i = 0; i < m; i++)
      to[i] += p * weights[a + i] + q * weights[b + i] + r * weights[c + i] + s * weights[d + i];
  }
  for (; next < n; next++) {
    const start = ROWS[next] * m,
      p = x[ROWS[next]];
    for (let i = 0; i < m; i++) to[i] += p * weights[start + i];
  }
}

const ROWS = new Int32Array(1 << 16); // which values of x are not 0

// Every problem of a task: its prompt, the words of its right answer, and its cell of the table.
/** @type {(task: TaskData) => Problem[]} */
function problemsOf(task) {
  const tokenizer = new Tokenizer(task),
    n = task.max_number + 1,
    problems = [];
  for (let a = 0; a < n; a++) {
    for (const [row, operation] of task.operations.entries()) {
      for (let b = 0; b < n; b++) {
        const answer = answerOf(a, operation, b, task.max_number);
        if (answer === null) continue;
        const { tokens } = tokenizer.parse(`${a} ${operation} ${b}`);
        const words = [...tokenizer.spell(answer), END].map((word) => tokenizer.ids[word]);
        problems.push({ cell: (row * n + a) * n + b, prompt: tokenizer.encode({ tokens, begun: [] }), answer: words });
      }
    }
  }
  return problems;
}

// A model's answer to a problem, always taking the likeliest next word, as a byte of the table; `kept` words of the
// prompt have just been read. While the likeliest words are right this is one pass over question and answer.
/** @type {(reader: Reader, problem: Problem, kept: number, longest: number, end: number) => number} */
function verdictOf(reader, { prompt, answer }, kept, longest, end) {
  /** @type {Float64Array} */
  let scores = reader.logits;
  for (let t = kept; t < prompt.length; t++) scores = reader.read(prompt[t], t, t === prompt.length - 1);
  let right = true,
    p = 1;
  for (let step = 0; step < longest; step++) {
    let best = 0,
      total = 0;
    for (let word = 1; word < scores.length; word++) if (scores[word] > scores[best]) best = word;
    for (let word = 0; word < scores.length; word++) total += Math.exp(scores[word] - scores[best]);
    p /= total;
    right &&= best === answer[step];
    if (best === end || step === longest - 1) break;
    scores = reader.read(best, prompt.length + step, true);
  }
  return (right ? 128 : 0) + 1 + Math.round(126 * p);
}

const shared = (/** @type {number[]} */ a, /** @type {number[]} */ b) => {
  let n = 0;
  while (n < a.length && a[n] === b[n]) n += 1;
  return n;
};

// The whole table for {params, task, sample}: `sample` problems first, spread over the table, then the rest. Each progress
// and the result are {verdicts, done, all}: bytes as in data.mjs, 0 for what is not answered yet.
TASKS.table = async function* ({ params, task, sample = 600 }) {
  const problems = problemsOf(task),
    every = Math.max(1, Math.floor(problems.length / sample));
  const reader = new Reader(params),
    end = task.vocabulary.indexOf(END);
  const verdicts = new Uint8Array(task.operations.length * (task.max_number + 1) ** 2);
  let done = 0,
    /** @type {number[]} */
    before = [],
    shown = performance.now();
  const isFirst = (/** @type {number} */ index) => index % every === 0;
  for (const first of [true, false]) {
    for (const [index, problem] of problems.entries()) {
      if (isFirst(index) !== first) continue;
      verdicts[problem.cell] = verdictOf(reader, problem, shared(problem.prompt, before), task.answer_length, end);
      before = problem.prompt;
      done += 1;
      if (performance.now() - shown < 40) continue;
      yield { verdicts, done, all: problems.length };
      shown = performance.now();
    }
    if (first) yield { verdicts, done, all: problems.length };
  }
  return { verdicts, done, all: problems.length };
};
