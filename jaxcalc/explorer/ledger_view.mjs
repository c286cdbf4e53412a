// What taught the run an answer: the ledgers of a few questions, along the snapshots.

import { chart } from "./charts.mjs";
import { el, helpButton } from "./dom.mjs";
import { significant } from "./numbers.mjs";
import { alongSnapshots, stepAxis } from "./timeline.mjs";

// Appends the ledgers to the part with the slider, if the page has any; returns the function that fills them anew.
/** @type {(app: App, body: HTMLElement) => () => void} */
export function ledgerView(app, body) {
  const { ledgers } = app.data;
  if (!ledgers.length) return () => {};
  const picker = el(
    "select",
    { id: "ledger-question", onchange: () => draw(ledgers[picker.value]) },
    ledgers.map(({ question }, index) => el("option", { value: index }, question)),
  );
  const label = el("label", { for: "ledger-question" }, "Question");
  const said = el("p", { id: "ledger-said", class: "readout", "aria-live": "polite" });
  const charts = el("div", { class: "columns" });
  const lessons = el("div", { class: "columns" });
  /** @type {(ledger: LedgerData) => void} */
  const draw = (ledger) => {
    const at = ledger.steps.indexOf(app.data.snapshots[app.snapshot].step);
    said.textContent = sentenceAt(ledger, at);
    charts.replaceChildren(surpriseFigure(app, ledger), creditFigure(app, ledger, at));
    lessons.replaceChildren(
      lessonTable("Taught it most", ledger.taught),
      lessonTable("Pulled against it", ledger.against),
    );
  };
  body.append(
    el(
      "div",
      { id: "ledger" },
      el(
        "h3",
        {},
        "What taught it an answer",
        helpButton(
          "The ledger",
          "The run was taken again. Every nat that the surprise at an answer lost was allotted to steps, to stages and to the lessons in the batches. The surprise is −ln p of the whole answer, with its end.",
        ),
      ),
      el(
        "p",
        { class: "caption" },
        "An account of what happened. It does not say what would have happened without a lesson.",
      ),
      el("div", { class: "row" }, ledgers.length > 1 ? [label, picker] : el("strong", {}, ledgers[0].question)),
      said,
      charts,
      lessons,
    ),
  );
  return () => draw(ledgers[picker.value]);
}

// What has happened by a step of the ledger.
/** @type {(ledger: LedgerData, at: number) => string} */
function sentenceAt({ steps, surprise, stages }, at) {
  const step = steps[at].toLocaleString("en-US");
  const [start, now] = [surprise[0], surprise[at]];
  if (at === 0) return `At step ${step} the surprise was ${significant(now, 3)} nats.`;
  if (now >= start)
    return `At step ${step} the surprise was ${significant(now, 3)} nats, no less than at the start (${significant(start, 3)}).`;
  const most = stages.reduce((a, b) => (b.credit[at] > a.credit[at] ? b : a));
  return `At step ${step} the surprise had lost ${significant(start - now, 3)} of its ${significant(start, 3)} nats, the largest part by ${most.name} (${significant(most.credit[at], 3)}).`;
}

/** @type {(app: App, ledger: LedgerData) => HTMLElement} */
function surpriseFigure(app, { steps, surprise }) {
  return el(
    "figure",
    {},
    el(
      "figcaption",
      {},
      "Surprise at this answer (nats)",
      helpButton(
        "Surprise",
        "−ln p of the whole answer, with its end, at each step. The axis of the steps is logarithmic.",
      ),
    ),
    chart(
      "Surprise at this answer by step",
      stepAxis(steps.at(-1)),
      axisOf(surprise),
      [{ class: "curve", points: linePoints(steps, surprise) }],
      alongSnapshots(app),
    ),
  );
}

/** @type {(app: App, ledger: LedgerData, at: number) => HTMLElement} */
function creditFigure(app, { steps, stages, remainder }, at) {
  const colour = (/** @type {number} */ stage) => `var(--head-${stage % 8})`;
  return el(
    "figure",
    {},
    el(
      "figcaption",
      {},
      "Credit of each stage, summed up (nats)",
      helpButton(
        "Credit",
        `What each stage has taken off the surprise up to a step: −∫⟨gradient, step⟩ over its weights. A falling line is a stage that pulls against the answer. The lines add up to what the surprise has lost; at the end ${significant(remainder, 2)} nats are left over.\nThe numbers below are those at the chosen snapshot.`,
      ),
    ),
    chart(
      "Credit of each stage by step",
      stepAxis(steps.at(-1)),
      axisOf(stages.flatMap(({ credit }) => credit)),
      stages.map(({ credit }, stage) => ({
        class: "credit",
        style: { stroke: colour(stage) },
        points: linePoints(steps, credit),
      })),
      alongSnapshots(app),
    ),
    el(
      "p",
      { class: "legend" },
      stages.map(({ name, credit }, stage) =>
        el("span", {}, el("i", { style: { background: colour(stage) } }), `${name} ${significant(credit[at], 3)}`),
      ),
    ),
  );
}

/** @type {(steps: number[], values: number[]) => [number, number][]} */
const linePoints = (steps, values) => values.map((value, i) => [steps[i] + 1, value]);

// A linear axis that holds 0 and all values, with two to five ticks.
/** @type {(values: number[]) => Axis} */
function axisOf(values) {
  const from = Math.min(0, ...values),
    to = Math.max(0, ...values);
  const size = 10 ** Math.floor(Math.log10(to - from));
  const n = (to - from) / size;
  const every = size * (n < 2 ? 0.5 : n < 5 ? 1 : 2);
  /** @type {[number, string][]} */
  const ticks = [];
  for (let k = Math.ceil(from / every); k <= to / every; k++) ticks.push([k * every, significant(k * every, 3)]);
  return { from, to, ticks };
}

/** @type {(title: string, rows: LedgerLesson[]) => HTMLElement} */
function lessonTable(title, rows) {
  return el(
    "div",
    {},
    el(
      "h3",
      {},
      title,
      helpButton(
        title,
        "What each lesson brought in all its visits, and what it has to do with the question. All lessons together, and weight decay, brought what the surprise lost. Lessons pull both ways, so one can bring more than that.",
      ),
    ),
    el(
      "table",
      { "aria-label": title },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "lesson"),
          ["visits", "nats"].map((name) => el("th", { class: "number", scope: "col" }, name)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map(({ lesson, relation, visits, nats }) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, lesson, el("small", {}, relation)),
            el("td", { class: "number" }, visits),
            el("td", { class: "number" }, significant(nats, 3)),
          ),
        ),
      ),
    ),
  );
}
