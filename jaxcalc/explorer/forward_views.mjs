// The parts of the page about the forward pass: tokens, stages, the next word and the surprise at it.

import { bars, chart, heatTable } from "./charts.mjs";
import { el, helpButton, part, svg } from "./dom.mjs";
import { lastRow, output, softmax } from "./model.mjs";
import { largest, percent, significant } from "./numbers.mjs";
import { rowNorms } from "./trees.mjs";

// Text → tokens.
/** @type {View} */
export function tokensView(app) {
  const body = part(
    "tokens",
    "Text → tokens",
    "The text is cut into words of a fixed vocabulary, and each word has a number. Padding on the left keeps “equals” at the same position in every question.",
    "A token is one word of the model's vocabulary. “divided by” is a single token. The small numbers are the token's position and its id, which is its row in the embedding table.\nThe tokenizer has no weights, so it learns nothing and gets no blame.",
  );
  return () => {
    /** @type {(id: number, position: number) => HTMLElement} */
    const chip = (id, position) =>
      el(
        "li",
        { class: app.words[id] === "<pad>" ? "padding" : null },
        app.words[id],
        el("small", {}, `position ${position} · id ${id}`),
      );
    body.replaceChildren(
      el(
        "ul",
        { class: "chips", "aria-label": "Tokens" },
        app.tokens.map(chip),
        el("li", { class: "target" }, "?", el("small", {}, "the next word")),
      ),
    );
  };
}

// Embeddings, and the length of the stream after each stage.
/** @type {View} */
export function stagesView(app) {
  const body = part(
    "stages",
    "Tokens → embeddings → stages",
    "Each token becomes a row of numbers: the embedding of the word plus the embedding of its position. These rows are the stream. Every stage reads the stream and adds to it. Attention carries information from one position to another; the feed-forward layers (mlp) work on each position by itself.",
    "Each number is the length ‖x‖ of the stream x at one position after a stage. It says how large the stream is there, not what it means.",
  );
  return () => {
    const { embed, blocks } = app.activations;
    /** @type {[string, ...number[]][]} */
    const rows = [["embed", ...rowNorms(embed.residual)]];
    blocks.forEach((block, i) => {
      rows.push(
        [`block ${i} attention`, ...rowNorms(block.attention.residual)],
        [`block ${i} mlp`, ...rowNorms(block.mlp.residual)],
      );
    });
    body.replaceChildren(
      heatTable(
        "Length of the stream by stage and position",
        app.tokens.map((id) => app.words[id]),
        rows,
        (stage, position, cell) => app.explain({ kind: "node", stage, position, show: "length" }, cell),
      ),
    );
  };
}

// Output: probabilities of the next word, and what they would have been after each stage.
/** @type {View} */
export function outputView(app) {
  const body = part(
    "output",
    "The next word",
    "The output stage gives every word of the vocabulary a probability of coming next. The table shows what the model would say if the output stage came directly after each stage.",
    "The output stage normalises the stream at the last position and multiplies it by the unembedding matrix. This gives each word a score, and softmax turns the scores into probabilities. The logit lens applies the output stage to the stream after an earlier stage. It shows where on the way the answer appears.",
  );
  const lensHelp = helpButton(
    "Logit lens",
    "Each row applies the output stage to the stream after one stage. It shows the likeliest word there, the probability of that word, and the probability of the right word.",
  );
  return () => {
    const p = app.probabilities;
    /** @type {[string, number, string][]} */
    const rows = largest(p).map((id) => [app.words[id], p[id], percent(p[id])]);
    const lens = app.streams().map(([name, stream]) => {
      const scores = lastRow(output(app.params.output, stream).logits);
      const q = softmax(scores);
      const [best] = largest(q, 1);
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, name),
        el("td", {}, app.words[best]),
        el("td", { class: "number" }, percent(q[best])),
        el("td", { class: "number" }, percent(q[app.target])),
      );
    });
    body.replaceChildren(
      el(
        "div",
        { class: "columns" },
        el("div", { id: "predictions" }, bars("Probabilities of the next word", rows)),
        el(
          "table",
          { "aria-label": "Logit lens" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ["after", "likeliest word", "p", `p(${app.words[app.target]})`].map((name, i) =>
                el("th", { scope: "col", class: i > 1 ? "number" : null }, name, i === 0 ? lensHelp : null),
              ),
            ),
          ),
          el("tbody", {}, lens),
        ),
      ),
    );
  };
}

// Loss: the surprise at the right word.
/** @type {View} */
export function lossView(app) {
  const body = part(
    "loss",
    "Loss: the surprise",
    "How surprised is the model by the right word? The loss is −ln p, where p is the probability that it gave this word: 0 if it was certain, large if it was sure of another word.",
    "The loss is −ln p in nats, or −log₂ p in bits. A uniform guess has p = 1 / (number of words). You may declare any word the right one and see how the model would learn it.",
  );
  const picker = el(
    "select",
    { id: "target", onchange: () => app.setTarget(Number(picker.value)) },
    app.words.map((word, id) => el("option", { value: id }, word)),
  );
  const readout = el("p", { class: "readout", id: "surprise", "aria-live": "polite" });
  const plot = el("div");
  body.append(
    el(
      "div",
      { class: "columns" },
      el("div", {}, el("p", {}, el("label", { for: "target" }, "The right word: "), picker), readout),
      plot,
    ),
  );
  return () => {
    picker.value = app.target;
    const p = app.probabilities[app.target],
      nats = app.loss;
    const uniform = Math.log(app.words.length);
    readout.replaceChildren(
      `−ln p(${app.words[app.target]}) = −ln ${significant(p, p > 0.999 ? 9 : 4)} = `,
      el("strong", {}, `${significant(nats)} nats`),
      ` (${significant(nats / Math.LN2, 3)} bits). A uniform guess among all ${app.words.length} words has ${uniform.toFixed(2)} nats.`,
    );
    /** @type {[number, number][]} */
    const curve = Array.from({ length: 120 }, (_, i) => [
      0.002 + (0.998 * i) / 119,
      -Math.log(0.002 + (0.998 * i) / 119),
    ]);
    plot.replaceChildren(
      chart(
        "Surprise by probability",
        {
          from: 0,
          to: 1,
          ticks: [
            [0, "p = 0"],
            [0.5, "50 %"],
            [1, "1"],
          ],
        },
        {
          from: 0,
          to: 6.2,
          ticks: [
            [0, "0"],
            [2, "2"],
            [4, "4"],
            [6, "6 nats"],
          ],
        },
        [{ class: "curve", points: curve }],
        { height: 130, marks: (atX, atY) => svg("circle", { class: "dot", cx: atX(p), cy: atY(nats), r: 5 }) },
      ),
    );
  };
}
