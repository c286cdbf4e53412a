// What the page shows, in its address: a link that was copied shows the same again.

import { editFields, readEdits } from "./interventions.mjs";
import { SCENES } from "./scenes.mjs";
import { STOPS } from "./tour.mjs";
import { sceneAt } from "./transport.mjs";

// "#question=two+plus+three&step=290&target=five&optimizer=sgd&scene=backward"; a rate only where one was chosen, and
// interventions and the stop of the tour only where there are some.
/** @type {(app: App, seconds: number) => string} */
function addressOf(app, seconds) {
  const { step } = app.data.snapshots[app.snapshot];
  /** @type {Record<string, string>} */
  const fields = { question: app.prompt, step: String(step), target: app.words[app.target], optimizer: app.kind };
  if (app.chosenRate !== null) fields.rate = String(app.chosenRate);
  Object.assign(fields, editFields(app.edits, app.words));
  fields.scene = sceneAt(seconds).scene;
  if (app.tour) fields.tour = String(app.tour);
  return `#${new URLSearchParams(fields)}`;
}

// What an address asks for: {question, snapshot, edits, target, optimizer, rate, scene, tour}. Throws an Error that names what is
// not on this page.
/** @type {(app: App, hash: string) => Address} */
export function readAddress(app, hash) {
  const fields = new URLSearchParams(hash.slice(1));
  const given = (/** @type {string} */ name) => fields.get(name);
  /** @type {(name: string, why: string) => never} */
  const refuse = (name, why) => {
    throw new Error(`The link's ${name} “${given(name)}” ${why}, so the page opens as it does without the link.`);
  };
  const question = given("question") ?? "";
  /** @type {number[]} */
  let tokens = [];
  try {
    tokens = app.read(question).tokens;
  } catch {
    refuse("question", "cannot be read");
  }
  const snapshot = app.data.snapshots.findIndex(({ step }) => String(step) === given("step"));
  if (snapshot < 0) refuse("step", "is not a snapshot of this page");
  const target = app.words.indexOf(given("target") ?? "");
  if (target < 0) refuse("target", "is not a word of this model");
  const optimizer = given("optimizer");
  if (optimizer !== "sgd" && optimizer !== "adam") return refuse("optimizer", "is neither sgd nor adam");
  const rate = given("rate") === null ? null : Number(given("rate"));
  if (rate !== null && !(rate > 0 && Number.isFinite(rate))) refuse("rate", "is not a number above 0");
  const scene = SCENES.findIndex(({ name }) => name === given("scene"));
  if (scene < 0) refuse("scene", "is none of the five");
  const heads = app.data.leaves.filter(([name]) => name.endsWith(".query")).map(([, shape]) => shape[1]);
  const edits = readEdits(given, refuse, { heads, length: tokens.length, words: app.words });
  const tour = given("tour") === null ? null : Number(given("tour"));
  if (tour !== null && !STOPS[tour - 1]) refuse("tour", `is not a stop from 1 to ${STOPS.length}`);
  return { question, snapshot, edits, target, optimizer, rate, scene, tour };
}

// Shows what an address asks for.
/** @type {(app: App, transport: import("./transport.mjs").Transport, address: Address) => Promise<void>} */
export async function follow(app, transport, { question, snapshot, edits, target, optimizer, rate, scene }) {
  await app.load(snapshot);
  app.setPrompt(question);
  app.setEdits(edits);
  app.setTarget(target);
  app.setOptimizer(optimizer, rate);
  transport.showEnd(scene);
}

// Writes the address after each change, but not within an animation. In a notebook's frame there is no address.
/** @type {(app: App, transport: import("./transport.mjs").Transport) => void} */
export function keepAddress(app, transport) {
  if (location.protocol === "about:") return;
  const address = addressOf(app, transport.seconds);
  if (!transport.playing && location.hash !== address) history.replaceState(null, "", address);
}
