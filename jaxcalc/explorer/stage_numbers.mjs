// The numbers around the network on the stage: what each level says, its blame and its step at the right; the bars of
// the next word and the surprise on top; the story's four boxes below.

import { svg } from "./dom.mjs";
import { fourBoxes } from "./facts.mjs";
import { percent, significant } from "./numbers.mjs";
import { filled, flashOf, reached } from "./scenes.mjs";
import { shareText } from "./stage_network.mjs";

// At the right of each level.
/** @type {(drawing: Drawing) => SVGElement} */
export function drawMargin({ layout, facts, words, on }) {
  const n = layout.bands.length;
  const x = layout.width - layout.right + (layout.isWide ? 14 : 0);
  const end = layout.isWide ? { x } : { x: layout.width - 2, "text-anchor": "end" };
  /** @type {(kind: string, y: number, first: string, second: string, shown: (frame: Frame) => number) => SVGElement} */
  const two = (kind, y, first, second, shown) => {
    const node = svg(
      "g",
      { class: `says ${kind}` },
      svg("text", { ...end, y: y - 2 }, first),
      svg("text", { ...end, class: "small", y: y + 11 }, second),
    );
    return on(node, "opacity", (frame) => shown(frame).toFixed(2));
  };
  return svg(
    "g",
    {},
    layout.bands.map(({ box }, level) => {
      const y = box.top + box.height / 2;
      const { word, p } = facts.says[level];
      const said = two(words[word] === words[facts.target] ? "right" : "", y, words[word], percent(p), (frame) =>
        frame.scene === "backward" || frame.scene === "update" ? 0 : reached(frame, level),
      );
      const blamed = two(
        "blamed",
        y,
        shareText(facts.shares[level]),
        layout.isWide ? "of the blame" : "blame",
        (frame) => (frame.scene === "backward" ? filled(frame, level, n) : 0),
      );
      return [said, blamed, drawMove({ layout, facts, on }, level, y, end)];
    }),
    drawScale({ layout, facts, on }),
  );
}

// One weight that moves: w − rate · gradient = new, and a dot on a line.
/**
 * @param {Pick<Drawing, "layout" | "facts" | "on">} drawing
 * @param {number} level
 * @param {number} y
 * @param {{ x: number, "text-anchor"?: string }} end
 */
function drawMove({ layout, facts, on }, level, y, end) {
  const { value, step, gradient, next, name } = facts.moved[level];
  const mostStep = Math.max(...facts.moved.map((move) => Math.abs(move.step))) || 1;
  const sign = step < 0 ? "−" : "+";
  const digits = !layout.isWide ? 3 : Math.max(3, Math.min(8, Math.ceil(Math.log10(Math.abs(value / step)) + 1) || 4));
  const show = (/** @type {number} */ number) => significant(number, digits);
  const top = svg("text", { ...end, y: y - 2 }, show(value));
  on(top, "text", ({ moved }) => show(value + moved * step));
  const rate = Math.abs(step / gradient);
  const sum = layout.isWide
    ? `= ${show(value)} − ${significant(rate, 2)} · (${significant(gradient, 3)})`
    : `${sign}${significant(Math.abs(step), 2)}`;
  const bottom = svg("text", { ...end, class: "small", y: y + 11 }, sum);
  const line = layout.isWide ? numberLine(end.x + 88, y - 6, step / mostStep, on) : null;
  const node = svg(
    "g",
    { class: "says moved" },
    svg("title", {}, `${name}: ${show(value)} becomes ${show(next)}`),
    top,
    bottom,
    line,
  );
  return on(node, "opacity", (frame) => Math.min(1, 3 * flashOf(frame, level, layout.bands.length)).toFixed(2));
}

/** @type {(x: number, y: number, step: number, on: Drawing["on"]) => SVGElement[]} */
function numberLine(x, y, step, on) {
  const half = 30;
  const dot = svg("circle", { class: "now", cy: y, r: 4 });
  on(dot, "cx", ({ moved }) => (x + half + moved * step * (half - 4)).toFixed(1));
  return [
    svg("line", { class: "axis", x1: x, x2: x + 2 * half, y1: y, y2: y }),
    svg("circle", { class: "was", cx: x + half, cy: y, r: 3 }),
    dot,
  ];
}

