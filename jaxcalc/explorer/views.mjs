// The parts of the page, in the order of the story. Each makes its section once and returns a function that fills it.

import { outputError } from "./backprop.mjs";
import { MEMBERSHIP, verdict } from "./data.mjs";
import { bars, cellGrid, chart, el, heatTable, part, percent, signed, significant, svg, what } from "./dom.mjs";
import { finiteDifference } from "./learning.mjs";
import { lastRow, output, softmax } from "./model.mjs";
import { namedLeaves, norm, placeOf, rowNorms } from "./trees.mjs";
import { numberToWords } from "./tokenizer.mjs";

const LIKELIEST = 8;
const OPERATION_CLASS = { plus: "plus", minus: "minus-op", times: "times", "divided by": "divided" };

const likeliest = (p, n = LIKELIEST) =>
  Array.from(p.keys())
    .sort((a, b) => p[b] - p[a])
    .slice(0, n);

// Replay: the slider over the snapshots beside the learning curve.
export function replayView(app) {
  const { snapshots, curve } = app.data;
  const body = part(
    "replay",
    "From untrained to trained",
    "A run keeps snapshots of its weights on the way. Choose one, and everything below is that model: at first it guesses, in the end it calculates.",
    "A step of training looks at some hundreds of problems, measures how surprised the model is by the right answers, and moves every weight a little so that it would have been less surprised.\nThe slider goes through the snapshots that this run kept, from its random start to its end.",
  );
  const slider = el("input", {
    type: "range",
    id: "snapshot",
    min: 0,
    max: snapshots.length - 1,
    step: 1,
    "aria-label": "Snapshot",
    oninput: () => app.setSnapshot(Number(slider.value)),
  });
  const shown = el("output", { for: "snapshot", id: "snapshot-step" });
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶ Play";
  };
  const advance = () => {
    if (app.snapshot === snapshots.length - 1) return stop();
    return app.setSnapshot(app.snapshot + 1);
  };
  const play = el(
    "button",
    {
      type: "button",
      id: "play",
      onclick: () => {
        if (timer) return stop();
        play.textContent = "❚❚ Pause";
        timer = setInterval(advance, 900);
        return app.setSnapshot(app.snapshot === snapshots.length - 1 ? 0 : app.snapshot + 1);
      },
    },
    "▶ Play",
  );
  const charts = el("div", { class: "columns" });
  const trail = el("p", { class: "readout" });
  body.append(el("div", { class: "row" }, play, slider, shown), charts, trail);

  const steps = curve.loss.length;
  const axis = {
    from: 1,
    to: steps + 1,
    log: true,
    ticks: [1, 10, 100, 1000, 10000].filter((n) => n <= steps).map((n) => [n + 1, n.toLocaleString("en-US")]),
  };
  const nearest = (distance) => {
    const all = snapshots.map(({ step }) => distance(step + 1));
    app.setSnapshot(all.indexOf(Math.min(...all)));
  };
  const marks = (step) => (atX, atY) => [
    snapshots.map((s) =>
      svg("line", { class: "tick", x1: atX(s.step + 1), x2: atX(s.step + 1), y1: atY(-1e9) - 3, y2: atY(-1e9) + 3 }),
    ),
    svg("line", { class: "cursor", x1: atX(step + 1), x2: atX(step + 1), y1: atY(-1e9), y2: atY(1e9) }),
  ];
  return () => {
    const { step } = snapshots[app.snapshot];
    slider.value = app.snapshot;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    shown.textContent = `step ${step.toLocaleString("en-US")}`;
    const least = Math.min(...curve.loss),
      most = Math.max(...curve.loss);
    const decades = [10, 1, 0.1, 0.01, 0.001, 1e-4, 1e-5].filter((v) => v > least && v < most);
    charts.replaceChildren(
      ...(steps < 2
        ? []
        : [
            el(
              "figure",
              {},
              el(
                "figcaption",
                {},
                "Surprise on the training problems, nats a word",
                what(
                  "Loss",
                  "Each point is one step of training: the mean of −ln p over the answer words of that step's problems, where p is the probability that the model gave the right word. Both axes are logarithmic.",
                ),
              ),
              chart(
                "Training loss by step",
                axis,
                { from: least, to: most, log: true, ticks: decades.map((v) => [v, String(v)]) },
                [{ class: "curve", points: curve.loss.map((loss, i) => [i + 2, loss]) }],
                { marks: lossMarks(step, marks, least, most), onclick: nearest },
              ),
            ),
            el(
              "figure",
              {},
              el(
                "figcaption",
                {},
                `Whole answers right, on ${curve.watched} problems`,
                what(
                  "Exact match",
                  "The share of problems whose whole answer, decoded word by word with its end, is right. Held-out problems were never in training.",
                ),
              ),
              chart(
                "Exact match by step",
                axis,
                {
                  from: 0,
                  to: 1,
                  ticks: [
                    [0, "0"],
                    [0.5, "50 %"],
                    [1, "100 %"],
                  ],
                },
                Object.keys(OPERATION_CLASS)
                  .filter((name) => curve.checks.some((check) => check.by_operation[name] != null))
                  .map((name) => ({
                    class: `match ${OPERATION_CLASS[name]}`,
                    points: curve.checks.map((check) => [check.step + 1, check.by_operation[name]]),
                  })),
                { marks: matchMarks(step, marks), onclick: nearest },
              ),
              el(
                "p",
                { class: "legend" },
                Object.keys(OPERATION_CLASS)
                  .filter((name) => app.tokenizer.operations.includes(name))
                  .map((name) => el("span", { class: OPERATION_CLASS[name] }, name)),
              ),
            ),
          ]),
    );
    trail.textContent = "";
    if (app.stepped)
      trail.append(
        `You have taken ${app.stepped} step${app.stepped > 1 ? "s" : ""} of your own from here; another snapshot starts anew.`,
      );
  };
}

