// @ts-nocheck
// The page: the opening, the stage with its transport, and all other numbers inside.

import { App } from "./app.mjs";
import { collect, walk } from "./backprop.mjs";
import { backwardView } from "./blame_view.mjs";
import { credit, finish } from "./credit.mjs";
import { el } from "./dom.mjs";
import { attentionView, lossView, outputView, stagesView, tokensView } from "./forward_views.mjs";
import { adam, along, blame, finiteDifference, gradient, loss, sgd } from "./learning.mjs";
import { trace } from "./model.mjs";
import { momentOf } from "./moment.mjs";
import { answerView, askView, chipsOf, drawChips, sentenceOf, teachView, upToTheMistake } from "./opening.mjs";
import { replayView, tableView } from "./run_views.mjs";
import { indexOfScene } from "./transport.mjs";
import { Stage } from "./stage.mjs";
import { stepView } from "./step_view.mjs";
import { addTabs, tellHeight } from "./tabs.mjs";
import { Transport } from "./transport.mjs";
import { namedLeaves, treeMap } from "./trees.mjs";
import { weightView } from "./weight_view.mjs";
import { Engine, serve } from "./worker.mjs";

// The parts inside: each makes its part once and returns a function that fills it anew.
const INSIDE = [
  tokensView,
  stagesView,
  attentionView,
  outputView,
  lossView,
  backwardView,
  stepView,
  weightView,
  replayView,
];

// Fills the parts inside when they are open, and only then.
function insideView(app) {
  const node = document.getElementById("inside");
  let show = null;
  let showTable = null;
  let shownVerdicts = null;
  const fill = () => {
    if (!node.open) return;
    show ??= INSIDE.map((view) => view(app));
    showTable ??= tableView(app);
    show.forEach((update) => update());
    if (shownVerdicts !== app.verdicts || !app.verdicts) showTable();
    shownVerdicts = app.verdicts;
  };
  node.addEventListener("toggle", fill);
  return fill;
}

// The model's age and the way back to the user's own steps.
function ageView(app) {
  const node = document.getElementById("age");
  return () => {
    const { step } = app.data.snapshots[app.snapshot];
    const age = step ? `trained for ${step.toLocaleString("en-US")} steps` : "untrained";
    const lessons = (n) => `${n} lesson${n > 1 ? "s" : ""} of yours`;
    node.replaceChildren(
      app.stepped ? `The model: ${age}, and ${lessons(app.stepped)}` : `The model: ${age}`,
      app.branch
        ? el(
            "button",
            { type: "button", id: "branch", onclick: () => app.returnToBranch() },
            `Back to ${lessons(app.branch.stepped)}`,
          )
        : "",
    );
  };
}

// Everything on the page that follows the app.
async function build(app) {
  const stage = new Stage(document.getElementById("stage"), { words: app.words });
  const transport = new Transport(document.getElementById("transport"), ({ scene, t }) => {
    const { before, after } = app.lesson ?? { before: app.moment, after: scene === "again" ? app.after : null };
    const canCompare = scene === "again" && Number.isFinite(after.loss);
    stage.show(canCompare ? after : before, { scene, t, before: canCompare ? before : null });
  });
  const ask = (text) => {
    app.setPrompt(text);
    transport.play(0, transport.endOf(indexOfScene("surprise")));
  };
  const teach = (times) => {
    const result = times === null ? app.untilRight() : app.teach(times);
    if (result.problem) return showTeach(result.problem);
    if (times === 1) transport.play(transport.endOf(indexOfScene("surprise")));
    else transport.play(transport.endOf(indexOfScene("update")));
  };
  const chips = await chipsOf(app);
  const pick = async ({ text, snapshot }) => {
    if (app.snapshot !== snapshot || app.stepped) await app.load(snapshot);
    ask(upToTheMistake(app, text));
  };
  const showTeach = teachView(app, teach);
  const views = [
    answerView(app),
    askView(app, ask),
    drawChips(app, chips, pick),
    showTeach,
    ageView(app),
    insideView(app),
  ];
  app.onchange = (what) => {
    views.forEach((update) => update());
    if (what !== "lesson" || !app.lesson) transport.seek(transport.seconds);
  };
  return { stage, transport, chips, pick };
}

async function open() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const live = addTabs(data, new Engine(document.querySelector("script[type=module]").textContent));
  tellHeight();
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  if (!data.snapshots) {
    document.getElementById("made").textContent = data.made;
    globalThis.jaxcalc = { live };
    return;
  }
  document.getElementById("sentence").textContent = sentenceOf(data.leaves);
  document.getElementById("about").textContent = data.about;
  document.getElementById("made").textContent = `${data.about}. ${data.made}`;
  const app = new App(data);
  await app.start();
  const { stage, transport, chips, pick } = await build(app);
  await pick(chips[0]);
  // For the console: jaxcalc.app.params is a plain tree of arrays, as in Python.
  globalThis.jaxcalc = {
    ...{ app, live, stage, transport, momentOf, trace, walk, collect, gradient, loss, sgd, adam, along, blame },
    ...{ finiteDifference, namedLeaves, treeMap, credit: (...args) => finish(credit(...args)) },
  };
}

if (globalThis.document) await open();
else serve();
