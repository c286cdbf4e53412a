// The page: the state that all parts show, the ways to change it, and the order of the parts.

import { collect, walk } from "./backprop.mjs";
import { MEMBERSHIP, unpack, unpackWeights } from "./data.mjs";
import { el } from "./dom.mjs";
import { adam, along, blame, credit, finiteDifference, gradient, loss, sgd } from "./learning.mjs";
import { lastRow, softmax, surprise, trace } from "./model.mjs";
import { END, InputError, Tokenizer } from "./tokenizer.mjs";
import { namedLeaves, treeMap } from "./trees.mjs";
import { addTabs, tellHeight } from "./tabs.mjs";
import { Engine, serve } from "./worker.mjs";
import { answerView, tokensView, stagesView, attentionView, outputView, lossView } from "./forward_views.mjs";
import { backwardView } from "./blame_view.mjs";
import { stepView } from "./step_view.mjs";
import { weightView } from "./weight_view.mjs";
import { replayView, tableView } from "./run_views.mjs";

const RATES = { sgd: 0.01, adam: 0.001 };

class App {
  constructor(data) {
    this.data = data;
    this.tokenizer = new Tokenizer(data.task);
    this.words = data.task.vocabulary;
    this.unpacked = [];
    this.kind = "sgd";
    this.rate = RATES.sgd;
    this.optimizerState = null;
    this.history = [];
    this.weight = { name: "blocks.0.attention.query", index: 0 };
  }

  get stepped() {
    return this.history.length;
  }

  async start() {
    this.membership = this.data.membership && (await unpack(this.data.membership));
    await this.#load(this.data.snapshots.length - 1);
    this.#read(this.data.prompt);
    this.#compute();
    // Each view makes its part once and returns a function that fills it anew.
    const story = [
      answerView,
      replayView,
      tokensView,
      stagesView,
      attentionView,
      outputView,
      lossView,
      backwardView,
      stepView,
      weightView,
    ];
    this.show = story.map((view) => view(this));
    this.showTable = tableView(this);
    this.#render();
    this.showTable();
  }

  // Takes a question, or a question and the beginning of its answer. Unreadable text only changes the message.
  setPrompt(text) {
    const input = document.getElementById("prompt");
    if (input.value !== text) input.value = text;
    if (!this.#read(text)) return;
    this.#compute();
    this.#render();
  }

  async setSnapshot(index) {
    await this.#load(index);
    if (this.snapshot !== index) return; // the user has chosen another meanwhile
    this.#compute();
    this.#render();
    this.showTable();
  }

  setTarget(id) {
    this.target = id;
    this.#compute();
    this.#render();
  }

  setOptimizer(kind, rate) {
    if (kind !== this.kind) {
      this.optimizerState = null;
      rate = RATES[kind];
    }
    Object.assign(this, { kind, rate });
    this.#compute();
    this.#render();
  }

  step() {
    const { update, state, blame, actual } = this.pending;
    const { params, optimizerState, last, tokens, target } = this;
    this.history.push({ params, optimizerState, last, kind: this.kind });
    const before = this.probabilities[target];
    this.last = {
      kind: this.kind === "sgd" ? "SGD" : "Adam",
      rate: this.rate,
      target,
      loss: this.loss,
      blame,
      actual,
      before,
      credit: credit(params, update, tokens, target),
    };
    this.params = along(params, update);
    this.optimizerState = state;
    this.#compute();
    this.last.after = this.probabilities[target];
    this.#render();
  }

  undo() {
    this.#goBack(this.history.pop());
  }

  reset() {
    const [first] = this.history;
    this.history = [];
    this.#goBack(first);
  }

  #goBack({ kind, ...before }) {
    Object.assign(this, before);
    if (kind !== this.kind) this.optimizerState = null; // they are of another optimizer
    this.#compute();
    this.#render();
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
  answer() {
    const tokens = this.tokenizer.encode({ ...this.parsed, begun: [] }),
      words = [];
    let p = 1;
    while (words.length < this.data.task.answer_length) {
      const shares = softmax(lastRow(trace(this.params, tokens).logits));
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
    const n = this.tokenizer.max_number + 1;
    return MEMBERSHIP[this.membership[(this.tokenizer.operations.indexOf(operation) * n + a) * n + b]];
  }

  async #load(index) {
    this.snapshot = index; // before waiting, so that the latest choice wins
    const { weights, table } = this.data.snapshots[index];
    this.unpacked[index] ??= Promise.all([unpackWeights(weights, this.data.leaves), table && unpack(table)]);
    const [params, verdicts] = await this.unpacked[index];
    if (this.snapshot !== index) return;
    Object.assign(this, { params, verdicts, history: [], last: null, optimizerState: null });
  }

  #read(text) {
    const place = document.getElementById("answer");
    try {
      const parsed = this.tokenizer.parse(text);
      const longest = this.data.task.answer_length - 1;
      if (parsed.begun.length > longest)
        throw new InputError(`the answer has at most ${longest} words before its end; leave out the rest`);
      const answer = parsed.answer === null ? null : [...this.tokenizer.spell(parsed.answer), END];
      this.parsed = parsed;
      this.tokens = this.tokenizer.encode(parsed);
      const fits = answer && parsed.begun.every((word, i) => word === answer[i]) && parsed.begun.length < answer.length;
      this.target = fits ? this.tokenizer.ids[answer[parsed.begun.length]] : null;
      return true;
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      place.replaceChildren(el("span", { class: "error", role: "alert" }, error.message));
      return false;
    }
  }

  #compute() {
    const { params, tokens } = this;
    Object.assign(this, trace(params, tokens));
    this.probabilities = softmax(this.scores());
    this.target ??= this.probabilities.indexOf(Math.max(...this.probabilities)); // if no word is right, the likeliest
    this.loss = surprise(this.scores(), this.target);
    this.walked = walk(params, tokens, this.target);
    this.grads = collect(params, this.walked);
    const optimizer = this.kind === "sgd" ? sgd(this.rate) : adam(this.rate, ...this.data.adam_betas);
    const { update, state } = optimizer.update(this.grads, this.optimizerState ?? optimizer.init(params));
    const losses = Array.from({ length: 13 }, (_, i) => [
      i / 6,
      loss(along(params, update, i / 6), tokens, this.target),
    ]);
    this.pending = { update, state, blame: blame(this.grads, update), losses, actual: this.loss - losses[6][1] };
  }

  #render() {
    this.show.forEach((update) => update());
  }
}

// The page. The worker runs this same script, where there is no document.
async function open() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const engine = new Engine(document.querySelector("script[type=module]").textContent);
  const live = addTabs(data, engine);
  tellHeight();
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.getElementById("made").textContent = data.made;
  if (!data.snapshots) {
    globalThis.jaxcalc = { live };
    return;
  }
  const app = new App(data);
  document.getElementById("about").textContent = data.about;
  document.getElementById("made").textContent = `${data.about}. ${data.made}`;
  document.getElementById("prompt").value = data.prompt;
  document.getElementById("prompt").addEventListener("input", (event) => app.setPrompt(event.target.value));
  document.getElementById("ask").addEventListener("submit", (event) => event.preventDefault());
  await app.start();
  // For the console: jaxcalc.app.params is a plain tree of arrays, as in Python.
  globalThis.jaxcalc = {
    app,
    live,
    trace,
    walk,
    collect,
    gradient,
    loss,
    sgd,
    adam,
    along,
    blame,
    credit,
    finiteDifference,
    namedLeaves,
    treeMap,
  };
}

if (globalThis.document) await open();
else serve();
