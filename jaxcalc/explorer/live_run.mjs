// A training in the page: its settings, where it is, and the ways to go on, to stop and to begin anew.

import { courseOf } from "./live.mjs";

export class LiveRun {
  // onchange() is called after every change.
  constructor(data, engine, onchange) {
    Object.assign(this, { data, engine, onchange });
    this.wanted = { ...data.settings, rate: data.rates[data.settings.optimizer] }; // of the next run
    this.playing = false;
    this.running = Promise.resolve();
  }

  // Begins anew, untrained, with the wanted settings.
  async reset() {
    await this.pause();
    this.settings = this.wanted;
    const course = courseOf(this.data, this.settings);
    Object.assign(this, { lessons: course.lessons, nTraining: course.training.length, run: course.start() });
    Object.assign(this, { points: [], verdicts: null, problem: "" });
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
  set(changes) {
    this.wanted = { ...this.wanted, ...changes };
    if (this.run.step === 0 && !this.playing) return this.reset();
    return this.onchange();
  }

  async play() {
    await this.pause();
    this.playing = true;
    this.running = this.#go(this.data.steps);
    this.onchange();
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

  async #go(until) {
    const { data, settings, run } = this;
    try {
      const result = await this.engine.run("live", { data, settings, run, until }, (report) => this.#take(report));
      if (result) this.#take(result);
    } catch (error) {
      this.problem = error.message;
    }
    this.playing = false;
    this.onchange();
  }

  #take({ run, points, verdicts }) {
    this.run = run;
    this.points.push(...points);
    this.verdicts = verdicts ?? this.verdicts;
    this.onchange();
  }
}
