// Teaching a model one word: the rate, the step, the curve along it, and the steps that can be undone.

import { credit } from "./credit.mjs";
import { adam, along, blame, loss, sgd } from "./learning.mjs";
import { momentOf } from "./moment.mjs";
import { InputError } from "./tokenizer.mjs";
import { inner, namedLeaves } from "./trees.mjs";
import { TASKS } from "./worker.mjs";

// The rate at which a step of SGD promises half of the loss: a step promises rate · ‖gradient‖².
/** @type {(loss: number, grads: Params) => number} */
const suggestedRate = (loss, grads) => loss / (2 * inner(grads, grads));

/** @type {(kind: string, rate: number, betas: [number, number]) => Optimizer} */
export const optimizerOf = (kind, rate, betas) => (kind === "sgd" ? sgd(rate) : adam(rate, ...betas));

// The same for either optimizer. Adam goes on in the direction of earlier steps too; where that is uphill, its rate is
// the usual 0.001.
/** @type {(kind: string, loss: number, grads: Params, state: OptimizerState, betas: [number, number]) => number} */
export function halvingRate(kind, loss, grads, state, betas) {
  if (kind === "sgd") return suggestedRate(loss, grads);
  const unit = adam(1, ...betas);
  const promise = blame(grads, unit.update(grads, state ?? unit.init(grads)).update).total;
  return promise > 0 ? loss / (2 * promise) : 0.001;
}

// The step of a moment, taken: {params, state, loss}. The moment stays as it is, also where the step is refused.
/** @type {(moment: Moment, rate: number) => { params: Params, state: OptimizerState, loss: number }} */
function teach({ params, tokens, target, edits, grads, update, next }, rate) {
  if (inner(grads, grads) === 0)
    throw new InputError("the gradient is 0, so there is nothing to learn here; ask another question");
  const after = along(params, update);
  const lossAfter = loss(after, tokens, target, edits);
  const made = [after, ...(next ? [next.mu, next.nu] : [])];
  if (!made.every(allFinite) || !Number.isFinite(lossAfter))
    throw new InputError(
      `the learning rate ${rate} is too large: the step leads to numbers that are not finite, so nothing has changed; ` +
        "take a smaller rate",
    );
  return { params: after, state: next, loss: lossAfter };
}

// Finite in float32, as weights are stored. Beyond it, their products could overflow float64 without a trace.
const allFinite = (/** @type {Params} */ tree) =>
  Object.values(namedLeaves(tree)).every(({ data }) => data.every((value) => Number.isFinite(Math.fround(value))));

// The loss along a step, [t, loss] from 0 to twice the step. Points are added where the line through them is more than
// 0.3 % of the chart's height off, so the curve has no kinks that the loss does not have. A generator, like credit.
/** @type {(params: Params, update: Params, tokens: number[], target: number, edits?: Edits) => Generator<void, [number, number][]>} */
export function* lossCurve(params, update, tokens, target, edits) {
  /** @type {[number, number][]} */
  const points = [];
  const add = (/** @type {number} */ t) => points.push([t, loss(along(params, update, t), tokens, target, edits)]);
  for (let i = 0; i <= 32; i++) yield void add(i / 16);
  let parts = Array.from({ length: 32 }, (_, i) => [points[i], points[i + 1]]);
  while (parts.length && points.length < 400) {
    const losses = points.map(([, value]) => value).filter(Number.isFinite);
    const height =
      losses.reduce((a, b) => Math.max(a, b), -Infinity) - losses.reduce((a, b) => Math.min(a, b), Infinity);
    const next = [];
    for (const [from, to] of parts) {
      yield void add((from[0] + to[0]) / 2);
      const middle = points[points.length - 1];
      if (Math.abs(middle[1] - (from[1] + to[1]) / 2) > 0.003 * height) next.push([from, middle], [middle, to]);
    }
    parts = next;
  }
  return points.filter(([, value]) => Number.isFinite(value)).sort(([a], [b]) => a - b);
}

// Own steps, newest last: {params, state, …} as they were before each. The newest whose arrays fit into `room` bytes can
// be undone, at least one.
export class History {
  /** @param {number} room */
  constructor(room = 27e6) {
    this.room = room;
    /** @type {HistoryEntry[]} */
    this.entries = [];
  }

  // How many steps can be undone.
  get depth() {
    return this.entries.length;
  }

  push(/** @type {HistoryEntry} */ entry) {
    this.entries.push(entry);
    while (this.entries.length > 1 && this.entries.reduce((sum, each) => sum + bytesOf(each), 0) > this.room)
      this.entries.shift();
  }

  // Takes back the last step and returns what was before it; null if it is not kept.
  undo() {
    return this.entries.pop() ?? null;
  }
}

/** @type {(entry: HistoryEntry) => number} */
const bytesOf = ({ params, state }) =>
  [params, ...(state ? [state.mu, state.nu] : [])]
    .flatMap((tree) => Object.values(namedLeaves(tree)))
    .reduce((sum, { data }) => sum + data.byteLength, 0);

// The curve alone, for a step that is only looked at.
TASKS.curve = async function* ({ params, update, tokens, target, edits }) {
  return yield* lossCurve(params, update, tokens, target, edits);
};

// One step from {params, state, tokens, target, edits, kind, rate, betas}; rate null is the one that promises half of the
// loss.
// The step comes first, as progress; its credit and the curve along it take longer and are in the result.
TASKS.teach = async function* ({ params, state, tokens, target, edits, kind, rate: given, betas }) {
  const probe = momentOf({
    params,
    tokens,
    target,
    edits,
    optimizer: optimizerOf(kind, given ?? 1, betas),
    state: state ?? undefined,
  });
  const rate = given ?? halvingRate(kind, probe.loss, probe.grads, state, betas);
  const optimizer = optimizerOf(kind, rate, betas);
  const { update, state: next } = optimizer.update(probe.grads, state ?? optimizer.init(params));
  const moment = { ...probe, update, next, blame: blame(probe.grads, update) };
  const taken = teach(moment, rate);
  const after = momentOf({ params: taken.params, tokens, target, edits, optimizer, state: next });
  const before = { loss: moment.loss, probabilities: moment.probabilities };
  const step = {
    ...{ params: taken.params, state: next, rate, update, blame: moment.blame },
    ...{ before, after: { loss: after.loss, probabilities: after.probabilities } },
  };
  yield step;
  const losses = yield* lossCurve(params, update, tokens, target, edits);
  const { remainder, ...account } = yield* credit(params, update, tokens, target, edits);
  return { ...step, losses, credit: account, remainder };
};
