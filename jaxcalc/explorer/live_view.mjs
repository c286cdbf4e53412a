// The tab "Train from nothing": a small model learns from its first step while one watches.

import { MEMBERSHIP, verdict } from "./data.mjs";
import { el, switchOn } from "./dom.mjs";
import { BLAMED, blameChart, lossChart, problemGrid } from "./live_charts.mjs";
import { questionOf, watchedView } from "./live_question.mjs";
import { LiveRun } from "./live_run.mjs";
import { settingsView } from "./live_settings.mjs";
import { significant } from "./numbers.mjs";
import { namedLeaves } from "./trees.mjs";

// Fills the tab, and returns the training for the console.
/** @type {(root: HTMLElement, data: LiveData, engine: import("./worker.mjs").Engine) => import("./live_run.mjs").LiveRun} */
export function liveView(root, data, engine) {
  const live = new LiveRun(data, engine, () => schedule());
  /** @type {(watched: Watched) => void} */
  const ask = ({ a, operation, b }) => {
    live.watched = { a, operation, b };
    schedule();
  };
  const intro = el("p", { class: "live-intro" });
  const views = [
    controlsView(live, engine),
    settingsView(live),
    tableOf(live, ask),
    curvesView(live),
    watchedView(live, ask),
  ];
  const [controls, settings, table, curves, watched] = views.map(({ node }) => node);
  root.append(intro, controls, settings, el("div", { class: "live-parts" }, table, curves, watched));
  let asked = false;
  const draw = () => {
    asked = false;
    intro.textContent = introOf(live);
    views.forEach((view) => view.draw());
  };
  // However often the training reports, the page is drawn once a frame.
  const schedule = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(draw);
  };
  live.reset();
  return live;
}

/** @type {(live: import("./live_run.mjs").LiveRun) => string} */
function introOf({ run, data }) {
  const numbers = Object.values(namedLeaves(run.params)).reduce((total, leaf) => total + leaf.data.length, 0);
  const known = run.step ? "" : " They are random: it knows nothing yet. Press Train and watch.";
  return `A transformer of ${numbers.toLocaleString("en-US")} numbers learns arithmetic in English words from 0 to ${data.task.max_number}, here in your browser.${known}`;
}

// Train, pause, one step, begin anew; and how far it is.
/** @type {(live: import("./live_run.mjs").LiveRun, engine: import("./worker.mjs").Engine) => LivePart} */
function controlsView(live, engine) {
  /** @type {(id: string, text: string, onclick: () => void) => HTMLButtonElement} */
  const button = (id, text, onclick) => el("button", { type: "button", id, onclick }, text);
  const play = button("live-play", "Train", () => (live.playing ? live.pause() : live.play()));
  play.className = "primary";
  const step = button("live-step", "One step", () => live.step());
  const reset = button("live-reset", "Reset", () => live.reset());
  const done = el("progress", { max: live.data.steps, value: 0, "aria-label": "Steps" });
  const where = el("span", { class: "live-where" }),
    problem = el("p", { class: "error", role: "alert", id: "live-problem" });
  const draw = () => {
    const { run, settings, points, playing } = live;
    play.textContent = playing ? "Pause" : run.step && !live.isDone ? "Go on" : "Train";
    switchOn(play, !live.isDone, reset);
    switchOn(step, !playing && !live.isDone, live.isDone ? reset : play);
    reset.classList.toggle("primary", live.isOther && !playing);
    done.value = run.step;
    const examples = (run.step * settings.batch).toLocaleString("en-US");
    const loss = points.length ? `, loss ${significant(points.at(-1).loss, 3)}` : "";
    where.textContent = `step ${run.step} of ${live.data.steps}, ${examples} examples${loss}`;
    problem.textContent = live.problem || (engine.isSlow && playing ? SLOW : "");
  };
  return { node: el("div", { class: "live-controls" }, play, step, reset, done, where, problem), draw };
}

const SLOW = "This browser starts no worker here, so the page itself trains, in short slices, and answers more slowly.";

