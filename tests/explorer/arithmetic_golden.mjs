// The Node side of test_arithmetic.py: `node arithmetic_golden.mjs FILE` prints the arithmetic of each number asked for.

import { readFileSync } from "node:fs";
import { arithmeticOf } from "../../jaxcalc/explorer/arithmetic.mjs";
import { momentOf } from "../../jaxcalc/explorer/moment.mjs";
import { optimizerOf } from "../../jaxcalc/explorer/teaching.mjs";
import { array, treeMap } from "../../jaxcalc/explorer/trees.mjs";

const unpack = ({ shape, data }) => array(shape, new Float64Array(Uint8Array.from(Buffer.from(data, "base64")).buffer));
const { params: packed, lessons, words, betas } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const params = treeMap(unpack, packed);
const answers = lessons.map(({ tokens, target, kind, rate, before, asked }) => {
  const optimizer = optimizerOf(kind, rate, betas);
  let state;
  for (let step = 0; step < before; step++) state = momentOf({ params, tokens, target, optimizer, state }).next;
  const moment = { ...momentOf({ params, tokens, target, optimizer, state }), rate };
  return asked.map((each) => arithmeticOf(moment, each, { words, betas }));
});
process.stdout.write(JSON.stringify(answers));
