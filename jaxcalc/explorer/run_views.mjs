// The parts of the page about the whole run: its replay, and the table of all problems.

import { cellGrid, chart } from "./charts.mjs";
import { MEMBERSHIP, verdict } from "./data.mjs";
import { el, helpButton, part } from "./dom.mjs";
import { ledgerView } from "./ledger_view.mjs";
import { percent } from "./numbers.mjs";
import { alongSnapshots, stepAxis } from "./timeline.mjs";
import { numberToWords } from "./words.mjs";

/** @type {Record<string, string>} */
const OPERATION_CLASS = { plus: "plus", minus: "minus-op", times: "times", "divided by": "divided" };

// Replay: the slider over the snapshots beside the learning curve.
/** @type {View} */
export function replayView(app) {
  const { snapshots, curve } = app.data;
  const body = part(
    "replay",
    "From untrained to trained",
    "The run saved snapshots of its weights while it trained. Choose one, and the whole page shows that model: at first it guesses, in the end it calculates.",
    "A training step takes a batch of problems, measures how surprised the model is by the right answers, and moves every weight a little so that the surprise gets smaller.\nThe slider goes through the snapshots of this run, from its start to its end.",
  );
  const slider = el("input", {
    type: "range",
    id: "snapshot",
    min: 0,
    max: snapshots.length - 1,
    step: 1,
    "aria-label": "Snapshot",
    oninput: () => app.setSnapshot(Number(slider.value)),
  });
  const shown = el("output", { for: "snapshot", id: "snapshot-step" });
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶ Play";
  };
  const advance = () => {
    if (app.snapshot === snapshots.length - 1) return stop();
    return app.setSnapshot(app.snapshot + 1);
  };
  const play = el(
    "button",
    {
      type: "button",
      id: "play",
      onclick: () => {
        if (timer) return stop();
        play.textContent = "❚❚ Pause";
        timer = setInterval(advance, 900);
        return app.setSnapshot(app.snapshot === snapshots.length - 1 ? 0 : app.snapshot + 1);
      },
    },
    "▶ Play",
  );
  const charts = el("div", { class: "columns" });
  const trail = el("p", { class: "readout" });
  body.append(el("div", { class: "row" }, play, slider, shown), charts, trail);
  const showLedger = ledgerView(app, body);

  const losses = curve.loss.map(([, loss]) => loss);
  const steps = curve.loss.at(-1)?.[0] ?? 0;
  const axis = stepAxis(steps);
  return () => {
    const { step } = snapshots[app.snapshot];
    slider.value = app.snapshot;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    shown.textContent = `step ${step.toLocaleString("en-US")}`;
    const least = Math.min(...losses),
      most = Math.max(...losses);
    const decades = [10, 1, 0.1, 0.01, 0.001, 1e-4, 1e-5].filter((v) => v > least && v < most);
    charts.replaceChildren(
      ...(steps < 2
        ? []
        : [
            el(
              "figure",
              {},
              el(
                "figcaption",
                {},
                "Surprise on the training problems (nats per word)",
                helpButton(
                  "Loss",
                  "Each point is one training step: the mean of −ln p over the answer words of its batch, where p is the probability that the model gave the right word. Both axes are logarithmic.",
                ),
              ),
              chart(
                "Training loss by step",
                axis,
                { from: least, to: most, log: true, ticks: decades.map((v) => [v, String(v)]) },
                [{ class: "curve", points: curve.loss.map(([step, loss]) => [step + 1, loss]) }],
                alongSnapshots(app),
              ),
            ),
            el(
              "figure",
              {},
              el(
                "figcaption",
                {},
                `Whole answers right, on ${curve.watched} problems`,
                helpButton(
                  "Exact match",
                  "The share of problems with a completely right answer, including its end. The model never trains on held-out problems.",
                ),
              ),
              chart(
                "Exact match by step",
                axis,
                {
                  from: 0,
                  to: 1,
                  ticks: [
                    [0, "0"],
                    [0.5, "50 %"],
                    [1, "100 %"],
                  ],
                },
                Object.keys(OPERATION_CLASS)
                  .filter((name) => curve.checks.some((check) => check.by_operation[name] != null))
                  .map((name) => ({
                    class: `match ${OPERATION_CLASS[name]}`,
                    points: curve.checks.map((check) => [check.step + 1, check.by_operation[name]]),
                  })),
                alongSnapshots(app),
              ),
              el(
                "p",
                { class: "legend" },
                Object.keys(OPERATION_CLASS)
                  .filter((name) => app.tokenizer.operations.includes(name))
                  .map((name) => el("span", { class: OPERATION_CLASS[name] }, name)),
              ),
            ),
          ]),
    );
    trail.textContent = "";
    if (app.stepped)
      trail.append(
        `You have taken ${app.stepped} step${app.stepped > 1 ? "s" : ""} from this snapshot. They are kept if you choose another: a button at the top goes back to them.`,
      );
    showLedger();
  };
}

