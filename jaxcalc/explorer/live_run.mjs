// A training in the page: its settings, where it is, and the ways to go on, to stop and to begin anew.

import { courseOf } from "./live.mjs";

const oneOf = (/** @type {Lesson[]} */ lessons) => lessons[Math.floor(lessons.length / 3)];

export class LiveRun {
  // onchange() is called after every change.
  /**
   * @param {LiveData} data
   * @param {import("./worker.mjs").Engine} engine
   * @param {() => void} onchange
   */
  constructor(data, engine, onchange) {
    this.data = data;
    this.engine = engine;
    this.onchange = onchange;
    /** @type {LiveSettings} of the next run */
    this.wanted = { ...data.settings, rate: data.rates[data.settings.optimizer] };
    this.playing = false;
    this.running = Promise.resolve();
    const { lessons, start } = courseOf(data, this.wanted);
    this.settings = this.wanted;
    this.lessons = lessons;
    this.run = start();
    /** @type {TrainingPoint[]} */
    this.points = [];
    /** @type {Uint8Array | null} */
    this.verdicts = null;
    this.problem = "";
    /** @type {Watched} */
    this.watched = oneOf(lessons.filter(({ held }) => held));
  }

  // Begins anew, untrained, with the wanted settings.
  async reset() {
    await this.pause();
    const { lessons, start } = courseOf(this.data, this.wanted);
    Object.assign(this, { settings: this.wanted, lessons, run: start(), points: [], verdicts: null, problem: "" });
    await this.#go(0);
  }

  get isDone() {
    return this.run.step >= this.data.steps;
  }

  // Whether the settings were changed since this run began.
  get isOther() {
    return JSON.stringify(this.wanted) !== JSON.stringify(this.settings);
  }

  // Before the first step a setting applies at once; later it applies to the next run.
  /** @param {Partial<LiveSettings>} changes */
  async set(changes) {
    this.wanted = { ...this.wanted, ...changes };
    if (this.run.step === 0 && !this.playing) await this.reset();
    else this.onchange();
  }

  async play() {
    await this.pause();
    this.playing = true;
    this.onchange();
    await this.#go(this.data.steps);
  }

  async step() {
    await this.pause();
    await this.#go(this.run.step + 1);
  }

  // A newer run of the task stops the one before it. What that had done by then has arrived before it ends.
  async pause() {
    if (this.playing) this.engine.run("live", { data: this.data, settings: this.settings, run: this.run, until: 0 });
    await this.running;
  }

  /** @param {number} until */
  #go(until) {
    this.running = this.#train(until);
    return this.running;
  }

  /** @param {number} until */
  async #train(until) {
    const { data, settings, run } = this;
    const take = (/** @type {TrainingReport} */ report) => this.#take(report);
    try {
      const result = await this.engine.run("live", { data, settings, run, until }, take);
      if (result) this.#take(result);
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
    }
    this.playing = false;
    this.onchange();
  }

  /** @param {TrainingReport} report */
  #take({ run, points, verdicts }) {
    this.run = run;
    this.points.push(...points);
    this.verdicts = verdicts ?? this.verdicts;
    this.onchange();
  }
}
