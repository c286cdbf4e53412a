// The state that all parts of the page show, and the ways to change it.

import { MEMBERSHIP, unpack, unpackWeights } from "./data.mjs";
import { headsOnly, NO_EDITS, swapped } from "./interventions.mjs";
import { along, blame, loss } from "./learning.mjs";
import { lastRow, softmax, trace } from "./model.mjs";
import { momentOf } from "./moment.mjs";
import { halvingRate, History, optimizerOf } from "./teaching.mjs";
import { END, InputError, PAD, Tokenizer } from "./tokenizer.mjs";

const MOST_STEPS = 100; // of “until right”

// What is known from the first snapshot and the first question on, and always read after them.
const Known = /** @type {new () => AppState} */ (class {});

export class App extends Known {
  /**
   * @param {PageData} data
   * @param {import("./worker.mjs").Engine} engine
   */
  constructor(data, engine) {
    super();
    this.data = data;
    this.engine = engine;
    this.tokenizer = new Tokenizer(data.task);
    this.words = data.task.vocabulary;
    /** @type {Promise<Params>[]} */
    this.unpacked = [];
    /** @type {OptimizerKind} */
    this.kind = "sgd";
    /** @type {number | null} */
    this.chosenRate = null; // null: the rate that promises half of the loss
    /** @type {OptimizerState} */
    this.optimizerState = null;
    this.edits = NO_EDITS;
    /** @type {{ is: unknown[], moment: RatedMoment } | null} */
    this.untouched = null; // the moment without them
    this.history = new History();
    this.stepped = 0;
    /** @type {TakenStep | null} */
    this.last = null;
    /** @type {Taught | null} */
    this.lesson = null;
    /** @type {Taught | null} */
    this.teaching = null; // the lesson that is being taken
    /** @type {Branch | null} */
    this.branch = null;
    /** @type {Uint8Array | null} */
    this.membership = null;
    /** @type {Uint8Array | null} */
    this.verdicts = null;
    /** @type {RatedMoment | null} */
    this.preview = null;
    this.loading = -1; // the snapshot that was chosen last
    /** @type {number | null} */
    this.tour = null; // or the stop of the tour that is shown, from 1
    this.weight = { name: "blocks.0.attention.query", index: 0 };
    /** @type {(what: Change) => void} */
    this.onchange = () => {};
    // Opens the arithmetic of a number; `from` is what was clicked.
    /** @type {(asked: Asked, from: HTMLElement) => void} */
    this.explain = () => {};
  }

  async start() {
    this.membership = this.data.membership ? await unpack(this.data.membership) : null;
  }

  // A question, or a question and the beginning of its answer: {parsed, tokens, target}. Throws an InputError.
  /** @type {(text: string) => { parsed: Question, tokens: number[], target: number | null }} */
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
  /** @type {(question: Question) => string[] | null} */
  rightWords({ answer }) {
    return answer === null ? null : [...this.tokenizer.spell(answer), END];
  }

