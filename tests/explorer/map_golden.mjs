// The Node side of test_map.py: `node map_golden.mjs FILE` reads models and points from a JSON file and prints as JSON
// what the map of embeddings makes of them.

import { readFileSync } from "node:fs";
import * as map from "../../jaxcalc/explorer/embedding_map.mjs";

const { task, models, matrices, pairs, labels } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const words = map.wordsOnMap(task);
const numbers = words.filter(({ value }) => value !== null);
const [width] = models.map(([row]) => row.length);
const params = models.map((rows) => ({
  embed: { token: { shape: [rows.length, width], data: Float64Array.from(rows.flat()) } },
}));

const axes = params.length
  ? map.principalAxes(map.embeddingsOf(params.at(-1), numbers), numbers.map(({ value }) => value))
  : null;
const found = params.map((each) => {
  const places = map.placesOn(axes, map.embeddingsOf(each, words));
  return { places, shares: map.variancesOn(axes, map.embeddingsOf(each, numbers)), order: map.orderOnMap(words, places) };
});
const eigen = matrices.map((rows) => {
  const { values, vectors } = map.eigenvectors(rows.map((row) => Float64Array.from(row)));
  return { values, vectors: vectors.map((vector) => Array.from(vector)) };
});
const correlations = pairs.map(([a, b]) => [map.pearson(a, b), map.spearman(a, b)]);
const beside = labels.map(([points, widths]) => map.labelsBeside(points, widths, 13));
const compared = [[0.5, 0.45], [0.5, 0.3], [0.3, 0.5]].map((pair) => map.comparedOrder(...pair));
console.log(JSON.stringify({ words, rows: map.rowsOnMap(words), found, eigen, correlations, beside, compared }));
