// The parts of the page about learning: the blame going back, a step, and one weight.

import { outputError } from "./backprop.mjs";
import {
  bars,
  cellGrid,
  chart,
  el,
  heatTable,
  likeliest,
  part,
  percent,
  signed,
  significant,
  svg,
  what,
} from "./dom.mjs";
import { finiteDifference } from "./learning.mjs";
import { namedLeaves, norm, placeOf, rowNorms } from "./trees.mjs";

// Backward: the output error, the messages, the gradients, and the blame.
export function backwardView(app) {
  const body = part(
    "backward",
    "The blame going back",
    "The chain rule hands the surprise back. It starts at the scores as p − 1 for the right word and p for the others: what should have been higher and lower. Each stage turns the message that arrives into the gradient of its own weights and a message for the stage before.",
    "A message is ∂loss/∂x, how the loss would change with the stream at a place. The table shows its length at each position; lengths do not add up, so they are no shares. Blame does: it is −⟨gradient, step⟩, how much of the drop in loss that the step below promises comes from a stage's weights.",
  );
  return () => {
    const error = outputError(app.scores(), app.target);
    const words = likeliest(error.map(Math.abs));
    const arriving = app.walked.filter(({ name }) => name !== "loss");
    const messages = arriving.map(({ name, messageIn }) => [name, ...rowNorms(messageIn)]);
    const foreseen = app.pending.blame;
    const hasShares = foreseen.total >= 1e-4;
    const rows = arriving.map(({ name, grads }) => {
      const nats = foreseen.nats[name];
      return [
        `${name}  (‖gradient‖ ${significant(norm(grads), 3)})`,
        nats,
        hasShares ? `${((100 * nats) / foreseen.total).toFixed(1)} %` : `${significant(nats, 2)} nats`,
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
            "Output error, p − right",
            what(
              "Output error",
              "∂loss/∂score of each word: its probability, less 1 for the word that should come. Negative means: this score should have been higher. Together they are 0.",
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
            "Gradients, and blame by stage",
            what(
              "Blame",
              "The share of the promised drop in loss that comes from this stage's weights, for the step set below. The shares add up to 100 %. Where less than 0.0001 nats are to be gained there are no shares: they would say more about rounding than about learning.",
            ),
          ),
          bars("Blame by stage", rows),
        ),
      ),
      el(
        "h3",
        {},
        "Messages: ‖∂loss/∂x‖ where each stage ends, from the output back to the embeddings",
        what(
          "Messages",
          "How strongly the loss depends on the stream (for the output: on the scores) at each position, as the length of its gradient. Only the last position is asked for a word, so the message starts there; attention hands it to the positions that were looked at.",
        ),
      ),
      heatTable(
        "Strength of messages by stage and position",
        app.tokens.map((id) => app.words[id]),
        messages,
        (value) => significant(value, 2),
      ),
    );
  };
}

