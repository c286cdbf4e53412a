// The drawings of a training: its loss, the blame of each stage, and the table of all problems. Each is made once and
// returns a function that draws it anew.

import { verdict } from "./data.mjs";
import { el, svg } from "./dom.mjs";

const [WIDE, HIGH] = [560, 150];
const BUCKETS = 160; // points of a curve at most: each is the mean over some steps

export const BLAMED = ["Embeddings", "Attention", "Feed-forward", "Output"];

// The means of a value over equal ranges of steps: [[x from 0 to 1, mean]].
/** @type {(points: TrainingPoint[], steps: number, read: (point: TrainingPoint) => number) => [number, number][]} */
function bucketed(points, steps, read) {
  const size = Math.ceil(steps / BUCKETS);
  /** @type {[number, number][]} */
  const means = [];
  for (let from = 0; from < points.length; from += size) {
    const values = points.slice(from, from + size).map(read);
    const mean = values.reduce((a, b) => a + b) / values.length;
    means.push([Math.min((from + values.length / 2) / steps, 1), mean]);
  }
  return means;
}

/** @type {(points: [number, number][]) => string} */
const path = (points) =>
  points.map(([x, y], i) => `${i ? "L" : "M"}${(x * WIDE).toFixed(1)} ${(y * HIGH).toFixed(1)}`).join("");

// A frame with lines at some heights (from 0 at the top to 1), each with its text.
/** @type {(label: string, lines: [number, string][], ...inside: any[]) => HTMLElement} */
function chartFrame(label, lines, ...inside) {
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    lines.map(([y]) => svg("line", { class: "grid-line", x1: 0, x2: WIDE, y1: y * HIGH, y2: y * HIGH })),
    inside,
  );
  const texts = lines.map(([y, text]) => el("span", { style: { top: `${100 * y}%` } }, text));
  return el("div", { class: "live-chart" }, el("div", { class: "live-scale", "aria-hidden": "true" }, texts), drawing);
}

// The loss of every step, on a logarithmic scale.
/** @type {(steps: number) => { node: HTMLElement; draw: (points: TrainingPoint[]) => void }} */
export function lossChart(steps) {
  const [most, least] = [4, 0.0001];
  /** @type {(loss: number) => number} */
  const at = (loss) => Math.min(Math.max(Math.log(most / loss) / Math.log(most / least), 0), 1);
  const curve = svg("path", { class: "live-curve" });
  const node = chartFrame(
    "Loss by step",
    [1, 0.01, 0.0001].map((loss) => [at(loss), String(loss)]),
    curve,
  );
  /** @type {(points: TrainingPoint[]) => void} */
  const draw = (points) => {
    const means = bucketed(points, steps, ({ loss }) => loss);
    curve.setAttribute("d", path(means.map(([x, loss]) => [x, at(loss)])));
  };
  return { node, draw };
}

// The share of the blame of each stage, stacked: the first stage at the bottom.
/** @type {(steps: number) => { node: HTMLElement; draw: (points: TrainingPoint[]) => void }} */
export function blameChart(steps) {
  const areas = BLAMED.map((_, stage) => svg("path", { class: `live-area stage-${stage}` }));
  /** @type {[number, string][]} */
  const lines = [0, 0.5, 1].map((y) => [y, `${100 - 100 * y}\u00a0%`]);
  const node = chartFrame("Share of the blame of each stage, by step", lines, areas);
  /** @type {(points: TrainingPoint[]) => void} */
  const draw = (points) => {
    /** @type {[number, number][] | null} */
    let below = null;
    areas.forEach((area, stage) => {
      const upTo = bucketed(points, steps, ({ shares }) => shares.slice(0, stage + 1).reduce((a, b) => a + b));
      /** @type {[number, number][]} */
      const top = upTo.map(([x, share]) => [x, 1 - share]);
      /** @type {[number, number][]} */
      const bottom = below ?? top.map(([x]) => [x, 1]);
      area.setAttribute("d", top.length ? `${path(top)}${path(bottom.toReversed()).replace("M", "L")}Z` : "");
      below = top;
    });
  };
  return { node, draw };
}

const CELL = 10;
const SQUARE = `M1 1h${CELL - 2}v${CELL - 2}h${2 - CELL}z`;
const CROSS = "M3 3l4 4M7 3l-4 4";

// The problems of one operation: a goes down, b to the right. A square is a right answer, a cross a wrong one; held-out
// problems have a frame. onpoint and onpick get a lesson's index.
/**
 * @param {string} name
 * @param {Lesson[]} lessons
 * @param {number} n
 * @param {{ onpoint: (index: number | undefined) => void; onpick: (index: number) => void }} actions
 */
export function problemGrid(name, lessons, n, { onpoint, onpick }) {
  const size = n * CELL,
    cells = new Map();
  /** @type {Record<string, number>} */
  const at = {};
  lessons.forEach(({ a, operation, b, held }, index) => {
    if (operation !== name) return;
    const mark = svg("path", {});
    const frame = held ? svg("rect", { class: "held-frame", x: 0.5, y: 0.5, width: CELL - 1, height: CELL - 1 }) : null;
    at[`${a},${b}`] = index;
    cells.set(index, { mark, node: svg("g", { transform: `translate(${b * CELL} ${a * CELL})` }, mark, frame) });
  });
  const nodes = Array.from(cells.values(), ({ node }) => node);
  const watched = svg("rect", { class: "watched-frame", width: CELL + 2, height: CELL + 2 });
  const drawing = svg(
    "svg",
    { viewBox: `-1 -1 ${size + 2} ${size + 2}`, role: "img", "aria-label": `All problems of ${name}` },
    nodes,
    watched,
  );
  /** @type {(event: MouseEvent) => number | undefined} */
  const under = (event) => {
    const box = drawing.getBoundingClientRect();
    const place = (/** @type {number} */ value, /** @type {number} */ from, /** @type {number} */ length) =>
      Math.floor(((value - from) / length) * n);
    return at[[place(event.clientY, box.top, box.height), place(event.clientX, box.left, box.width)].join()];
  };
  drawing.addEventListener("pointermove", (/** @type {MouseEvent} */ event) => onpoint(under(event)));
  drawing.addEventListener("pointerleave", () => onpoint(undefined));
  drawing.addEventListener("click", (/** @type {MouseEvent} */ event) => {
    const index = under(event);
    if (index !== undefined) onpick(index);
  });
  /** @type {(verdicts: Uint8Array | null, watched: Watched) => void} */
  const draw = (verdicts, { a, operation, b }) => {
    for (const [index, { mark }] of cells) {
      const result = verdicts && verdict(verdicts[index]);
      mark.setAttribute("class", result ? (result.right ? "is-right" : "is-wrong") : "is-open");
      mark.setAttribute("d", result && !result.right ? CROSS : SQUARE);
      mark.style.setProperty("opacity", result ? 0.35 + 0.65 * result.p : 1);
    }
    watched.setAttribute("visibility", operation === name ? "visible" : "hidden");
    watched.setAttribute("x", b * CELL - 1);
    watched.setAttribute("y", a * CELL - 1);
  };
  return { node: el("figure", {}, el("figcaption", {}, name), drawing), draw };
}
