// The parts of the page about the forward pass: tokens, stages, attention, the next word and the surprise at it.

import { bars, chart, el, heatTable, likeliest, part, percent, significant, svg, what } from "./dom.mjs";
import { lastRow, output, softmax } from "./model.mjs";
import { END } from "./tokenizer.mjs";
import { rowNorms } from "./trees.mjs";

const WAS = {
  training: "this problem was in training",
  "held out": "this problem was held out, so training never saw it",
  outside: "this problem is outside what the model was trained on",
};

// The whole answer, beside the question.
export function answerView(app) {
  const line = document.getElementById("answer");
  const help = what(
    "The answer",
    "What the model says word by word, each time its likeliest next word, until it says <end>. Its probability is the product of theirs.",
  );
  return () => {
    const { words, p } = app.answer();
    const { tokens, answer } = app.parsed;
    const rightWords = answer === null ? null : [...app.tokenizer.spell(answer), END];
    const isRight = words.join() === rightWords?.join();
    const said = words.filter((word) => word !== END).join(" ") + (words.at(-1) === END ? "" : " …");
    const verdict = isRight
      ? "right"
      : rightWords
        ? `wrong, it is ${rightWords.slice(0, -1).join(" ")}`
        : "no answer that it can say is right";
    line.replaceChildren(
      `${tokens.join(" ")} → `,
      el("strong", { class: isRight ? "good" : "bad" }, said),
      ` ${percent(p)}`,
      help,
      ` ${[verdict, WAS[app.membershipOf(app.parsed)]].filter(Boolean).join("; ")}`,
    );
  };
}

// Text → tokens.
export function tokensView(app) {
  const body = part(
    "tokens",
    "Text → tokens",
    "The text becomes words of a closed vocabulary, each with a number. The question is padded on the left, so that “equals” always stands at the same position.",
    "A token is what the model reads: one word of its vocabulary. “divided by” is one token. The small numbers are the token's position and its id, its row in the table of embeddings.\nThe tokenizer has no weights, so nothing in it is learned, and no blame reaches it.",
  );
  return () => {
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

// Embeddings, and how strong the stream is after each stage.
export function stagesView(app) {
  const body = part(
    "stages",
    "Tokens → embeddings → stages",
    "Each token becomes a row of numbers, plus one for its position. Every stage reads this stream and adds to it; attention carries from one position to others, the feed-forward layers (mlp) work on each by itself.",
    "Each number is the length ‖x‖ of the stream at one position as it leaves a stage. It says how much has been written there, not what.",
  );
  return () => {
    const { embed, blocks } = app.activations;
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
      ),
    );
  };
}

// Attention: one matrix a head.
export function attentionView(app) {
  const body = part(
    "attention",
    "Attention",
    "Each position asks, and looks at those before it that answer best. A row is the position that asks, a column the one that is looked at; a row adds up to 100 %. Point at a cell to read it.",
    "pattern = softmax(query · key / √K): the share of its attention that one position gives to another. The upper right is empty because a model that predicts the next word must not look ahead.",
  );
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const heads = el("div");
  body.append(heads, readout);
  return () => {
    const names = app.tokens.map((id) => app.words[id]);
    const asks = names.length - 1;
    const say = (block, head, i, j, share) =>
      (readout.textContent = `block ${block}, head ${head}: “${names[i]}” (position ${i}) gives ${percent(share)} of its attention to “${names[j]}” (position ${j})`);
    readout.textContent = `“${names[asks]}”, whose prediction is asked for, is the last row of each.`;
    heads.replaceChildren(
      ...app.activations.blocks.map(({ attention: { pattern } }, block) =>
        el(
          "div",
          { class: "heads" },
          el(
            "div",
            { class: "names", "aria-hidden": "true" },
            names.map((name) => el("span", {}, name)),
          ),
          Array.from({ length: pattern.shape[0] }, (_, head) => {
            const t = names.length;
            const share = (i, j) => pattern.data[(head * t + i) * t + j];
            const best = Array.from({ length: t }, (_, j) => j).sort((a, b) => share(asks, b) - share(asks, a))[0];
            const cells = names.flatMap((_, i) =>
              names.map((_, j) =>
                j > i
                  ? el("i", { class: "masked" })
                  : el("i", {
                      title: `${names[i]} → ${names[j]}: ${percent(share(i, j))}`,
                      style: { "--share": share(i, j) },
                      onpointerenter: () => say(block, head, i, j, share(i, j)),
                    }),
              ),
            );
            return el(
              "figure",
              {},
              el(
                "div",
                {
                  class: "pattern",
                  role: "img",
                  tabindex: 0,
                  style: { "grid-template-columns": `repeat(${t}, max-content)` },
                  "aria-label": `Block ${block}, head ${head}: ${names[asks]} looks most at ${names[best]}, ${percent(share(asks, best))}`,
                  onfocus: () => say(block, head, asks, best, share(asks, best)),
                },
                cells,
              ),
              el("figcaption", {}, `block ${block} · head ${head}`),
            );
          }),
        ),
      ),
    );
  };
}

// Output: probabilities of the next word, and what they would have been after each stage.
export function outputView(app) {
  const body = part(
    "output",
    "The next word",
    "In the end every word of the vocabulary has a probability of coming next. On the right: what would be said if the output came right after each stage.",
    "The stream at the last position, normalised, times the unembedding gives each word a score; softmax makes probabilities of the scores. Applying the output to an earlier stage is called the logit lens: it shows where on the way the answer appears.",
  );
  const lensHelp = what(
    "Logit lens",
    "Each row applies the output stage to the stream as it leaves a stage: the word that would be likeliest there, its probability, and that of the word that should come.",
  );
  return () => {
    const p = app.probabilities;
    const rows = likeliest(p).map((id) => [app.words[id], p[id], percent(p[id])]);
    const lens = app.streams().map(([name, stream]) => {
      const scores = lastRow(output(app.params.output, stream).logits);
      const q = softmax(scores);
      const best = likeliest(q, 1)[0];
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

// Loss: the surprise at the target word.
export function lossView(app) {
  const body = part(
    "loss",
    "Loss: the surprise",
    "How surprised is the model by the word that should come? The loss is −ln p: nothing where it was certain, large where it was sure of something else.",
    "−ln p of the right word, in nats (in bits: −log₂ p). A guess among all words alike has p = 1 / (number of words). You may make any word the right one, to see how the model would be taught it.",
  );
  const picker = el(
    "select",
    { id: "target", onchange: () => app.setTarget(Number(picker.value)) },
    app.words.map((word, id) => el("option", { value: id }, word)),
  );
  const said = el("p", { class: "readout", id: "surprise" });
  const plot = el("div");
  body.append(
    el(
      "div",
      { class: "columns" },
      el("div", {}, el("p", {}, el("label", { for: "target" }, "The word that should come: "), picker), said),
      plot,
    ),
  );
  return () => {
    picker.value = app.target;
    const p = app.probabilities[app.target],
      nats = app.loss;
    const uniform = Math.log(app.words.length);
    said.replaceChildren(
      `−ln p(${app.words[app.target]}) = −ln ${significant(p, p > 0.999 ? 9 : 4)} = `,
      el("strong", {}, `${significant(nats)} nats`),
      ` (${significant(nats / Math.LN2, 3)} bits). A guess among all ${app.words.length} words alike: ${uniform.toFixed(2)} nats.`,
    );
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
