// The Node side of test_interventions.py: `node interventions_golden.mjs FILE` reads lessons with interventions from a
// JSON file and prints as JSON what the explorer's engine makes of them.

import { readFileSync } from "node:fs";
import { collect, walk } from "../../jaxcalc/explorer/backprop.mjs";
import { finish, credit } from "../../jaxcalc/explorer/credit.mjs";
import { factsOf } from "../../jaxcalc/explorer/facts.mjs";
import { describe, editFields, holdShare, letGo, NO_EDITS, readEdits, swapToken, toggleHead } from "../../jaxcalc/explorer/interventions.mjs";
import { along, finiteDifference, loss, sgd } from "../../jaxcalc/explorer/learning.mjs";
import { momentOf } from "../../jaxcalc/explorer/moment.mjs";
import { TASKS } from "../../jaxcalc/explorer/worker.mjs";
import "../../jaxcalc/explorer/teaching.mjs";
import { array, inner, namedLeaves, treeMap } from "../../jaxcalc/explorer/trees.mjs";

const unpack = ({ shape, data }) => array(shape, new Float64Array(Uint8Array.from(Buffer.from(data, "base64")).buffer));
const plain = ({ shape, data }) => ({ shape, data: Array.from(data) });

const TOPICS = {
  async lessons({ params: packed, lessons }) {
    const params = treeMap(unpack, packed);
    const answers = [];
    for (const { tokens, target, edits } of lessons) {
      const moment = momentOf({ params, tokens, target, optimizer: sgd(0.05), edits });
      const grads = collect(params, walk(params, tokens, target, edits));
      const facts = factsOf(moment);
      const input = { params, state: null, tokens, target, edits, kind: "sgd", rate: 0.05, betas: [0.9, 0.999] };
      const { value: taught } = await TASKS.teach(input).next();
      const credited = finish(credit(params, moment.update, tokens, target, edits));
      answers.push({
        logits: plain(moment.logits),
        loss: moment.loss,
        gradient: Object.fromEntries(Object.entries(namedLeaves(grads)).map(([name, leaf]) => [name, plain(leaf)])),
        patterns: moment.activations.blocks.map(({ attention: { pattern } }) => plain(pattern)),
        directions: directions(params, tokens, target, edits, grads),
        weights: Object.entries(namedLeaves(grads)).map(([name, { data }]) => {
          const index = data.reduce((best, value, i) => (Math.abs(value) > Math.abs(data[best]) ? i : best), 0);
          return [data[index], finiteDifference(params, name, index, tokens, target, edits)];
        }),
        taught: { loss: taught.after.loss, own: loss(along(params, moment.update), tokens, target, edits) },
        credit: { drop: credited.drop, actual: moment.loss - loss(along(params, moment.update), tokens, target, edits) },
        arcs: facts.arcs,
        cells: facts.cells.flat().reduce((a, b) => a + b),
        messageAtBottom: Array.from(moment.walked.at(-1).messageIn.data),
      });
    }
    return answers;
  },

  // How a list of interventions grows.
  edits({ words, own }) {
    const hold = (from, share) => ({ block: 0, head: 1, to: 2, from, share });
    const one = holdShare(NO_EDITS, hold(0, 0.3));
    const two = holdShare(one, hold(1, 0.5));
    const off = toggleHead(toggleHead(NO_EDITS, 1, 0), 0, 2);
    const all = { ...two, heads: off.heads, tokens: swapToken(NO_EDITS, 1, 2, own[1]).tokens };
    const refuse = (name, why) => {
      throw new Error(`${name} ${why}`);
    };
    const read = (fields) => readEdits((name) => fields[name] ?? null, refuse, { heads: [4, 4], length: 3, words });
    const refusal = (fields) => {
      try {
        return read(fields);
      } catch (error) {
        return error.message;
      }
    };
    return {
      changed: holdShare(two, hold(0, 0.4)).shares,
      tooMuch: holdShare(two, hold(1, 0.8)).shares,
      third: holdShare(two, hold(2, 0.1)).shares,
      let_go: letGo(two, hold(0, 0)).shares,
      off: off.heads,
      on: toggleHead(off, 1, 0).heads,
      back: swapToken(all, 1, own[1], own[1]).tokens,
      described: describe(all, own, words),
      fields: editFields(all, words),
      readAgain: JSON.stringify(read(editFields(all, words))) === JSON.stringify(all),
      none: editFields(NO_EDITS, words),
      refused: [
        { off: "2.0" }, { off: "0.4" }, { off: "zero" }, { held: "0.1.0.0.0.5" }, { held: "0.1.1.2.0.5" }, { held: "0.1.3.0.0.5" },
        { held: "0.1.2.0.1.5" }, { held: "0.1.2.0.0.6,0.1.2.1.0.6" }, { swapped: "3.two" }, { swapped: "1.seventeen" },
      ].map(refusal),
    };
  },
};

// The slope of the loss along a few random directions: by the gradient, and measured.
function directions(params, tokens, target, edits, grads) {
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647 - 0.5;
  return Array.from({ length: 4 }, () => {
    const direction = treeMap(({ shape, data }) => array(shape, data.map(random)), params);
    const at = (t) => loss(along(params, direction, t), tokens, target, edits);
    const h = 1e-6;
    return [inner(grads, direction), (at(h) - at(-h)) / (2 * h)];
  });
}

const [topic, file] = process.argv.slice(2);
process.stdout.write(JSON.stringify(await TOPICS[topic](JSON.parse(readFileSync(file, "utf8")))));