// The step: an optimizer, a learning rate, and what the step promises and brings.
export function stepView(app) {
  const body = part(
    "step",
    "A step of learning",
    "Gradient descent moves every weight a little against its gradient. To first order the loss must drop by the promise; how much it really drops shows only when the step is taken. Too large a step overshoots, and makes it worse.",
    "SGD: step = −rate · gradient. Adam divides the mean of the gradients by the root of the mean of their squares, so that every weight moves by about the rate. Here the step is taken on this one example alone, which teaches the model this word and may cost it others.",
  );
  const kind = el(
    "select",
    { id: "optimizer", onchange: () => app.setOptimizer(kind.value, Number(rate.value)) },
    el("option", { value: "sgd" }, "SGD"),
    el("option", { value: "adam" }, "Adam"),
  );
  const rate = el("input", {
    type: "number",
    id: "rate",
    min: 0,
    step: "any",
    "aria-describedby": "rate-error",
    oninput: () => {
      const ok = Number(rate.value) > 0 && Number.isFinite(Number(rate.value));
      problem.textContent = ok ? "" : "the learning rate must be a number above 0";
      if (ok) app.setOptimizer(kind.value, Number(rate.value));
    },
  });
  const problem = el("span", { class: "error", id: "rate-error", role: "alert" });
  const times = (factor) =>
    el(
      "button",
      { type: "button", onclick: () => app.setOptimizer(kind.value, Number((app.rate * factor).toPrecision(2))) },
      factor > 1 ? `× ${factor}` : `÷ ${1 / factor}`,
    );
  const step = el("button", { type: "button", class: "primary", id: "do-step", onclick: () => app.step() }, "Step");
  const undo = el("button", { type: "button", id: "undo", onclick: () => app.undo() }, "Undo");
  const reset = el("button", { type: "button", id: "reset", onclick: () => app.reset() }, "Reset");
  const counted = el("span", { class: "faint", id: "stepped" });
  const said = el("div", { class: "columns" });
  body.append(
    el(
      "div",
      { class: "row" },
      el("label", { for: "optimizer" }, "Optimizer"),
      kind,
      el("label", { for: "rate" }, "learning rate"),
      rate,
      times(0.1),
      times(10),
      problem,
    ),
    el("div", { class: "row", style: { "margin-top": "10px" } }, step, undo, reset, counted),
    said,
  );
  return () => {
    kind.value = app.kind;
    if (document.activeElement !== rate) rate.value = app.rate;
    else if (Number(rate.value) !== app.rate && Number(rate.value) > 0) rate.value = app.rate;
    undo.disabled = reset.disabled = !app.stepped;
    counted.textContent = app.stepped ? `${app.stepped} taken` : "none taken yet";
    const { losses, blame: foreseen, actual } = app.pending;
    const finite = losses.filter(([, loss]) => Number.isFinite(loss));
    const shown = [...finite.map(([, loss]) => loss), app.loss];
    const low = Math.min(...shown, Math.max(0, app.loss - foreseen.total)),
      high = Math.max(...shown) + 1e-12;
    const promise = [
      [0, app.loss],
      [2, app.loss - 2 * foreseen.total],
    ].map(([t, loss]) => [t, loss]);
    // The tangent leaves the chart where it falls below its lower edge.
    const leaves = foreseen.total > 0 ? Math.min(2, (app.loss - low) / foreseen.total) : 2;
    promise[1] = [leaves, app.loss - leaves * foreseen.total];
    const worse = actual < 0;
    said.replaceChildren(
      el(
        "div",
        { id: "promise" },
        el(
          "p",
          { class: "readout" },
          "The next step promises a drop of ",
          el("strong", {}, significant(foreseen.total)),
          " nats; it would really bring ",
          el("strong", { class: worse ? "bad" : "good" }, significant(actual)),
          ".",
          what(
            "Predicted and actual drop",
            "Predicted: −⟨gradient, step⟩, what the drop would be if the loss were a straight line. Actual: the loss before less the loss after. They agree for a small step, and part ways as the curve bends.",
          ),
        ),
        worse
          ? el(
              "p",
              { class: "bad" },
              `Too large: the loss would rise by ${significant(-actual, 3)} nats. Take a smaller learning rate.`,
            )
          : null,
        chart(
          "Loss along the step",
          {
            from: 0,
            to: 2,
            ticks: [
              [0, "now"],
              [1, "the step"],
              [2, "twice it"],
            ],
          },
          {
            from: low,
            to: high,
            ticks: [
              [low, significant(low, 3)],
              [high, significant(high, 3)],
            ],
          },
          [
            { class: "promise", points: promise },
            { class: "curve", points: finite },
          ],
          {
            marks: (atX, atY) => [
              svg("circle", { class: "dot", cx: atX(0), cy: atY(app.loss), r: 4 }),
              Number.isFinite(app.loss - actual)
                ? svg("circle", { class: "dot", cx: atX(1), cy: atY(app.loss - actual), r: 5 })
                : null,
            ],
          },
        ),
        el("p", { class: "faint" }, "Dashed: the promise, a straight line. Solid: the loss along the step."),
      ),
      app.last ? lastStep(app) : el("p", { class: "faint" }, "After a step, its credit stands here beside its blame."),
    );
  };
}

function lastStep({ last, words }) {
  const total = (account) => Object.values(account).reduce((a, b) => a + b, 0);
  const row = (name, a, b) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", { class: "number" }, significant(a)),
      el("td", { class: "number" }, significant(b)),
    );
  return el(
    "div",
    { id: "credit" },
    el(
      "p",
      { class: "readout" },
      `Your last step (${last.kind}, rate ${last.rate}): p(${words[last.target]}) went from ${percent(last.before)} to `,
      el("strong", {}, percent(last.after)),
      `, the surprise from ${significant(last.loss)} to ${significant(last.loss - last.actual)} nats.`,
    ),
    el(
      "table",
      { "aria-label": "Blame and credit of the last step" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "nats"),
          el("th", { scope: "col", class: "number" }, "blame before"),
          el(
            "th",
            { scope: "col", class: "number" },
            "credit after",
            what(
              "Credit",
              "A stage's share of the drop that really came: −∫⟨gradient, step⟩ along the way, the gradient taken at 32 points of it (loss change allocation, Lan et al. 2019). The credits add up to the actual drop.",
            ),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        Object.keys(last.blame.nats).map((name) => row(name, last.blame.nats[name], last.credit.nats[name])),
        row("sum", total(last.blame.nats), total(last.credit.nats)),
        el(
          "tr",
          {},
          el("th", { scope: "row" }, "actual drop"),
          el("td"),
          el("td", { class: `number ${last.actual < 0 ? "bad" : "good"}` }, significant(last.actual)),
        ),
      ),
    ),
  );
}