  /** @type {(text: string) => void} */
  setPrompt(text) {
    const own = this.read(text);
    this.prompt = text;
    this.edits = headsOnly(this.edits);
    Object.assign(this, { ...own, target: own.target ?? this.#likeliest(own.tokens), own });
    this.#changed("question");
  }

  // Interventions: heads off, shares held, tokens swapped.
  /** @type {(edits: Edits) => void} */
  setEdits(edits) {
    const isAsked = JSON.stringify(edits.tokens) === JSON.stringify(this.edits.tokens);
    this.edits = edits;
    if (!isAsked) {
      const { parsed, tokens, target } = this.#asked();
      Object.assign(this, { parsed, tokens, target: target ?? this.#likeliest(tokens) });
    }
    this.#changed("edits");
  }

  // The question with its swapped words. Where they are a problem, its right word is the right one; else it stays.
  /** @type {() => Asking} */
  #asked() {
    const { own, target, edits } = this;
    if (!Object.keys(edits.tokens).length) return own;
    const tokens = swapped(own.tokens, edits);
    try {
      const other = this.read(this.#wordsOf(tokens).join(" "));
      if (other.tokens.join() === tokens.join()) return other;
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
    }
    const asked = this.#wordsOf(tokens.slice(0, this.tokenizer.prompt_length));
    return { tokens, target, parsed: { ...own.parsed, answer: null, tokens: asked, isProblem: false } };
  }

  /** @type {(tokens: number[]) => string[]} */
  #wordsOf(tokens) {
    return tokens.map((id) => this.words[id]).filter((word) => word !== PAD);
  }

  // The same question without the interventions.
  get unedited() {
    const isSwapped = Object.keys(this.edits.tokens).length > 0;
    const target = isSwapped ? (this.own.target ?? this.target) : this.target;
    const is = [this.params, this.own, target, this.kind, this.chosenRate];
    if (!this.untouched || !is.every((value, i) => value === this.untouched?.is[i])) {
      const question = { tokens: this.own.tokens, target, edits: NO_EDITS };
      this.untouched = { is, moment: this.#momentAt(this.params, this.optimizerState, question) };
    }
    return this.untouched.moment;
  }

  /** @type {(index: number) => Promise<void>} */
  async setSnapshot(index) {
    if (await this.load(index)) this.#changed("snapshot");
  }

  // The weights of a snapshot, without an answer yet. The user's own steps are kept as a branch.
  /** @type {(index: number) => Promise<boolean>} */
  load(index) {
    if (this.stepped) this.branch = this.#remember();
    return this.#load(index);
  }

  // Back to the weights that the user's own steps made.
  async returnToBranch() {
    const { branch } = this;
    this.branch = null;
    if (!branch || !(await this.#load(branch.snapshot))) return;
    Object.assign(this, branch);
    this.#changed("snapshot");
  }

  /** @type {(id: number) => void} */
  setTarget(id) {
    this.target = id;
    this.#changed("question");
  }

  // A rate of null is the one that promises half of the loss.
  /** @type {(kind: OptimizerKind, rate: number | null) => void} */
  setOptimizer(kind, rate) {
    if (kind !== this.kind) this.optimizerState = null;
    Object.assign(this, { kind, chosenRate: rate });
    this.#changed("rate");
  }

  // Takes so many steps, or fewer if the right word becomes the likeliest: the lesson, {before, after, taken}. Null if the
  // user has gone on meanwhile; an InputError says why no step could be taken.
  /** @type {(times: number, untilRight?: boolean) => Promise<Taught | null>} */
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
  /** @type {(lesson: Taught) => Promise<{ params: Params, state: OptimizerState }>} */
  #stepInWorker(lesson) {
    const { params, optimizerState: state, tokens, target, edits, kind, chosenRate: rate } = this;
    const input = { params, state, tokens, target, edits, kind, rate, betas: this.data.adam_betas };
    return new Promise((resolve, reject) => {
      this.engine.run("teach", input, resolve).then((result) => {
        if (!result || !this.last || this.lesson !== lesson || lesson.taken > 1) return;
        this.last.credit = { ...result.credit, remainder: result.remainder };
        this.onchange("credit");
      }, reject);
    });
  }

  isRightWord() {
    return this.probabilities[this.target] === Math.max(...this.probabilities);
  }

  undo() {
    const entry = this.history.undo(); // null where there is no step, or too many came after it
    if (entry) this.#goBack(entry);
  }

  async reset() {
    const { snapshot, kind } = this;
    if (await this.#load(snapshot)) this.#goBack({ params: this.params, kind, stepped: 0 });
  }

  // What a lesson would do: the moment after the step. It is computed when it is first shown.
  /** @type {RatedMoment} */
  get after() {
    this.preview ??= this.#momentAt(along(this.params, this.moment.update), this.moment.next);
    return this.preview;
  }

  scores() {
    return lastRow(this.logits);
  }

  // The stream after each stage.
  /** @type {() => [string, Leaf][]} */
  streams() {
    return [
      ["embed", this.activations.embed.residual],
      ...this.activations.blocks.flatMap(
        (block, i) =>
          /** @type {[string, Leaf][]} */ ([
            [`block ${i} attention`, block.attention.residual],
            [`block ${i} mlp`, block.mlp.residual],
          ]),
      ),
    ];
  }

  // The answer of the model, always taking the likeliest next word: {words, p}. Interventions are in the question that
  // is shown, and in no other.
  /** @type {(parsed?: Question, params?: Params) => { words: string[], p: number }} */
  answer(parsed = this.parsed, params = this.params) {
    const isShown = parsed === this.parsed;
    const edits = isShown ? this.edits : NO_EDITS;
    const tokens = isShown
      ? this.tokens.slice(0, this.tokenizer.prompt_length)
      : this.tokenizer.encode({ ...parsed, begun: [] });
    /** @type {string[]} */
    const words = [];
    let p = 1;
    while (words.length < this.data.task.answer_length) {
      const shares = softmax(lastRow(trace(params, tokens, edits).logits));
      const best = shares.indexOf(Math.max(...shares));
      p *= shares[best];
      tokens.push(best);
      words.push(this.words[best]);
      if (words.at(-1) === END) break;
    }
    return { words, p };
  }

  // "training", "held out" or "outside" (not a problem of the table); null if the page has no table.
  /** @type {(question: Question) => string | null} */
  membershipOf({ a, operation, b, isProblem = true }) {
    if (!this.membership || !isProblem) return null;
    return MEMBERSHIP[this.membership[this.cellOf(this.tokenizer.operations.indexOf(operation), a, b)]];
  }

  // The place of a problem in the tables.
  /** @type {(operation: number, a: number, b: number) => number} */
  cellOf(operation, a, b) {
    const n = this.tokenizer.max_number + 1;
    return (operation * n + a) * n + b;
  }

  /** @type {() => Branch} */
  #remember() {
    const { params, optimizerState, last, kind, stepped, snapshot, history } = this;
    return { params, optimizerState, last, kind, stepped, snapshot, history };
  }

  /** @type {(to: Pick<Branch, "params" | "kind" | "stepped"> & Partial<Branch>) => void} */
  #goBack({ params, optimizerState = null, last = null, kind, stepped }) {
    Object.assign(this, { params, optimizerState: kind === this.kind ? optimizerState : null, last, stepped });
    this.#changed("lesson");
  }

  // The last lesson is shown until the question, the weights or the rate change.
  /** @type {(what: Change) => void} */
  #changed(what) {
    this.lesson = null;
    this.teaching = null;
    this.#take(this.#momentAt(this.params, this.optimizerState));
    this.onchange(what);
  }

  // Whether the weights could be loaded before another choice was made.
  /** @type {(index: number) => Promise<boolean>} */
  async #load(index) {
    this.loading = index;
    const params = await this.paramsOf(index);
    const verdicts = await this.verdictsOf(index);
    if (this.loading !== index) return false;
    Object.assign(this, { snapshot: index, params, verdicts });
    Object.assign(this, { history: new History(), stepped: 0, last: null, optimizerState: null });
    return true;
  }

  /** @type {(index: number) => Promise<Params>} */
  paramsOf(index) {
    this.unpacked[index] ??= unpackWeights(this.data.snapshots[index].weights, this.data.leaves);
    return this.unpacked[index];
  }

  // A byte for each problem of the table; null if the page has no table.
  /** @type {(index: number) => Promise<Uint8Array | null>} */
  async verdictsOf(index) {
    const { table } = this.data.snapshots[index];
    return table ? unpack(table) : null;
  }

  /** @type {(params: Params, state: OptimizerState, question?: { tokens: number[], target: number, edits: Edits }) => RatedMoment} */
  #momentAt(params, state, { tokens, target, edits } = this) {
    const { kind } = this;
    const betas = this.data.adam_betas;
    const probe = momentOf({
      params,
      tokens,
      target,
      edits,
      optimizer: optimizerOf(kind, 1, betas),
      state: state ?? undefined,
    });
    const half = halvingRate(kind, probe.loss, probe.grads, state, betas);
    const rate = this.chosenRate ?? (Number.isFinite(half) ? half : 1e-3);
    const optimizer = optimizerOf(kind, rate, betas);
    const { update, state: next } = optimizer.update(probe.grads, state ?? optimizer.init(params));
    return { ...probe, rate, update, next, blame: blame(probe.grads, update) };
  }

  // The target where no word is right.
  /** @type {(tokens: number[]) => number} */
  #likeliest(tokens) {
    const scores = lastRow(trace(this.params, tokens, this.edits).logits);
    return scores.indexOf(Math.max(...scores));
  }

