// @ts-nocheck
// The state that all parts of the page show, and the ways to change it.

import { MEMBERSHIP, unpack, unpackWeights } from "./data.mjs";
import { along, blame, loss } from "./learning.mjs";
import { lastRow, softmax, trace } from "./model.mjs";
import { momentOf } from "./moment.mjs";
import { halvingRate, History, optimizerOf } from "./teaching.mjs";
import { END, InputError, Tokenizer } from "./tokenizer.mjs";

const MOST_STEPS = 100; // of “until right”

export class App {
  constructor(data, engine) {
    this.data = data;
    this.engine = engine;
    this.tokenizer = new Tokenizer(data.task);
    this.words = data.task.vocabulary;
    this.unpacked = [];
    this.kind = "sgd";
    this.chosenRate = null; // null: the rate that promises half of the loss
    this.optimizerState = null;
    this.history = new History();
    this.stepped = 0;
    this.tour = null; // or the stop of the tour that is shown, from 1
    this.weight = { name: "blocks.0.attention.query", index: 0 };
    this.onchange = () => {};
  }

  async start() {
    this.membership = this.data.membership && (await unpack(this.data.membership));
  }

  // A question, or a question and the beginning of its answer: {parsed, tokens, target}. Throws an InputError.
  read(text) {
    const parsed = this.tokenizer.parse(text);
    const longest = this.data.task.answer_length - 1;
    if (parsed.begun.length > longest)
      throw new InputError(`the answer has at most ${longest} words before its end; leave out the rest`);
    const answer = this.rightWords(parsed);
    const fits = answer && parsed.begun.every((word, i) => word === answer[i]) && parsed.begun.length < answer.length;
    const target = fits ? this.tokenizer.ids[answer[parsed.begun.length]] : null;
    return { parsed, tokens: this.tokenizer.encode(parsed), target };
  }

  // The words of the right answer and its end, or null if it is not a number of the vocabulary.
  rightWords({ answer }) {
    return answer === null ? null : [...this.tokenizer.spell(answer), END];
  }

  setPrompt(text) {
    this.prompt = text;
    Object.assign(this, this.read(text));
    this.#changed("question");
  }

  async setSnapshot(index) {
    if (await this.load(index)) this.#changed("snapshot");
  }

  // The weights of a snapshot, without an answer yet. The user's own steps are kept as a branch.
  load(index) {
    if (this.stepped) this.branch = this.#remember();
    return this.#load(index);
  }

  // Back to the weights that the user's own steps made.
  async returnToBranch() {
    const { branch } = this;
    this.branch = null;
    if (!(await this.#load(branch.snapshot))) return;
    Object.assign(this, branch);
    this.#changed("snapshot");
  }

  setTarget(id) {
    this.target = id;
    this.#changed("question");
  }

  // A rate of null is the one that promises half of the loss.
  setOptimizer(kind, rate) {
    if (kind !== this.kind) this.optimizerState = null;
    Object.assign(this, { kind, chosenRate: rate });
    this.#changed("rate");
  }

  // Takes so many steps, or fewer if the right word becomes the likeliest: the lesson, {before, after, taken}. Null if the
  // user has gone on meanwhile; an InputError says why no step could be taken.
  async teach(times, untilRight = false) {
    const before = this.moment;
    const kept = this.#remember();
    const lesson = { before, after: before, taken: 0 };
    this.teaching = lesson;
    while (lesson.taken < times && !(untilRight && lesson.taken && this.isRightWord())) {
      try {
        const { params, state } = await this.#stepInWorker(lesson);
        if (this.teaching !== lesson) return null;
        Object.assign(this, { params, optimizerState: state });
      } catch (error) {
        if (!lesson.taken) throw error;
        break;
      }
      lesson.taken++;
      this.#take(this.#momentAt(this.params, this.optimizerState));
    }
    this.history.push({ ...kept, state: kept.optimizerState });
    this.stepped += lesson.taken;
    lesson.after = this.moment;
    this.lesson = lesson;
    this.last = this.#account(lesson);
    this.onchange("lesson");
    return lesson;
  }

  untilRight() {
    return this.teach(MOST_STEPS, true);
  }

  // One step. Its credit takes longer and comes after it.
  #stepInWorker(lesson) {
    const { params, optimizerState: state, tokens, target, kind, chosenRate: rate } = this;
    const input = { params, state, tokens, target, kind, rate, betas: this.data.adam_betas };
    return new Promise((resolve, reject) => {
      this.engine.run("teach", input, resolve).then((result) => {
        if (!result || this.lesson !== lesson || lesson.taken > 1) return;
        this.last.credit = { ...result.credit, remainder: result.remainder };
        this.onchange("credit");
      }, reject);
    });
  }

  isRightWord() {
    return this.probabilities[this.target] === Math.max(...this.probabilities);
  }

  undo() {
    this.#goBack(this.history.undo());
  }

  async reset() {
    const { snapshot, kind } = this;
    if (await this.#load(snapshot)) this.#goBack({ params: this.params, kind, stepped: 0 });
  }

  // What a lesson would do: the moment after the step. It is computed when it is first shown.
  get after() {
    this.preview ??= this.#momentAt(along(this.params, this.moment.update), this.moment.next);
    return this.preview;
  }

  scores() {
    return lastRow(this.logits);
  }

  // The stream after each stage.
  streams() {
    return [
      ["embed", this.activations.embed.residual],
      ...this.activations.blocks.flatMap((block, i) => [
        [`block ${i} attention`, block.attention.residual],
        [`block ${i} mlp`, block.mlp.residual],
      ]),
    ];
  }

  // The answer of the model, always taking the likeliest next word: {words, p}.
  answer(parsed = this.parsed, params = this.params) {
    const tokens = this.tokenizer.encode({ ...parsed, begun: [] }),
      words = [];
    let p = 1;
    while (words.length < this.data.task.answer_length) {
      const shares = softmax(lastRow(trace(params, tokens).logits));
      const best = shares.indexOf(Math.max(...shares));
      p *= shares[best];
      tokens.push(best);
      words.push(this.words[best]);
      if (words.at(-1) === END) break;
    }
    return { words, p };
  }

  // "training", "held out" or "outside" (not a problem of the table); null if the page has no table.
  membershipOf({ a, operation, b }) {
    if (!this.membership) return null;
    return MEMBERSHIP[this.membership[this.cellOf(this.tokenizer.operations.indexOf(operation), a, b)]];
  }

  // The place of a problem in the tables.
  cellOf(operation, a, b) {
    const n = this.tokenizer.max_number + 1;
    return (operation * n + a) * n + b;
  }

  #remember() {
    const { params, optimizerState, last, kind, stepped, snapshot, history } = this;
    return { params, optimizerState, last, kind, stepped, snapshot, history };
  }

  #goBack({ params, optimizerState = null, last = null, kind, stepped }) {
    Object.assign(this, { params, optimizerState: kind === this.kind ? optimizerState : null, last, stepped });
    this.#changed("lesson");
  }