const WEIGHT_HELP = {
  value: "The weight as it is now.",
  gradient: "∂loss/∂weight: how much the loss would rise for a small rise of this weight. The chain rule found it.",
  "finite difference":
    "(loss(weight + h) − loss(weight − h)) / 2h with h = 10⁻⁶: the same question asked by computing the whole network twice more. Rarely a hidden unit switches on or off in between, and the two differ.",
  "momentum μ": "Adam's running mean of this weight's gradients, the present one included.",
  ν: "Adam's running mean of this weight's squared gradients, the present one included.",
  "learning rate": "How long steps are; set it above.",
  step: "What the optimizer would add to the weight. It goes against the gradient.",
  "new value": "The weight after the step.",
  "its blame": "How much of the promised drop in loss comes from this weight alone: −gradient · step, in nats.",
};

// One weight: every matrix of weights, gradients or steps, and the story of one cell.
export function weightView(app) {
  const body = part(
    "weight",
    "One weight",
    "All of this is numbers in matrices. Choose one: click a cell, or move with the arrow keys, to follow a single weight through the step.",
    "The gradient says how the loss changes with this weight. The finite difference asks the same question by brute force: move the weight a little to both sides and compute the whole network again. That they agree is a proof that the chain rule did its work.",
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
  const place = el("div", { class: "scroll" }),
    story = el("div", { id: "story", class: "readout" });
  body.append(
    el(
      "div",
      { class: "row" },
      el("label", { for: "leaf" }, "Matrix"),
      leafPicker,
      el("label", { for: "show" }, "shows"),
      showPicker,
    ),
    el("div", { class: "row beside" }, place, story),
  );
  const at = (tree) => namedLeaves(tree)[app.weight.name].data[app.weight.index];
  function update() {
    const { name } = app.weight;
    leafPicker.value = name;
    const trees = { weights: app.params, gradient: app.grads, step: app.pending.update };
    const { shape, data } = namedLeaves(trees[showPicker.value])[name];
    const columns = name.endsWith("attention.out") ? shape[2] : shape.length === 1 ? shape[0] : data.length / shape[0];
    const rows = data.length / columns;
    const most = data.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    const size = Math.max(
      3,
      Math.min(10, Math.floor(Math.min(body.clientWidth - 8, 900) / columns), Math.floor(560 / rows)),
    );
    const grid = cellGrid({
      rows,
      columns,
      size,
      label: `${showPicker.value} of ${name}, ${shape.join(" × ")}; arrow keys move the chosen cell`,
      colour: (r, c) => signed(data[r * columns + c], most),
      chosen: () => [Math.floor(app.weight.index / columns), app.weight.index % columns],
      onpick: (r, c) => {
        app.weight.index = r * columns + c;
        grid.draw();
        tell();
      },
    });
    place.replaceChildren(grid.node);
    grid.draw();
    tell();
  }
  function tell() {
    const { name, index } = app.weight;
    const value = at(app.params),
      delta = at(app.pending.update);
    const moments = app.pending.state
      ? [
          ["momentum μ", at(app.pending.state.mu), "mean of gradients, after this one"],
          ["ν", at(app.pending.state.nu), "mean of their squares"],
        ]
      : [];
    const lines = [
      ["value", value, ""],
      ["gradient", at(app.grads), "by the chain rule"],
      ["finite difference", finiteDifference(app.params, name, index, app.tokens, app.target), "by trying both sides"],
      ...moments,
      [
        "learning rate",
        app.rate,
        app.kind === "sgd"
          ? "step = −rate · gradient"
          : "step = −rate · μ̂ / (√ν̂ + 10⁻⁸), both corrected for their start at 0",
      ],
      ["step", delta, ""],
      ["new value", value + delta, "value + step"],
      ["its blame", -at(app.grads) * delta, "nats: −gradient · step"],
    ];
    story.replaceChildren(
      el("h3", {}, `${name}[${placeOf(namedLeaves(app.params)[name].shape, index).join(", ")}]`),
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
              el("th", { scope: "row" }, label, what(label, WEIGHT_HELP[label])),
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
