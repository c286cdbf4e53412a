// A moment: one question at one set of weights, with all that the page shows of it.

import { collect, walk } from "./backprop.mjs";
import { NO_EDITS } from "./interventions.mjs";
import { blame } from "./learning.mjs";
import { lastRow, softmax, surprise, trace } from "./model.mjs";

// The forward pass, the surprise at the target, the backward pass, and the step that the optimizer would take.
/**
 * @param {{ params: Params, tokens: number[], target: number, optimizer: Optimizer, state?: OptimizerState, edits?: Edits }} lesson
 * @returns {Moment}
 */
export function momentOf({ params, tokens, target, optimizer, state = optimizer.init(params), edits = NO_EDITS }) {
  const { logits, activations } = trace(params, tokens, edits);
  const scores = lastRow(logits);
  const walked = walk(params, tokens, target, edits);
  const grads = collect(params, walked);
  const { update, state: next } = optimizer.update(grads, state);
  return {
    params,
    tokens,
    target,
    edits,
    logits,
    activations,
    probabilities: softmax(scores),
    loss: surprise(scores, target),
    walked, // the stages from the loss back to the embeddings, each with its messages and gradients
    grads,
    update,
    next, // the optimizer's state after the step
    blame: blame(grads, update),
  };
}
