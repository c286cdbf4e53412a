// The page: the opening, the stage with its transport, and all other numbers inside.

import { follow, keepAddress, readAddress } from "./address.mjs";
import { App } from "./app.mjs";
import { mostBlamed } from "./arithmetic.mjs";
import { arithmeticView } from "./arithmetic_view.mjs";
import { attentionView } from "./attention_view.mjs";
import { collect, walk } from "./backprop.mjs";
import { backwardView } from "./blame_view.mjs";
import { begin } from "./begin.mjs";
import { brokenView } from "./broken.mjs";
import { credit, finish } from "./credit.mjs";
import { el } from "./dom.mjs";
import { mapView } from "./embedding_view.mjs";
import { lossView, outputView, stagesView, tokensView } from "./forward_views.mjs";
import { changesView } from "./interventions_view.mjs";
import { adam, along, blame, finiteDifference, gradient, loss, sgd } from "./learning.mjs";
import { trace } from "./model.mjs";
import { momentOf } from "./moment.mjs";
import { answerView, askView, chipsOf, drawChips, sentenceOf, teachView, upToTheMistake } from "./opening.mjs";
import { addSaveButtons } from "./picture.mjs";
import { replayView, tableView } from "./run_views.mjs";
import { Stage } from "./stage.mjs";
import { SCENES } from "./scenes.mjs";
import { stepView } from "./step_view.mjs";
import { indexOfScene, Transport } from "./transport.mjs";
import { InputError } from "./tokenizer.mjs";
import { namedLeaves, treeMap } from "./trees.mjs";
import { Tour } from "./tour_view.mjs";
import { weightView } from "./weight_view.mjs";
import { serve } from "./worker.mjs";

const ADDRESS_AFTER = 300; // ms of rest, after which the address is written

// The parts inside: each makes its part once and returns a function that fills it anew.
/** @type {View[]} */
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
  mapView,
];

// Where the numbers behind a thing on the stage are.
const PART_OF = { bar: "output", loss: "loss", arc: "attention", node: "weight", weight: "weight", cell: "backward" };

// Opens the part with all numbers around what was picked; for a box of the network, its weight with the most blame.
/** @type {(app: App, what: Asked, fill: () => void) => void} */
function openInside(app, what, fill) {
  if (what.kind === "node" && what.stage)
    app.weight = mostBlamed(app.moment, what.stage.replace(/^block (\d+) /, "blocks.$1."));
  if (what.weight) app.weight = { ...what.weight };
  document.getElementById("inside").open = true;
  fill();
  const node = document.getElementById(PART_OF[what.kind]);
  node.scrollIntoView();
  node.setAttribute("tabindex", -1);
  node.focus({ preventScroll: true });
}

// Fills the parts inside when they are open, and only then.
/** @type {View} */
function insideView(app) {
  const node = document.getElementById("inside");
  /** @type {(() => void)[] | undefined} */
  let show;
  /** @type {(() => void) | undefined} */
  let showTable;
  /** @type {Uint8Array | null} */
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
/** @type {View} */
function ageView(app) {
  const node = document.getElementById("age");
  return () => {
    const { step } = app.data.snapshots[app.snapshot];
    const age = step ? `trained for ${step.toLocaleString("en-US")} steps` : "untrained";
    const lessons = (/** @type {number} */ n) => `${n} lesson${n > 1 ? "s" : ""} of yours`;
    const hadFocus = node.contains(document.activeElement);
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
    if (hadFocus) (document.getElementById("branch") ?? node).focus(); // the text says where it has gone back to
  };
}

// Everything on the page that follows the app.
/** @param {App} app */
async function build(app) {
  const inside = insideView(app);
  const changes = changesView(app);
  const stage = new Stage(document.getElementById("stage"), {
    words: app.words,
    onpick: (what) => {
      changes.pick(what);
      if (what.kind !== "token") arithmetic.open(what);
    },
  });
  const about = { words: app.words, betas: app.data.adam_betas };
  const arithmetic = arithmeticView(stage, about, (what) => openInside(app, what, inside));
  app.explain = arithmetic.open;
  const transport = new Transport(document.getElementById("transport"), ({ scene, t }) => {
    const { before, after } = app.lesson ?? { before: app.moment, after: scene === "again" ? app.after : null };
    const compared = scene === "again" && after && Number.isFinite(after.loss) ? after : null;
    stage.show(compared ?? before, { scene, t, before: compared && before });
    arithmetic.follow(compared ?? before, scene);
    keepSoon();
  });
  let timer = 0;
  const keepSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(() => keepAddress(app, transport), ADDRESS_AFTER);
  };
  const nameOfScene = () => `${app.prompt} ${SCENES[transport.index].name}`;
  addSaveButtons(document.getElementById("theatre"), stage, nameOfScene);
  const endOf = (/** @type {SceneName} */ name) => transport.endOf(indexOfScene(name));
  const ask = (/** @type {string} */ text) => {
    app.setPrompt(text);
    transport.play(0, endOf("surprise"));
  };
  const teach = async (/** @type {number | null} */ times) => {
    try {
      const lesson = times === null ? await app.untilRight() : await app.teach(times);
      if (lesson) transport.play(endOf(lesson.taken === 1 ? "surprise" : "update"));
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      showTeach(error.message);
    }
  };
  const chips = await chipsOf(app);
  const pick = async (/** @type {Chip} */ { text, snapshot }) => {
    if (app.snapshot !== snapshot || app.stepped) await app.load(snapshot);
    ask(upToTheMistake(app, text));
  };
  const showTeach = teachView(app, teach);
  const tour = new Tour({ app, transport, onmove: keepSoon });
  const views = [
    ...[answerView(app), askView(app, ask), drawChips(app, chips, pick), showTeach, ageView(app)],
    ...[brokenView(app, ask), changes.update, () => tour.update()],
  ];
  const showAgain = () => {
    if (!transport.playing && !app.lesson) transport.seek(transport.seconds);
  };
  app.onchange = (what) => {
    if (what === "credit") return inside();
    views.forEach((update) => update());
    if (what === "lesson")
      setTimeout(inside); // a task of its own, as it takes its time
    else inside();
    if (!app.lesson) {
      transport.pause();
      setTimeout(showAgain); // likewise
    }
    keepSoon();
  };
  return { stage, transport, tour, chips, pick };
}

async function open() {
  const { data, engine, live } = begin();
  document.getElementById("sentence").textContent = sentenceOf(data.leaves);
  document.getElementById("about").textContent = data.about;
  document.getElementById("made").textContent = `${data.about}. ${data.made}`;
  const app = new App(data, engine);
  await app.start();
  const { stage, transport, tour, chips, pick } = await build(app);
  let asked = null;
  let problem = "";
  try {
    asked = location.hash.length > 1 ? readAddress(app, location.hash) : null;
  } catch (error) {
    problem = error instanceof Error ? error.message : String(error);
  }
  await (asked ? follow(app, transport, asked) : pick(chips[0]));
  if (asked?.tour) await tour.go(asked.tour, false);
  if (problem) document.getElementById("problem").textContent = problem;
  // For the console: jaxcalc.app.params is a plain tree of arrays, as in Python.
  globalThis.jaxcalc = {
    ...{ app, live, stage, transport, tour, momentOf, trace, walk, collect, gradient, loss, sgd, adam, along, blame },
    ...{
      finiteDifference,
      namedLeaves,
      treeMap,
      credit: (/** @type {Parameters<typeof credit>} */ ...args) => finish(credit(...args)),
    },
  };
}

if (globalThis.document) await open();
else serve();
