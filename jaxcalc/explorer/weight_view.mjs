// The part of the page about one weight: a matrix of weights, gradients or steps, and the story of one of its cells.

import { cellGrid, signed } from "./charts.mjs";
import { el, helpButton, part } from "./dom.mjs";
import { finiteDifference } from "./learning.mjs";
import { significant } from "./numbers.mjs";
import { namedLeaves, placeOf } from "./trees.mjs";

/** @type {Record<string, string>} */
const WEIGHT_HELP = {
  value: "The weight as it is now.",
  gradient: "∂loss/∂weight: how fast the loss rises as this weight rises, found by the chain rule.",
  "finite difference":
    "(loss(weight + h) − loss(weight − h)) / 2h with h = 10⁻⁶. It measures the gradient by running the whole network twice more. In rare cases a hidden unit switches on or off between the two runs, and the result differs from the gradient.",
  "momentum μ": "Adam's running mean of this weight's gradients, including the one above.",
  ν: "Adam's running mean of this weight's squared gradients, including the one above.",
  "learning rate": "How far a step goes. Set it in “A step of learning”.",
  step: "What the optimizer would add to the weight. SGD goes against the gradient; Adam goes against the mean of its gradients.",
  "new value": "The weight after the step.",
  blame: "How much of the predicted drop in loss comes from this weight alone: −gradient · step, in nats.",
};

/** @type {View} */
export function weightView(app) {
  const body = part(
    "weight",
    "One weight",
    "All weights are numbers in matrices. Choose a matrix and click a cell, or move with the arrow keys, to follow one weight through the step.",
    "The gradient says how the loss changes with this weight. The finite difference answers the same question by brute force: it moves the weight a little both ways and runs the whole network again. If the two agree, backpropagation found the right gradient.",
  );
  const names = Object.keys(namedLeaves(app.params));
  const leafPicker = el(
    "select",
    {
      id: "leaf",
      onchange: () => {
        app.weight = { name: leafPicker.value, index: 0 };
        update();
      },
    },
    names.map((name) => el("option", { value: name }, name)),
  );
  const showPicker = el(
    "select",
    { id: "show", onchange: () => update() },
    ["weights", "gradient", "step"].map((name) => el("option", {}, name)),
  );
  const story = el("div", { id: "story", class: "readout" }),
    said = el("p", { id: "said-of-weight", class: "unseen", "aria-live": "polite" });
  /** @type {() => { shape: number[], data: Float64Array, rows: number, columns: number }} */
  const shown = () => {
    /** @type {Record<string, Params>} */
    const trees = { weights: app.params, gradient: app.grads, step: app.pending.update };
    const { name } = app.weight;
    const { shape, data } = namedLeaves(trees[showPicker.value])[name];
    const columns = name.endsWith("attention.out") ? shape[2] : shape.length === 1 ? shape[0] : data.length / shape[0];
    return { shape, data, columns, rows: data.length / columns };
  };
  let matrix = shown();
  let most = 0;
  const grid = cellGrid({
    shape: () => matrix,
    sizeIn: (width) => Math.max(3, Math.min(10, Math.floor(width / matrix.columns), Math.floor(560 / matrix.rows))),
    label: () =>
      `${showPicker.value} of ${app.weight.name}, ${matrix.shape.join(" × ")}; arrow keys move the chosen cell`,
    colour: (r, c) => signed(matrix.data[r * matrix.columns + c], most),
    chosen: () => [Math.floor(app.weight.index / matrix.columns), app.weight.index % matrix.columns],
    onpick: (r, c, asks) => {
      app.weight.index = r * matrix.columns + c;
      grid.draw();
      tell();
      if (asks) app.explain({ kind: "weight", weight: { ...app.weight } }, grid.node);
    },
  });
  body.append(
    el(
      "div",
      { class: "row" },
      el("label", { for: "leaf" }, "Matrix"),
      leafPicker,
      el("label", { for: "show" }, "shows"),
      showPicker,
    ),
    el("div", { class: "beside" }, grid.node, story),
    said,
  );
  const valueIn = (/** @type {Params} */ tree) => namedLeaves(tree)[app.weight.name].data[app.weight.index];
  function update() {
    leafPicker.value = app.weight.name;
    matrix = shown();
    most = matrix.data.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    grid.draw();
    tell();
  }
  function tell() {
    const { name, index } = app.weight;
    const value = valueIn(app.params),
      gradient = valueIn(app.grads),
      delta = valueIn(app.pending.update);
    /** @type {[string, number, string][]} */
    const moments = app.pending.state
      ? [
          ["momentum μ", valueIn(app.pending.state.mu), "mean of the gradients, this one included"],
          ["ν", valueIn(app.pending.state.nu), "mean of their squares"],
        ]
      : [];
    /** @type {[string, number, string][]} */
    const lines = [
      ["value", value, ""],
      ["gradient", gradient, "by the chain rule"],
      [
        "finite difference",
        finiteDifference(app.params, name, index, app.tokens, app.target, app.edits),
        "by moving the weight both ways",
      ],
      ...moments,
      [
        "learning rate",
        app.rate,
        app.kind === "sgd"
          ? "step = −rate · gradient"
          : "step = −rate · μ̂ / (√ν̂ + 10⁻⁸), both corrected for starting at 0",
      ],
      ["step", delta, ""],
      ["new value", value + delta, "value + step"],
      ["blame", -gradient * delta, "nats: −gradient · step"],
    ];
    const which = `${name}[${placeOf(namedLeaves(app.params)[name].shape, index).join(", ")}]`;
    // The table would take long to hear; this is its gist.
    said.textContent = `${which}: value ${significant(value, 3)}, gradient ${significant(gradient, 3)}, step ${significant(delta, 3)}, blame ${significant(-gradient * delta, 3)} nats`;
    story.replaceChildren(
      el("h3", {}, which),
      el(
        "table",
        { "aria-label": "One weight" },
        el(
          "tbody",
          {},
          lines.map(([label, number, note]) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, label, helpButton(label, WEIGHT_HELP[label])),
              el("td", { class: "number" }, significant(number, 6)),
              el("td", { class: "faint" }, note),
            ),
          ),
        ),
      ),
    );
  }
  return update;
}