  // The last lesson is shown until the question, the weights or the rate change.
  #changed(what) {
    this.lesson = null;
    this.teaching = null;
    this.#compute();
    this.onchange(what);
  }

  // Whether the weights could be loaded before another choice was made.
  async #load(index) {
    this.loading = index;
    const params = await this.paramsOf(index);
    const verdicts = await this.verdictsOf(index);
    if (this.loading !== index) return false;
    Object.assign(this, { snapshot: index, params, verdicts });
    Object.assign(this, { history: new History(), stepped: 0, last: null, optimizerState: null });
    return true;
  }

  paramsOf(index) {
    this.unpacked[index] ??= unpackWeights(this.data.snapshots[index].weights, this.data.leaves);
    return this.unpacked[index];
  }

  // A byte for each problem of the table; null if the page has no table.
  async verdictsOf(index) {
    const { table } = this.data.snapshots[index];
    return table ? unpack(table) : null;
  }

  #momentAt(params, state) {
    const { tokens, target, kind } = this;
    const betas = this.data.adam_betas;
    const probe = momentOf({
      params,
      tokens,
      target,
      optimizer: optimizerOf(kind, 1, betas),
      state: state ?? undefined,
    });
    const half = halvingRate(kind, probe.loss, probe.grads, state, betas);
    const rate = this.chosenRate ?? (Number.isFinite(half) ? half : 1e-3);
    const optimizer = optimizerOf(kind, rate, betas);
    const { update, state: next } = optimizer.update(probe.grads, state ?? optimizer.init(params));
    return { ...probe, rate, update, next, blame: blame(probe.grads, update) };
  }

  #compute() {
    const { params, tokens } = this;
    if (this.target === null) {
      const scores = lastRow(trace(params, tokens).logits);
      this.target = scores.indexOf(Math.max(...scores)); // if no word is right, the likeliest
    }
    this.#take(this.#momentAt(params, this.optimizerState));
  }

  #take(moment) {
    const { logits, activations, probabilities, walked, grads, rate } = moment;
    Object.assign(this, { moment, logits, activations, probabilities, walked, grads, rate, loss: moment.loss });
    this.preview = null;
    this.pending = this.#pendingStep(moment);
  }

  // The step that the optimizer would take. The curve along it is computed when it is first shown.
  #pendingStep({ params, tokens, target, update, next, blame, loss: now }) {
    const lossAt = (t) => loss(along(params, update, t), tokens, target);
    return {
      ...{ update, state: next, blame },
      get losses() {
        const value = Array.from({ length: 13 }, (_, i) => [i / 6, lossAt(i / 6)]);
        Object.defineProperty(this, "losses", { value });
        return value;
      },
      get actual() {
        return now - this.losses[6][1];
      },
    };
  }

  // The blame of a lesson's first step, and what the lesson brought.
  #account({ before, after, taken }) {
    const { target, rate, loss, blame } = before;
    return {
      kind: this.kind === "sgd" ? "SGD" : "Adam",
      ...{ rate, target, loss, blame, taken, credit: null },
      actual: loss - after.loss,
      before: before.probabilities[target],
      after: after.probabilities[target],
    };
  }
}
