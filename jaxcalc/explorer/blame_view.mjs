// The part of the page about the backward pass: the output error, the messages, the gradients and the blame.

import { outputError } from "./backprop.mjs";
import { bars, heatTable } from "./charts.mjs";
import { el, helpButton, part } from "./dom.mjs";
import { largest, significant } from "./numbers.mjs";
import { norm, rowNorms } from "./trees.mjs";

const LEAST_DROP = 1e-4; // nats; the page shows no shares of a smaller drop

/** @type {View} */
export function backwardView(app) {
  const body = part(
    "backward",
    "Blame, traced backwards",
    "Backpropagation traces the surprise back through the network. At the scores it starts as p − 1 for the right word and p for every other word. Each stage turns the message that it receives into the gradient of its own weights and a message for the stage before it.",
    "A message is ∂loss/∂x: how the loss changes with the stream x at one place. The table shows the length of each message. Lengths do not add up to a whole, so they are not shares. Blame does add up: the blame of a stage is −⟨gradient, step⟩ over its weights, its part of the drop in loss that the gradient predicts for the step below.",
  );
  return () => {
    const error = outputError(app.scores(), app.target);
    const words = largest(error.map(Math.abs));
    const arriving = app.walked.filter(({ name }) => name !== "loss");
    /** @type {[string, ...number[]][]} */
    const messages = arriving.map(({ name, messageIn }) => [name, ...rowNorms(messageIn)]);
    const { blame } = app.pending;
    const hasShares = blame.total >= LEAST_DROP;
    /** @type {[string, number, string][]} */
    const rows = arriving.map(({ name, grads }) => {
      const nats = blame.nats[name];
      return [
        `${name}  (‖gradient‖ ${significant(norm(grads), 3)})`,
        nats,
        hasShares ? `${((100 * nats) / blame.total).toFixed(1)} %` : `${significant(nats, 2)} nats`,
      ];
    });
    body.replaceChildren(
      el(
        "div",
        { class: "columns" },
        el(
          "div",
          {},
          el(
            "h3",
            {},
            "Output error: ∂loss/∂score",
            helpButton(
              "Output error",
              "∂loss/∂score of a word is its probability p, or p − 1 for the right word. A negative value means that the score should be higher. The values of all words add up to 0.",
            ),
          ),
          bars(
            "Output error by word",
            words.map((id) => [app.words[id], error[id], significant(error[id], 3)]),
          ),
        ),
        el(
          "div",
          { id: "blame" },
          el(
            "h3",
            {},
            "Gradient and blame by stage",
            helpButton(
              "Blame",
              "How much of the predicted drop in loss comes from the weights of this stage, for the step that is set below. The shares add up to 100 %. If the predicted drop is below 0.0001 nats, the page shows nats instead, because shares of almost nothing mean little.",
            ),
          ),
          bars("Blame by stage", rows),
        ),
      ),
      el(
        "h3",
        {},
        "Messages: ‖∂loss/∂x‖ after each stage, from the output back to the embeddings",
        helpButton(
          "Messages",
          "Each number tells how strongly the loss depends on the stream at one position (in the first row: on the scores). It is the length of ∂loss/∂x. Only the last position predicts a word, so the message starts there. Attention passes it on to the positions that it looked at.",
        ),
      ),
      heatTable(
        "Length of the messages by stage and position",
        app.tokens.map((id) => app.words[id]),
        messages,
        (stage, position, cell) => app.explain({ kind: "node", stage, position, show: "strength" }, cell),
        (value) => significant(value, 2),
      ),
    );
  };
}