// What widths and colours mean, beside the output box.
/** @type {(drawing: Pick<Drawing, "layout" | "facts" | "on">) => SVGElement[]} */
function drawScale({ layout, facts, on }) {
  const { box } = layout.bands.at(-1);
  const y = box.top + box.height / 2 + 4;
  const x = layout.left + 8;
  const most = Math.max(...facts.messages.flat(), ...facts.arcs.map(({ message }) => message));
  const heads = [...new Set(facts.arcs.map(({ head }) => head))];
  /** @type {(shown: SceneName[], ...children: any[]) => SVGElement} */
  const note = (shown, ...children) =>
    on(svg("g", { class: "scale" }, children), "display", ({ scene }) => (shown.includes(scene) ? "inline" : "none"));
  /** @type {(at: number, words: string) => SVGElement} */
  const text = (at, words) => svg("text", { x: at, y }, words);
  const wide = layout.x(facts.tokens.length - 1) - layout.boxWidth / 2 - x > 330; // room for the longer sentence
  return [
    note(
      ["forward", "surprise", "again"],
      text(x, wide ? "width: share of attention · colour: head" : "arcs: attention by head"),
      heads.map((head) =>
        svg("circle", { class: `head-${head % 8}`, cx: x + (wide ? 232 : 152) + 13 * head, cy: y - 4, r: 4 }),
      ),
    ),
    note(
      ["backward"],
      svg("line", { class: "sample", x1: x, x2: x + 22, y1: y - 4, y2: y - 4, "stroke-width": 15 }),
      text(
        x + 30,
        `${wide ? "width: length of the message ∂loss/∂x; this is" : "message of length"} ${significant(most, 3)}`,
      ),
    ),
    note(
      ["update"],
      text(
        x,
        wide
          ? `light: length of the step, up to ${significant(Math.max(...facts.steps), 2)}`
          : "light: length of the step",
      ),
    ),
  ];
}

// The bars of the likeliest words, and the surprise at the right one.
/** @type {(drawing: Drawing) => SVGElement} */
export function drawOutput({ layout, facts, past, rows, words, on, pick }) {
  const { bars } = layout;
  const likeliest = facts.probabilities.indexOf(Math.max(...facts.probabilities));
  return svg(
    "g",
    { class: "bars-of-words" },
    surpriseLine({ bars, facts, past, words, on, pick }),
    rows.map((word, row) => {
      const p = facts.probabilities[word],
        before = past ? past.probabilities[word] : null;
      const y = bars.y(row);
      const isRight = word === facts.target;
      const isWrong = word === likeliest && !isRight;
      const kind = isRight ? "right" : isWrong ? "wrong" : "";
      const bar = on(svg("rect", { class: "bar", x: bars.left, y, height: bars.height, rx: 3 }), "width", (frame) =>
        (bars.width * p * frame.bars).toFixed(1),
      );
      const mark = isRight ? "✓ " : isWrong ? "✗ " : "";
      const text = before === null ? percent(p) : `${shortPercent(before)} → ${shortPercent(p)}`;
      const labelled = pick(
        { kind: "bar", stage: "output", position: facts.tokens.length - 1, word },
        `${mark}${words[word]} ${text}`,
      );
      return svg(
        "g",
        { ...labelled, class: `word pickable ${kind}` },
        svg("rect", { class: "reach", x: 0, y: y - 5, width: bars.end, height: 24 }),
        svg("rect", { class: "track", x: bars.left, y, width: bars.width, height: bars.height, rx: 3 }),
        isRight ? gap({ bars, p, y, on }) : null,
        bar,
        before === null
          ? null
          : svg("rect", {
              class: "ghost",
              x: bars.left,
              y: y - 1,
              width: Math.max(bars.width * before, 1),
              height: bars.height + 2,
              rx: 3,
            }),
        svg("text", { x: bars.left - 8, y: y + bars.height - 2, "text-anchor": "end" }, `${mark}${words[word]} `),
        on(
          svg(
            "text",
            { class: "p", x: bars.left + bars.width + 8, y: y + bars.height - 2 },
            layout.isWide ? text : text.replace(/^.*→/, "→"),
          ),
          "opacity",
          (frame) => frame.bars.toFixed(2),
        ),
      );
    }),
  );
}