// The table: every problem of every operation, as the chosen snapshot answers it.
/** @type {View} */
export function tableView(app) {
  const body = part(
    "table",
    "The whole table",
    "All problems of the task: the first number goes down, the second to the right. Point at a cell to read it; click it to ask it. The colours show the chosen snapshot; your own steps do not change them.",
    "Each cell is one problem, as the model of this snapshot answered it when the page was made. The stronger the colour, the more probable the model found its answer. Problems in empty cells have no answer in the vocabulary.",
  );
  const { membership } = app;
  if (!membership) {
    body.append(el("p", {}, "The table of this task is too large for this page."));
    return () => {};
  }
  const n = app.tokenizer.max_number + 1,
    cells = n * n;
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const grids = el("div", { class: "grids" });
  /** @type {[[number, number, number], string][]} */
  const legend = [
    [[116, 160, 220], "✓ right, was in training"],
    [[24, 78, 168], "✓ right, was held out"],
    [[206, 92, 0], "✗ wrong"],
  ];
  const scoreHelp = helpButton(
    "Right",
    "The number of problems that this snapshot answers completely right, including the end of the answer.",
  );
  const score = el("p", { id: "score" });
  body.append(
    el(
      "p",
      { class: "legend" },
      legend.map(([rgb, text]) => el("span", {}, el("i", { style: { background: `rgb(${rgb.join()})` } }), text)),
    ),
    score,
    grids,
    readout,
  );
  const chosen = { operation: null, a: 0, b: 0 };
  /** @type {(operation: number, a: number, b: number) => number} */
  const cellIndex = (operation, a, b) => operation * cells + a * n + b;
  const verdictAt = (/** @type {number} */ cell) => verdict(app.verdicts?.[cell] ?? 0);
  /** @type {(operation: number, a: number, b: number) => string | null} */
  const describe = (operation, a, b) => {
    const result = verdictAt(cellIndex(operation, a, b));
    const text = `${numberToWords(a).join(" ")} ${app.tokenizer.operations[operation]} ${numberToWords(b).join(" ")}`;
    readout.textContent = result
      ? `${text}: ${result.right ? "right" : "wrong"}, with probability ${Math.round(100 * result.p)} %; ${result.right ? "" : "it "}was ${MEMBERSHIP[membership[cellIndex(operation, a, b)]] === "held out" ? "held out" : "in training"}`
      : `${text} has no answer in the vocabulary`;
    return result ? text : null;
  };
  const drawings = app.tokenizer.operations.map((name, operation) => {
    const grid = cellGrid({
      shape: () => ({ rows: n, columns: n }),
      sizeIn: (width) => Math.max(1, Math.floor((Math.min(width, 500) * devicePixelRatio) / n) / devicePixelRatio),
      label: () => `${name}: ${n} × ${n} problems; arrow keys move, Enter asks`,
      colour: (a, b) => {
        const i = cellIndex(operation, a, b),
          result = verdictAt(i);
        if (!result) return null;
        const [[red, green, blue]] = legend[result.right ? membership[i] - 1 : 2];
        return [red, green, blue, 0.15 + 0.8 * result.p];
      },
      chosen: () => (chosen.operation === operation ? [chosen.a, chosen.b] : null),
      onmove: (a, b) => describe(operation, a, b),
      onpick: (a, b, asks) => {
        Object.assign(chosen, { operation, a, b });
        drawings.forEach((drawing) => drawing.draw());
        const text = describe(operation, a, b);
        if (asks && text) app.setPrompt(text);
      },
    });
    grids.append(el("figure", {}, el("figcaption", {}, name), grid.node));
    return grid;
  });
  return () => {
    const counts = { right: 0, all: 0, heldRight: 0, held: 0 };
    app.verdicts?.forEach((byte, i) => {
      if (!byte) return;
      const held = MEMBERSHIP[membership[i]] === "held out";
      counts.all++;
      counts.right += Number(byte > 127);
      counts.held += Number(held);
      counts.heldRight += Number(held && byte > 127);
    });
    score.replaceChildren(
      `Right: ${counts.right.toLocaleString("en-US")} of ${counts.all.toLocaleString("en-US")} (${percent(counts.right / counts.all)})`,
      counts.held
        ? `; of the held-out problems ${counts.heldRight.toLocaleString("en-US")} of ${counts.held.toLocaleString("en-US")} (${percent(counts.heldRight / counts.held)}).`
        : ".",
      scoreHelp,
    );
    drawings.forEach((drawing) => drawing.draw());
  };
}
