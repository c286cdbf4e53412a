// The part of the page about a step: an optimizer, a learning rate, and the predicted and the actual drop in loss.

import { chart } from "./charts.mjs";
import { el, helpButton, part, svg, switchOn } from "./dom.mjs";
import { percent, significant } from "./numbers.mjs";

/** @type {View} */
export function stepView(app) {
  const body = part(
    "step",
    "A step of learning",
    "Gradient descent moves every weight a little against its gradient. The gradient predicts how much the loss will drop; only the step itself shows how much it really drops. A step that is too large overshoots and makes the loss worse.",
    "SGD: step = −rate · gradient. Adam divides the running mean of the gradients by the root of the running mean of their squares, so that every weight moves by about the learning rate. A step here learns from this one example only: it teaches the model this word and may make other answers worse.",
  );
  const kind = el(
    "select",
    { id: "optimizer", onchange: () => app.setOptimizer(kind.value, null) },
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
  const times = (/** @type {number} */ factor) =>
    el(
      "button",
      { type: "button", onclick: () => app.setOptimizer(kind.value, Number((app.rate * factor).toPrecision(2))) },
      factor > 1 ? `× ${factor}` : `÷ ${1 / factor}`,
    );
  const step = el("button", { type: "button", class: "primary", id: "do-step", onclick: () => app.teach(1) }, "Step");
  const undo = el("button", { type: "button", id: "undo", onclick: () => app.undo() }, "Undo");
  const reset = el("button", { type: "button", id: "reset", onclick: () => app.reset() }, "Reset");
  const counter = el("span", { class: "faint", id: "stepped" });
  const dropHelp = helpButton(
    "Predicted and actual drop",
    "Predicted: −⟨gradient, step⟩, the drop if the loss were a straight line. Actual: the loss before the step minus the loss after it. The two agree for a small step and differ once the curve bends.",
  );
  const promise = el("div", { "aria-live": "polite", class: "promised" }),
    plot = el("div", { class: "plot" }),
    taken = el("div", { "aria-live": "polite" });
  const curveNote = "Dashed: the prediction, a straight line. Solid: the actual loss along the step.";
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
    el("div", { class: "row", style: { "margin-top": "10px" } }, step, undo, reset, counter),
    el(
      "div",
      { class: "columns" },
      el("div", { id: "promise" }, promise, plot, el("p", { class: "faint" }, curveNote)),
      taken,
    ),
  );
  return () => {
    kind.value = app.kind;
    // Leave text that the user is typing: "0.10" is the rate 0.1, and "0." becomes a number with the next key.
    const typed = Number(rate.value);
    const isTyping = document.activeElement === rate && (typed === app.rate || !(typed > 0));
    if (!isTyping) rate.value = app.rate;
    switchOn(undo, app.stepped > 0, step);
    switchOn(reset, app.stepped > 0, step);
    counter.textContent = app.stepped ? `${app.stepped} taken` : "none taken yet";
    promise.replaceChildren(...promiseOf(app), dropHelp);
    app.curve().then((losses) => losses && plot.replaceChildren(curveChart(app, losses)));
    taken.replaceChildren(
      app.last
        ? lastStep({ last: app.last, words: app.words })
        : el("p", { class: "faint" }, "Take a step to see its blame and its credit here."),
    );
  };
}

// What the gradient predicts for the next step, and what it would bring.
/** @type {(app: App) => any[]} */
function promiseOf({ pending: { blame, actual } }) {
  const worse = actual < 0;
  const tooLarge = `Too large: the loss would rise by ${significant(-actual, 3)} nats. Take a smaller learning rate. `;
  return [
    "The gradient predicts a drop of ",
    el("strong", {}, significant(blame.total)),
    " nats for the next step; the actual drop would be ",
    el("strong", { class: worse ? "bad" : "good" }, significant(actual)),
    ". ",
    worse ? el("span", { class: "bad" }, tooLarge) : "",
  ];
}

// The loss along the step, and the straight line that the gradient predicts.
/** @type {(app: App, losses: [number, number][]) => SVGSVGElement} */
function curveChart(app, losses) {
  const { blame, actual } = app.pending;
  const predicted = blame.total;
  const shown = [...losses.map(([, loss]) => loss), app.loss];
  const low = Math.min(...shown, Math.max(0, app.loss - predicted)),
    high = Math.max(...shown) + 1e-12;
  // The tangent ends where it falls below the chart.
  const end = predicted > 0 ? Math.min(2, (app.loss - low) / predicted) : 2;
  /** @type {[number, number][]} */
  const tangent = [
    [0, app.loss],
    [end, app.loss - end * predicted],
  ];
  /** @type {[number, string][]} */
  const along = [
    [0, "now"],
    [1, "the step"],
    [2, "twice it"],
  ];
  /** @type {(value: number) => [number, string]} */
  const tick = (value) => [value, significant(value, 3)];
  return chart(
    "Loss along the step",
    { from: 0, to: 2, ticks: along },
    { from: low, to: high, ticks: [tick(low), tick(high)] },
    [
      { class: "tangent", points: tangent },
      { class: "curve", points: losses },
    ],
    {
      marks: (atX, atY) => [
        svg("circle", { class: "dot", cx: atX(0), cy: atY(app.loss), r: 4 }),
        Number.isFinite(actual) ? svg("circle", { class: "dot", cx: atX(1), cy: atY(app.loss - actual), r: 5 }) : null,
      ],
    },
  );
}

/** @type {(app: { last: TakenStep, words: string[] }) => HTMLElement} */
function lastStep({ last, words }) {
  return el(
    "div",
    { id: "credit" },
    el(
      "p",
      { class: "readout" },
      `${last.taken === 1 ? "Your last step" : `Your last ${last.taken} steps`} (${last.kind}, rate ${significant(last.rate, 3)}): p(${words[last.target]}) went from ${percent(last.before)} to `,
      el("strong", {}, percent(last.after)),
      `, the surprise from ${significant(last.loss)} to ${significant(last.loss - last.actual)} nats.`,
    ),
    creditTable(last),
  );
}

/** @type {(last: TakenStep) => HTMLElement | null} */
function creditTable({ taken, blame, credit, actual }) {
  if (taken > 1) return null;
  if (!credit) return el("p", { class: "faint" }, "The credit is being computed.");
  /** @type {(name: string, a: number, b: number) => HTMLElement} */
  const row = (name, a, b) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", { class: "number" }, significant(a)),
      el("td", { class: "number" }, significant(b)),
    );
  return el(
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
          helpButton(
            "Credit",
            "A stage's part of the actual drop: −∫⟨gradient, step⟩ along the step, with the gradient computed at points on the way (loss change allocation, Lan et al. 2019): at more of them until the sum of the credits is within 1 % of the actual drop, but at no more than are bearable. The remainder is what they leave.",
          ),
        ),
      ),
    ),
    el(
      "tbody",
      {},
      Object.keys(blame.nats).map((name) => row(name, blame.nats[name], credit.nats[name])),
      row("sum", blame.total, credit.total),
      el(
        "tr",
        {},
        el("th", { scope: "row" }, "remainder"),
        el("td"),
        el("td", { class: "number" }, significant(credit.remainder)),
      ),
      el(
        "tr",
        {},
        el("th", { scope: "row" }, "actual drop"),
        el("td"),
        el("td", { class: `number ${actual < 0 ? "bad" : "good"}` }, significant(actual)),
      ),
    ),
  );
}