  /** @type {(moment: RatedMoment) => void} */
  #take(moment) {
    const { logits, activations, probabilities, walked, grads, rate } = moment;
    Object.assign(this, { moment, logits, activations, probabilities, walked, grads, rate, loss: moment.loss });
    this.preview = null;
    this.pending = this.#pendingStep(moment);
  }

  // The step that the optimizer would take. What it would bring is computed when it is first shown.
  /** @type {(moment: Moment) => PendingStep} */
  #pendingStep({ params, tokens, target, edits, update, next, blame, loss: now }) {
    return {
      ...{ update, state: next, blame },
      get actual() {
        const value = now - loss(along(params, update), tokens, target, edits);
        Object.defineProperty(this, "actual", { value });
        return value;
      },
    };
  }

  // The loss along that step, [t, loss], from the worker; null if the user has gone on meanwhile.
  /** @type {() => Promise<[number, number][] | null>} */
  async curve() {
    const { pending, params, tokens, target, edits } = this;
    pending.losses ??= this.engine.run("curve", { params, update: pending.update, tokens, target, edits });
    const losses = await pending.losses;
    return this.pending === pending ? losses : null;
  }

  // The blame of a lesson's first step, and what the lesson brought.
  /** @type {(lesson: Taught) => TakenStep} */
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
