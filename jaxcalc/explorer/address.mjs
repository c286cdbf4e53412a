// @ts-nocheck
// What the page shows, in its address: a link that was copied shows the same again.

import { editFields, readEdits } from "./interventions.mjs";
import { SCENES } from "./scenes.mjs";
import { indexOfScene, sceneAt } from "./transport.mjs";

// "#question=two+plus+three&step=290&target=five&optimizer=sgd&scene=backward"; a rate only where one was chosen, and
// interventions only where there are some.
export function addressOf(app, seconds) {
  const { step } = app.data.snapshots[app.snapshot];
  const fields = { question: app.prompt, step, target: app.words[app.target], optimizer: app.kind };
  if (app.chosenRate !== null) fields.rate = app.chosenRate;
  Object.assign(fields, editFields(app.edits, app.words));
  return `#${new URLSearchParams({ ...fields, scene: sceneAt(seconds).scene })}`;
}

// What an address asks for: {question, snapshot, edits, target, optimizer, rate, scene}. Throws an Error that names what is
// not on this page.
export function readAddress(app, hash) {
  const fields = new URLSearchParams(hash.slice(1));
  const given = (name) => fields.get(name);
  const refuse = (name, why) => {
    throw new Error(`The link's ${name} “${given(name)}” ${why}, so the page opens as it does without the link.`);
  };
  let tokens = [];
  try {
    tokens = app.read(given("question") ?? "").tokens;
  } catch {
    refuse("question", "cannot be read");
  }
  const snapshot = app.data.snapshots.findIndex(({ step }) => String(step) === given("step"));
  if (snapshot < 0) refuse("step", "is not a snapshot of this page");
  const target = app.words.indexOf(given("target"));
  if (target < 0) refuse("target", "is not a word of this model");
  if (!["sgd", "adam"].includes(given("optimizer"))) refuse("optimizer", "is neither sgd nor adam");
  const rate = given("rate") === null ? null : Number(given("rate"));
  if (rate !== null && !(rate > 0 && Number.isFinite(rate))) refuse("rate", "is not a number above 0");
  if (!SCENES.some(({ name }) => name === given("scene"))) refuse("scene", "is none of the five");
  const heads = app.data.leaves.filter(([name]) => name.endsWith(".query")).map(([, shape]) => shape[1]);
  const edits = readEdits(given, refuse, { heads, length: tokens.length, words: app.words });
  return {
    ...{ question: given("question"), snapshot, edits, target, optimizer: given("optimizer"), rate },
    scene: indexOfScene(given("scene")),
  };
}

// Shows what an address asks for.
export async function follow(app, transport, { question, snapshot, edits, target, optimizer, rate, scene }) {
  await app.load(snapshot);
  app.setPrompt(question);
  app.setEdits(edits);
  app.setTarget(target);
  app.setOptimizer(optimizer, rate);
  transport.showEnd(scene);
}

// Writes the address after each change, but not within an animation. In a notebook's frame there is no address.
export function keepAddress(app, transport) {
  if (location.protocol === "about:") return;
  const address = addressOf(app, transport.seconds);
  if (!transport.playing && location.hash !== address) history.replaceState(null, "", address);
}
