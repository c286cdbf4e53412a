// Training from nothing, in the worker: a run is a value {params, optimizer, step}, which settings and steps turn into
// the next one. Nothing is kept between two tasks, so the page may stop, go on and begin anew at any time.

import { along } from "./learning.mjs";
import { batchOf, initialParams, lessonsOf } from "./lessons.mjs";
import { batchForward, batchGradient } from "./training.mjs";
import { scheduleOf, trainingOptimizer } from "./optimizers.mjs";
import { END, InputError } from "./tokenizer.mjs";
import { inner } from "./trees.mjs";
import { TASKS } from "./worker.mjs";

const SLICE_MS = 60; // milliseconds of training between two reports
const TABLE_EVERY = 400; // milliseconds between two answers to the whole table

// Everything that follows from the settings: {operations, share, seed, optimizer, rate, batch}.
/** @type {(data: LiveData, settings: LiveSettings) => Course} */
export function courseOf(data, settings) {
  const lessons = lessonsOf(data.task, settings);
  const decay = data.decays[settings.optimizer];
  return {
    lessons,
    training: lessons.filter(({ held }) => !held),
    optimizer: trainingOptimizer(settings.optimizer, scheduleOf(settings.rate, data.steps), decay),
    start: () => {
      const params = initialParams(settings.seed, { words: data.task.vocabulary.length, ...data.model });
      return { params, memory: null, step: 0 };
    },
  };
}

// One step of training: {run, loss, shares}, with each stage's share of the blame. A step that would leave numbers that
// are not finite is refused.
/** @type {(run: TrainingRun, course: Course, settings: LiveSettings) => { run: TrainingRun; loss: number; shares: number[] }} */
export function trained({ params, memory, step }, course, settings) {
  const sequences = batchOf(course.training, settings.seed, step, settings.batch);
  const { loss, grads } = batchGradient(params, sequences, 2);
  const { update, state } = course.optimizer.update(grads, memory ?? course.optimizer.init(params), params);
  if (!Number.isFinite(loss + inner(update, update)))
    throw new InputError(`step ${step + 1} would make numbers that are not finite; reset, and choose a smaller rate`);
  return { run: { params: along(params, update), memory: state, step: step + 1 }, loss, shares: sharesOf(grads) };
}

// The squared gradient of each stage: for a small step straight downhill, its share of the drop in loss.
/** @type {(grads: Params) => number[]} */
export function sharesOf(grads) {
  const stages = [grads.embed, ...grads.blocks.flatMap(({ attention, mlp }) => [attention, mlp]), grads.output];
  const squares = stages.map((stage) => inner(stage, stage)),
    total = squares.reduce((a, b) => a + b, 0) || 1;
  return squares.map((square) => square / total);
}

// A byte for each lesson, as data.mjs reads it: whether the answer and its end are right, and how probable it was.
/** @type {(params: Params, lessons: Pick<Lesson, "tokens">[], end: number) => Uint8Array} */
export function verdictsOf(params, lessons, end) {
  /** @type {(logits: Float64Array, row: number) => { word: number; p: number }} */
  const likeliest = (logits, row) => {
    const words = params.output.unembed.shape[1],
      scores = logits.subarray(row * words, (row + 1) * words);
    const most = scores.reduce((a, b) => Math.max(a, b));
    return { word: scores.indexOf(most), p: 1 / scores.reduce((sum, score) => sum + Math.exp(score - most), 0) };
  };
  const questions = lessons.map(({ tokens }) => tokens.slice(0, -2));
  const first = batchForward(params, questions, 1).logits;
  const answers = lessons.map((_, row) => likeliest(first, row));
  const begun = questions.map((tokens, row) => [...tokens, answers[row].word]);
  const second = batchForward(params, begun, 1).logits;
  return Uint8Array.from(lessons, ({ tokens }, row) => {
    const { word, p } = answers[row],
      ended = likeliest(second, row);
    const right = word === tokens.at(-2) && ended.word === tokens.at(-1);
    return 128 * Number(right) + 1 + Math.round(126 * (word === end ? p : p * ended.p));
  });
}

// Trains up to step `until`, and reports the run, its new losses and shares, and now and then the table.
TASKS.live = async function* ({ data, settings, run, until }) {
  const course = courseOf(data, settings),
    end = data.task.vocabulary.indexOf(END);
  let now = run ?? course.start(),
    tabled = performance.now();
  /** @type {(points: TrainingPoint[], withTable: boolean) => TrainingReport} */
  const report = (points, withTable) => ({
    run: now,
    points,
    verdicts: withTable ? verdictsOf(now.params, course.lessons, end) : null,
  });
  while (now.step < until) {
    const from = performance.now(),
      points = [];
    while (now.step < until && performance.now() - from < SLICE_MS) {
      const { run: next, loss, shares } = trained(now, course, settings);
      points.push({ step: now.step, loss, shares });
      now = next;
    }
    const due = performance.now() - tabled > TABLE_EVERY;
    if (due) tabled = performance.now();
    if (now.step < until) yield report(points, due);
    else return report(points, true);
  }
  return report([], true);
};