// Loss and blame by step.
/** @type {(live: import("./live_run.mjs").LiveRun) => LivePart} */
function curvesView(live) {
  const loss = lossChart(live.data.steps),
    blame = blameChart(live.data.steps);
  const legend = BLAMED.map((name, stage) => el("span", {}, el("i", { class: `swatch stage-${stage}` }), name));
  const half = (/** @type {string} */ title, /** @type {string} */ caption, /** @type {HTMLElement} */ chart) =>
    el("div", {}, el("h2", {}, title), el("p", { class: "live-caption" }, caption), chart);
  const node = el(
    "div",
    { class: "live-card" },
    el(
      "div",
      { class: "live-curves" },
      half("Surprise", "−ln p of the right words, in nats", loss.node),
      half("Blame", "share of each stage, in %", blame.node),
    ),
    el("p", { class: "live-legend" }, legend),
  );
  /** @type {number | null} */
  let drawn = null;
  const draw = () => {
    if (drawn === live.points.length) return;
    drawn = live.points.length;
    loss.draw(live.points);
    blame.draw(live.points);
  };
  return { node, draw };
}

// Every problem, as the model answers it now.
/** @type {(live: import("./live_run.mjs").LiveRun, ask: (watched: Watched) => void) => LivePart} */
function tableOf(live, ask) {
  const score = el("p", { class: "live-score", "aria-live": "off" }),
    grids = el("div", { class: "live-grids" }),
    readout = el("p", { class: "live-caption live-readout" });
  const key = [
    ["key-right", "right"],
    ["key-wrong", "wrong"],
    ["key-held", "held out: never trained on"],
  ];
  const legend = key.map(([name, text]) => el("span", {}, el("i", { class: `swatch ${name}` }), text));
  const node = el(
    "div",
    { class: "live-card" },
    el("h2", {}, "All problems"),
    score,
    grids,
    el("p", { class: "live-legend" }, legend),
    readout,
  );
  /** @type {(index: number | undefined) => void} */
  const point = (index) => {
    readout.textContent = index === undefined ? HINT : readingOf(live, index);
  };
  point(undefined);
  /** @type {Lesson[] | null} */
  let shown = null;
  /** @type {ReturnType<typeof problemGrid>[]} */
  let drawings = [];
  const draw = () => {
    const { lessons, verdicts, watched } = live;
    if (shown !== lessons) {
      const n = live.data.task.max_number + 1;
      const each = { onpoint: point, onpick: (/** @type {number} */ index) => ask(lessons[index]) };
      drawings = live.settings.operations.map((name) => problemGrid(name, lessons, n, each));
      grids.replaceChildren(...drawings.map((drawing) => drawing.node));
      shown = lessons;
    }
    drawings.forEach((drawing) => drawing.draw(verdicts, watched));
    score.replaceChildren(...scoreOf(lessons, verdicts));
  };
  return { node, draw };
}

const HINT = "First number down, second to the right. Click a problem to watch it.";

/** @type {(live: import("./live_run.mjs").LiveRun, index: number) => string} */
function readingOf({ lessons, verdicts }, index) {
  const result = verdicts && verdict(verdicts[index]);
  const side = MEMBERSHIP[lessons[index].held ? 2 : 1];
  const answer = result ? `, ${result.right ? "right" : "wrong"} with ${Math.round(100 * result.p)} %` : "";
  return `${questionOf(lessons[index])}: ${side}${answer}`;
}

/** @type {(lessons: Lesson[], verdicts: Uint8Array | null) => any[]} */
function scoreOf(lessons, verdicts) {
  /** @type {(isHeld: boolean) => any[]} */
  const count = (isHeld) => {
    const rows = lessons.flatMap(({ held }, index) => (held === isHeld ? [index] : []));
    const right = verdicts ? rows.filter((index) => verdicts[index] > 127).length : 0;
    return [el("b", {}, `${right} of ${rows.length}`), isHeld ? " held out" : " in training"];
  };
  return ["Right: ", ...count(false), ", ", ...count(true)];
}