// The cursor and the snapshots' ticks, which span a chart's whole height whatever its scale.
const lossMarks = (step, marks, least, most) => (atX, atY) =>
  marks(step)(atX, (v) => atY(v < 0 ? least : v > 1e8 ? most : v));
const matchMarks = (step, marks) => (atX, atY) => marks(step)(atX, (v) => atY(Math.min(Math.max(v, 0), 1)));

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
  const heads = el("div", { class: "heads" });
  body.append(heads, readout);
  return () => {
    const names = app.tokens.map((id) => app.words[id]);
    const asks = names.length - 1;
    const say = (block, head, i, j, share) =>
      (readout.textContent = `block ${block}, head ${head}: “${names[i]}” (position ${i}) gives ${percent(share)} of its attention to “${names[j]}” (position ${j})`);
    readout.textContent = `“${names[asks]}”, whose prediction is asked for, is the last row of each.`;
    heads.replaceChildren(
      ...app.activations.blocks.flatMap(({ attention: { pattern } }, block) =>
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
                el("th", { scope: "col", class: i > 1 ? "number" : null }, name),
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
      `−ln p(${app.words[app.target]}) = −ln ${significant(p)} = `,
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

// Backward: the output error, the messages, the gradients, and the blame.
export function backwardView(app) {
  const body = part(
    "backward",
    "The blame going back",
    "The chain rule hands the surprise back. It starts at the scores as p − 1 for the right word and p for the others: what should have been higher and lower. Each stage turns the message that arrives into the gradient of its own weights and a message for the stage before.",
    "A message is ∂loss/∂x, how the loss would change with the stream at a place. The table shows its length at each position; lengths do not add up, so they are no shares. Blame does: it is −⟨gradient, step⟩, how much of the drop in loss that the step below promises comes from a stage's weights.",
  );
  return () => {
    const error = outputError(app.scores(), app.target);
    const words = Array.from(error.keys())
      .sort((a, b) => Math.abs(error[b]) - Math.abs(error[a]))
      .slice(0, LIKELIEST);
    const arriving = app.walked.filter(({ name }) => name !== "loss");
    const messages = arriving.map(({ name, messageIn }) => [name, ...rowNorms(messageIn)]);
    const foreseen = app.pending.blame;
    const largest = foreseen.total >= 1e-4;
    const rows = arriving.map(({ name, grads }) => {
      const nats = foreseen.nats[name];
      return [
        `${name}  (‖gradient‖ ${significant(norm(grads), 3)})`,
        nats,
        largest ? `${((100 * nats) / foreseen.total).toFixed(1)} %` : `${significant(nats, 2)} nats`,
      ];
    });
    body.replaceChildren(
      el(
        "div",
        { class: "columns" },
        el(
          "div",
          {},
          el("h3", {}, "Output error, p − right"),
          bars(
            "Output error by word",
            words.map((id) => [app.words[id], error[id], significant(error[id], 3)]),
          ),
        ),
        el(
          "div",
          { id: "blame" },
          el(
            "h3",
            {},
            "Gradients, and blame by stage",
            what(
              "Blame",
              "The share of the promised drop in loss that comes from this stage's weights, for the step set below. The shares add up to 100 %. Where less than 0.0001 nats are to be gained there are no shares: they would say more about rounding than about learning.",
            ),
          ),
          bars("Blame by stage", rows),
        ),
      ),
      el("h3", {}, "Messages: ‖∂loss/∂x‖ where each stage ends, from the output back to the embeddings"),
      heatTable(
        "Strength of messages by stage and position",
        app.tokens.map((id) => app.words[id]),
        messages,
        (value) => significant(value, 2),
      ),
    );
  };
}

// The step: an optimizer, a learning rate, and what the step promises and brings.
export function stepView(app) {
  const body = part(
    "step",
    "A step of learning",
    "Gradient descent moves every weight a little against its gradient. To first order the loss must drop by the promise; how much it really drops shows only when the step is taken. Too large a step overshoots, and makes it worse.",
    "SGD: step = −rate · gradient. Adam divides the mean of the gradients by the root of the mean of their squares, so that every weight moves by about the rate. Here the step is taken on this one example alone, which teaches the model this word and may cost it others.",
  );
  const kind = el(
    "select",
    { id: "optimizer", onchange: () => app.setOptimizer(kind.value, Number(rate.value)) },
    el("option", { value: "sgd" }, "SGD"),
    el("option", { value: "adam" }, "Adam"),
  );
  const rate = el("input", {
    type: "number",
    id: "rate",
    min: 0,
    step: "any",
    "aria-describedby": "rate-error",
    oninput: () => {
      const ok = Number(rate.value) > 0 && Number.isFinite(Number(rate.value));
      problem.textContent = ok ? "" : "the learning rate must be a number above 0";
      if (ok) app.setOptimizer(kind.value, Number(rate.value));
    },
  });
  const problem = el("span", { class: "error", id: "rate-error", role: "alert" });
  const times = (factor) =>
    el(
      "button",
      { type: "button", onclick: () => app.setOptimizer(kind.value, Number((app.rate * factor).toPrecision(2))) },
      factor > 1 ? `× ${factor}` : `÷ ${1 / factor}`,
    );
  const step = el("button", { type: "button", class: "primary", id: "do-step", onclick: () => app.step() }, "Step");
  const undo = el("button", { type: "button", id: "undo", onclick: () => app.undo() }, "Undo");
  const reset = el("button", { type: "button", id: "reset", onclick: () => app.reset() }, "Reset");
  const counted = el("span", { class: "faint", id: "stepped" });
  const said = el("div", { class: "columns" });
  body.append(
    el(
      "div",
      { class: "row" },
      el("label", { for: "optimizer" }, "Optimizer"),
      kind,
      el("label", { for: "rate" }, "learning rate"),
      rate,
      times(0.1),
      times(10),
      problem,
    ),
    el("div", { class: "row", style: { "margin-top": "10px" } }, step, undo, reset, counted),
    said,
  );
  return () => {
    kind.value = app.kind;
    if (document.activeElement !== rate) rate.value = app.rate;
    else if (Number(rate.value) !== app.rate && Number(rate.value) > 0) rate.value = app.rate;
    undo.disabled = reset.disabled = !app.stepped;
    counted.textContent = app.stepped ? `${app.stepped} taken` : "none taken yet";
    const { losses, blame: foreseen, actual } = app.pending;
    const finite = losses.filter(([, loss]) => Number.isFinite(loss));
    const shown = [...finite.map(([, loss]) => loss), app.loss];
    const low = Math.min(...shown, Math.max(0, app.loss - foreseen.total)),
      high = Math.max(...shown) + 1e-12;
    const promise = [
      [0, app.loss],
      [2, app.loss - 2 * foreseen.total],
    ].map(([t, loss]) => [t, loss]);
    // The tangent leaves the chart where it falls below its lower edge.
    const leaves = foreseen.total > 0 ? Math.min(2, (app.loss - low) / foreseen.total) : 2;
    promise[1] = [leaves, app.loss - leaves * foreseen.total];
    const worse = actual < 0;
    said.replaceChildren(
      el(
        "div",
        { id: "promise" },
        el(
          "p",
          { class: "readout" },
          "The next step promises a drop of ",
          el("strong", {}, significant(foreseen.total)),
          " nats; it would really bring ",
          el("strong", { class: worse ? "bad" : "good" }, significant(actual)),
          ".",
          what(
            "Predicted and actual drop",
            "Predicted: −⟨gradient, step⟩, what the drop would be if the loss were a straight line. Actual: the loss before less the loss after. They agree for a small step, and part ways as the curve bends.",
          ),
        ),
        worse
          ? el(
              "p",
              { class: "bad" },
              `Too large: the loss would rise by ${significant(-actual, 3)} nats. Take a smaller learning rate.`,
            )
          : null,
        chart(
          "Loss along the step",
          {
            from: 0,
            to: 2,
            ticks: [
              [0, "now"],
              [1, "the step"],
              [2, "twice it"],
            ],
          },
          {
            from: low,
            to: high,
            ticks: [
              [low, significant(low, 3)],
              [high, significant(high, 3)],
            ],
          },
          [
            { class: "promise", points: promise },
            { class: "curve", points: finite },
          ],
          {
            marks: (atX, atY) => [
              svg("circle", { class: "dot", cx: atX(0), cy: atY(app.loss), r: 4 }),
              Number.isFinite(app.loss - actual)
                ? svg("circle", { class: "dot", cx: atX(1), cy: atY(app.loss - actual), r: 5 })
                : null,
            ],
          },
        ),
        el("p", { class: "faint" }, "Dashed: the promise, a straight line. Solid: the loss along the step."),
      ),
      app.last ? lastStep(app) : el("p", { class: "faint" }, "After a step, its credit stands here beside its blame."),
    );
  };
}

function lastStep({ last, words }) {
  const total = (account) => Object.values(account).reduce((a, b) => a + b, 0);
  const row = (name, a, b) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", { class: "number" }, significant(a)),
      el("td", { class: "number" }, significant(b)),
    );
  return el(
    "div",
    { id: "credit" },
    el(
      "p",
      { class: "readout" },
      `Your last step (${last.kind}, rate ${last.rate}): p(${words[last.target]}) went from ${percent(last.before)} to `,
      el("strong", {}, percent(last.after)),
      `, the surprise from ${significant(last.loss)} to ${significant(last.loss - last.actual)} nats.`,
    ),
    el(
      "table",
      { "aria-label": "Blame and credit of the last step" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "nats"),
          el("th", { scope: "col", class: "number" }, "blame before"),
          el(
            "th",
            { scope: "col", class: "number" },
            "credit after",
            what(
              "Credit",
              "A stage's share of the drop that really came: −∫⟨gradient, step⟩ along the way, the gradient taken at 16 points of it (loss change allocation, Lan et al. 2019). The credits add up to the actual drop.",
            ),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        Object.keys(last.blame.nats).map((name) => row(name, last.blame.nats[name], last.credit.nats[name])),
        row("sum", total(last.blame.nats), total(last.credit.nats)),
        el(
          "tr",
          {},
          el("th", { scope: "row" }, "actual drop"),
          el("td"),
          el("td", { class: `number ${last.actual < 0 ? "bad" : "good"}` }, significant(last.actual)),
        ),
      ),
    ),
  );
}

// One weight: every matrix of weights, gradients or steps, and the story of one cell.
export function weightView(app) {
  const body = part(
    "weight",
    "One weight",
    "All of this is numbers in matrices. Choose one: click a cell, or move with the arrow keys, to follow a single weight through the step.",
    "The gradient says how the loss changes with this weight. The finite difference asks the same question by brute force: move the weight a little to both sides and compute the whole network again. That they agree is a proof that the chain rule did its work.",
  );
  const names = Object.keys(namedLeaves(app.params));
  const leafPicker = el(
    "select",
    {
      id: "leaf",
      onchange: () => {
        app.weight = { name: leafPicker.value, index: 0 };
        update();
      },
    },
    names.map((name) => el("option", { value: name }, name)),
  );
  const showPicker = el(
    "select",
    { id: "show", onchange: () => update() },
    ["weights", "gradient", "step"].map((name) => el("option", {}, name)),
  );
  const place = el("div", { class: "scroll" }),
    story = el("div", { id: "story", class: "readout" });
  body.append(
    el(
      "div",
      { class: "row" },
      el("label", { for: "leaf" }, "Matrix"),
      leafPicker,
      el("label", { for: "show" }, "shows"),
      showPicker,
    ),
    el("p"),
    place,
    story,
  );
  const at = (tree) => namedLeaves(tree)[app.weight.name].data[app.weight.index];
  function update() {
    const { name } = app.weight;
    leafPicker.value = name;
    const trees = { weights: app.params, gradient: app.grads, step: app.pending.update };
    const { shape, data } = namedLeaves(trees[showPicker.value])[name];
    const columns = name.endsWith("attention.out") ? shape[2] : shape.length === 1 ? shape[0] : data.length / shape[0];
    const rows = data.length / columns;
    const most = data.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    const size = Math.max(4, Math.min(14, Math.floor((body.clientWidth - 8) / columns)));
    const grid = cellGrid({
      rows,
      columns,
      size,
      label: `${showPicker.value} of ${name}, ${shape.join(" × ")}; arrow keys move the chosen cell`,
      colour: (r, c) => signed(data[r * columns + c], most),
      chosen: () => [Math.floor(app.weight.index / columns), app.weight.index % columns],
      onpick: (r, c) => {
        app.weight.index = r * columns + c;
        grid.draw();
        tell();
      },
    });
    place.replaceChildren(grid.node);
    grid.draw();
    tell();
  }
  function tell() {
    const { name, index } = app.weight;
    const value = at(app.params),
      delta = at(app.pending.update);
    const moments = app.pending.state
      ? [
          ["momentum μ", at(app.pending.state.mu), "mean of gradients, after this one"],
          ["ν", at(app.pending.state.nu), "mean of their squares"],
        ]
      : [];
    const lines = [
      ["value", value, ""],
      ["gradient", at(app.grads), "by the chain rule"],
      ["finite difference", finiteDifference(app.params, name, index, app.tokens, app.target), "by trying both sides"],
      ...moments,
      [
        "learning rate",
        app.rate,
        app.kind === "sgd"
          ? "step = −rate · gradient"
          : "step = −rate · μ̂ / (√ν̂ + 10⁻⁸), both corrected for their start at 0",
      ],
      ["step", delta, ""],
      ["new value", value + delta, "value + step"],
      ["its blame", -at(app.grads) * delta, "nats: −gradient · step"],
    ];
    story.replaceChildren(
      el("h3", {}, `${name}[${placeOf(namedLeaves(app.params)[name].shape, index).join(", ")}]`),
      el(
        "table",
        { "aria-label": "One weight" },
        el(
          "tbody",
          {},
          lines.map(([label, number, note]) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, label),
              el("td", { class: "number" }, significant(number, 6)),
              el("td", { class: "faint" }, note),
            ),
          ),
        ),
      ),
    );
  }
  return update;
}