/** @type {(share: number) => string} */
const shortPercent = (share) => `${share < 0.1 ? (100 * share).toFixed(1) : (100 * share).toFixed(0)} %`;

// What is missing from the bar of the right word.
/** @type {(bar: { bars: Bars, p: number, y: number, on: Drawing["on"] }) => SVGElement} */
function gap({ bars, p, y, on }) {
  const start = bars.left + bars.width * p;
  const node = svg("rect", { class: "gap", x: start, y: y + 1, height: bars.height - 2 });
  return on(node, "width", (frame) => (bars.width * (1 - p) * frame.gap).toFixed(1));
}

/** @type {(drawing: Pick<Drawing, "facts" | "past" | "words" | "on" | "pick"> & { bars: Bars }) => SVGElement} */
function surpriseLine({ bars, facts, past, words, on, pick }) {
  const p = facts.probabilities[facts.target];
  const at = { stage: "output", position: facts.tokens.length - 1, word: facts.target };
  const right = words[facts.target];
  const node = svg("text", { class: "surprise", x: bars.title, y: 16 });
  on(node, "text", ({ scene, count, bars: grown }) => {
    if (scene === "backward")
      return `p − 1 = ${significant(facts.error, 3)}: the error at “${right}”${bars.end < 360 ? "" : " goes back"}`;
    if (count) return `surprise at “${right}”: −ln ${significant(p, 3)} = ${(facts.loss * count).toFixed(2)} nats`;
    if (past && grown > 0.5)
      return `surprise at “${right}”: ${significant(past.loss, 3)} → ${significant(facts.loss, 3)} nats`;
    return grown > 0.5 || scene === "surprise" ? `The right word is “${right}”` : "The next word";
  });
  return svg(
    "g",
    { ...pick({ kind: "loss", ...at, show: "surprise" }, null), class: "pickable" },
    svg("rect", { class: "reach", x: bars.title, y: 0, width: bars.width / 2, height: 24 }),
    node,
  );
}

// Tokenizer, embeddings, attention and feed-forward, output: the blame of each.
/** @type {(drawing: Drawing) => SVGElement} */
export function drawSummary({ layout, facts, past, on, pick }) {
  const { top, height } = layout.summary;
  const isTiny = layout.width < 360;
  const parts = isTiny ? [0.22, 0.25, 0.33, 0.2] : [0.19, 0.23, 0.39, 0.19];
  const n = layout.bands.length;
  const lastLevel = [n - 1, 0, 1, n - 1]; // the level whose blame is the last to arrive
  let x = 0;
  return svg(
    "g",
    { class: "summary" },
    fourBoxes(facts).map(({ name, share }, i) => {
      const width = layout.width * parts[i] - 6;
      const left = x + 3;
      x += layout.width * parts[i];
      const fill = svg("rect", { class: "blame", x: left, y: top, height, rx: 6 });
      const done = (/** @type {Frame} */ frame) => (past ? 0 : filled(frame, lastLevel[i], n));
      on(fill, "width", (frame) => (width * Math.max(share ?? 0, 0) * done(frame)).toFixed(1));
      const number = svg("text", { class: "share", x: left + width / 2, y: top + 32 });
      on(number, "text", (frame) =>
        share === null ? "no weights" : done(frame) ? `${(100 * share * done(frame)).toFixed(1)} %` : "–",
      );
      return svg(
        "g",
        pick({ kind: "cell", stage: name, position: null, word: null }, null), // its name is what it shows
        svg("rect", { class: "box on", x: left, y: top, width, height, rx: 6 }),
        fill,
        svg(
          "text",
          { class: "name", x: left + width / 2, y: top + 15 },
          `${isTiny ? name.replace("feed-forward", "mlp") : name} `,
        ),
        number,
      );
    }),
  );
}
