// @ts-nocheck
// What the page shows, in its address: a link that was copied shows the same again.

import { SCENES } from "./scenes.mjs";
import { STOPS } from "./tour.mjs";
import { indexOfScene, sceneAt } from "./transport.mjs";

// "#question=two+plus+three&step=290&target=five&optimizer=sgd&scene=backward"; a rate only where one was chosen, and the stop
// of the tour only during the tour.
export function addressOf(app, seconds) {
  const { step } = app.data.snapshots[app.snapshot];
  const fields = { question: app.prompt, step, target: app.words[app.target], optimizer: app.kind };
  if (app.chosenRate !== null) fields.rate = app.chosenRate;
  const shown = { ...fields, scene: sceneAt(seconds).scene };
  return `#${new URLSearchParams(app.tour ? { ...shown, tour: app.tour } : shown)}`;
}

// What an address asks for: {question, snapshot, target, optimizer, rate, scene, tour}. Throws an Error that names what is
// not on this page.
export function readAddress(app, hash) {
  const fields = new URLSearchParams(hash.slice(1));
  const given = (name) => fields.get(name);
  const refuse = (name, why) => {
    throw new Error(`The link's ${name} “${given(name)}” ${why}, so the page opens as it does without the link.`);
  };
  try {
    app.read(given("question") ?? "");
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
  const tour = given("tour") === null ? null : Number(given("tour"));
  if (tour !== null && !STOPS[tour - 1]) refuse("tour", `is not a stop from 1 to ${STOPS.length}`);
  return {
    ...{ question: given("question"), snapshot, target, optimizer: given("optimizer"), rate },
    scene: indexOfScene(given("scene")),
    tour,
  };
}

// Shows what an address asks for.
export async function follow(app, transport, { question, snapshot, target, optimizer, rate, scene }) {
  await app.load(snapshot);
  app.setPrompt(question);
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