// The table: every problem of every operation, as this snapshot answers it.
export function tableView(app) {
  const body = part(
    "table",
    "The whole table",
    "Every problem that there is: the first number goes down, the second to the right. Point at a cell to read it, click it to ask it. The colours are of the chosen snapshot; steps of your own do not change them.",
    "Each cell is one problem, decoded word by word by the model of this snapshot before the page was written. The stronger the colour, the more probability the model gave to its answer. Empty cells have no answer that the vocabulary can say.",
  );
  if (!app.data.membership) {
    body.append(el("p", {}, "The table of this task is too large to be shown here."));
    return () => {};
  }
  const n = app.tokenizer.max_number + 1,
    cells = n * n;
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const grids = el("div", { class: "columns" });
  const legend = [
    ["29, 122, 70", "right, was in training"],
    ["48, 116, 214", "right, was held out"],
    ["220, 62, 54", "wrong"],
  ];
  const score = el("p", { id: "score" });
  body.append(
    el(
      "p",
      { class: "legend" },
      legend.map(([rgb, text]) => el("span", {}, el("i", { style: { background: `rgb(${rgb})` } }), text)),
    ),
    score,
    grids,
    readout,
  );
  const chosen = { operation: null, a: 0, b: 0 };
  const at = (operation, a, b) => operation * cells + a * n + b;
  const describe = (operation, a, b) => {
    const result = verdict(app.verdicts[at(operation, a, b)]);
    const text = `${numberToWords(a).join(" ")} ${app.tokenizer.operations[operation]} ${numberToWords(b).join(" ")}`;
    readout.textContent = result
      ? `${text}: ${result.right ? "right" : "wrong"}, with probability ${Math.round(100 * result.p)} %; ${result.right ? "" : "it "}was ${MEMBERSHIP[app.membership[at(operation, a, b)]] === "held out" ? "held out" : "in training"}`
      : `${text} has no answer here`;
    return result ? text : null;
  };
  return () => {
    const size =
      n > 50
        ? Math.max(
            2,
            Math.min(
              5,
              Math.floor(
                (Math.min(body.clientWidth, 1100) /
                  Math.min(app.tokenizer.operations.length, body.clientWidth > 700 ? 2 : 1) -
                  30) /
                  n,
              ),
            ),
          )
        : Math.floor(300 / n);
    const counts = { right: 0, all: 0, heldRight: 0, held: 0 };
    app.verdicts.forEach((byte, i) => {
      if (!byte) return;
      const held = app.membership[i] === 2;
      counts.all++;
      counts.right += byte > 127;
      counts.held += held;
      counts.heldRight += held && byte > 127;
    });
    score.replaceChildren(
      `Right: ${counts.right.toLocaleString("en-US")} of ${counts.all.toLocaleString("en-US")} (${percent(counts.right / counts.all)})`,
      counts.held
        ? `; of those held out ${counts.heldRight.toLocaleString("en-US")} of ${counts.held.toLocaleString("en-US")} (${percent(counts.heldRight / counts.held)}).`
        : ".",
    );
    grids.replaceChildren(
      ...app.tokenizer.operations.map((name, operation) => {
        const grid = cellGrid({
          rows: n,
          columns: n,
          size,
          label: `${name}: ${n} × ${n} problems; arrow keys move, Enter asks`,
          colour: (a, b) => {
            const i = at(operation, a, b),
              result = verdict(app.verdicts[i]);
            if (!result) return null;
            const [rgb] = legend[result.right ? app.membership[i] - 1 : 2];
            return `rgba(${rgb}, ${0.15 + 0.8 * result.p})`;
          },
          chosen: () => (chosen.operation === operation ? [chosen.a, chosen.b] : null),
          onmove: (a, b) => describe(operation, a, b),
          onpick: (a, b, asks) => {
            Object.assign(chosen, { operation, a, b });
            grid.draw();
            const text = describe(operation, a, b);
            if (asks && text) app.setPrompt(text);
          },
        });
        return el("figure", {}, el("figcaption", {}, name), el("div", { class: "scroll" }, grid.node));
      }),
    );
  };
}
