// The network on the stage: bands, rails, arcs and boxes, lit from below by the forward wave and from above by the
// backward wave. Two rectangles clip the lit parts, so a frame moves two edges and the pulses.

import { svg } from "./dom.mjs";
import { arcOf, heightAt } from "./layout.mjs";
import { percent, significant } from "./numbers.mjs";
import { filled, flashOf, reached } from "./scenes.mjs";

const WIDEST = { share: 8, message: 15 }; // pixels
const FAINT = 0.02; // the least share of attention, or part of the widest message, that is drawn
/** @type {Record<string, string>} */
const LEVEL_TITLES = { embed: "embeddings", output: "output" };

// "block 0 attention" → "attention"
/** @type {(name: string) => string} */
const titleOf = (name) => LEVEL_TITLES[name] ?? (name.endsWith("mlp") ? "feed-forward" : name.split(" ").at(-1));

/** @type {(drawing: Drawing) => SVGElement} */
export function drawNetwork(drawing) {
  const { layout, id, on } = drawing;
  const { width, bands } = layout;
  const n = bands.length;
  const bottom = bands[0].bottom;
  const up = svg("rect", { x: 0, width });
  const frontUp = (/** @type {Frame} */ { forward }) => heightAt(layout, forward);
  on(up, "y", frontUp);
  on(up, "height", (frame) => bottom - frontUp(frame));
  const down = svg("rect", { x: 0, y: 0, width });
  on(down, "height", ({ backward }) => (backward ? heightAt(layout, n - backward) : 0));
  const arcs = arcsOn(drawing);
  // What a wave lights.
  /** @type {(kind: string, clip: string, light: (frame: Frame) => number, ...children: any[]) => SVGElement} */
  const lit = (kind, clip, light, ...children) =>
    on(svg("g", { class: kind, "clip-path": `url(#${id}-${clip})` }, children), "opacity", light);
  return svg(
    "g",
    {},
    svg("clipPath", { id: `${id}-up` }, up),
    svg("clipPath", { id: `${id}-down` }, down),
    bandsOf(layout),
    rails(drawing, "resting rails"),
    svg(
      "g",
      { class: "resting arcs" },
      arcs.map(({ resting }) => resting),
    ),
    lit(
      "ahead",
      "up",
      ({ light }) => light,
      rails(drawing, "rails"),
      arcs.map((arc) => arc.lit),
    ),
    lit(
      "back",
      "down",
      ({ scene }) => (scene === "update" ? 0.35 : 1),
      railsBack(drawing),
      arcs.map((arc) => arc.back),
    ),
    pulses(drawing, arcs),
    boxes(drawing),
    tokenLabels(drawing),
  );
}

/** @type {(layout: Layout) => SVGElement} */
function bandsOf({ bands, width, left, isWide }) {
  return svg(
    "g",
    { "aria-hidden": "true" },
    bands.map(({ name, top, bottom }) => {
      const block = name.match(/block \d+/)?.[0];
      const label = [
        svg(
          "text",
          {
            class: "level",
            x: isWide ? left - 12 : 2,
            y: top + (isWide ? 21 : 13),
            "text-anchor": isWide ? "end" : "start",
          },
          titleOf(name),
        ),
        block && isWide && bottom - top > 60
          ? svg("text", { class: "block", x: left - 12, y: top + 36, "text-anchor": "end" }, block)
          : null,
      ];
      return [
        svg("rect", { class: `band ${name.split(" ").at(-1)}`, x: 0, y: top, width, height: bottom - top }),
        label,
      ];
    }),
  );
}

/** @type {(drawing: Drawing) => number[]} */
const columnsOf = ({ facts }) => facts.tokens.map((_, column) => column);

// Only the last column is read by the output; the others end with the last block.
/** @type {(drawing: Drawing, column: number) => number} */
function railTop({ layout: { bands }, facts }, column) {
  return column === facts.tokens.length - 1 ? bands.at(-1).box.top : bands[bands.length - 2].box.top;
}

/** @type {(drawing: Drawing, kind: string) => SVGElement} */
function rails(drawing, kind) {
  const { layout } = drawing;
  const lines = columnsOf(drawing).map((column) => {
    const x = layout.x(column);
    return svg("line", { x1: x, x2: x, y1: layout.bands[0].box.top, y2: railTop(drawing, column) });
  });
  return svg("g", { class: kind }, lines);
}

/** @type {(facts: Facts) => number} */
const widestMessage = ({ messages, arcs }) => Math.max(...messages.flat(), ...arcs.map(({ message }) => message)) || 1;

// In each band a rail is as wide as the message that arrives from above, which a residual layer passes on unchanged.
/** @type {(drawing: Drawing) => (SVGElement | null)[][]} */
function railsBack(drawing) {
  const { layout, facts } = drawing;
  const n = layout.bands.length;
  const most = widestMessage(facts);
  return layout.bands.slice(1).map((band, i) =>
    columnsOf(drawing).map((column) => {
      const level = Math.min(i + 1, n - 2);
      const message = facts.messages[level][column];
      if (message < FAINT * most || (i + 1 === n - 1 && column < facts.tokens.length - 1)) return null;
      const x = layout.x(column);
      return svg("line", {
        x1: x,
        x2: x,
        y1: i + 1 === n - 1 ? band.box.top : band.top,
        y2: i === 0 ? layout.bands[0].box.top : band.bottom,
        "stroke-width": Math.max(1, (WIDEST.message * message) / most),
      });
    }),
  );
}

/** @type {(drawing: Drawing) => DrawnArc[]} */
function arcsOn({ layout, facts, pick, words }) {
  const heads = 1 + Math.max(...facts.arcs.map(({ head }) => head));
  const asks = facts.tokens.length - 1;
  const most = widestMessage(facts);
  return facts.arcs.map(({ stage, head, to, from, share, message, held }) => {
    const level = facts.names.indexOf(stage);
    const { path, x, top, bottom } = arcOf(layout, level, from, to, head, heads);
    const says = `${stage}, head ${head}: ${words[facts.tokens[to]]} gives ${percent(share)} of its attention to ${words[facts.tokens[from]]}`;
    const isDrawn = share >= FAINT;
    const isFelt = message >= FAINT * most;
    /** @type {(width: number, attributes?: Record<string, any>) => SVGElement} */
    const draw = (width, attributes) => svg("path", { d: path, "stroke-width": width.toFixed(2), ...attributes });
    const lit = isDrawn
      ? draw(WIDEST.share * share, {
          ...pick({ kind: "arc", stage, head, position: to, from, word: facts.tokens[from] }, says),
          class: `head-${head % 8} ${to === asks ? "asks" : ""} ${held ? "held" : ""}`,
        })
      : null;
    lit?.append(svg("title", {}, says));
    const back = isFelt ? draw(Math.max(0.8, (WIDEST.message * message) / most)) : null;
    const resting = isDrawn && to === asks ? draw(Math.max(0.6, WIDEST.share * share * 0.5)) : null;
    return { lit, back, resting, x, top, bottom, level, share, message: message / most, asks: to === asks };
  });
}

// The pulses at the front of a wave: one on each rail, and one on each arc.
/** @type {(drawing: Drawing, arcs: DrawnArc[]) => SVGElement} */
function pulses(drawing, arcs) {
  const { layout, facts, on } = drawing;
  const n = layout.bands.length;
  const most = widestMessage(facts);
  const frontOf = (/** @type {Frame} */ { scene, forward, backward }) =>
    scene === "backward" ? n - backward : forward;
  const runs = (/** @type {Frame} */ frame) =>
    frame.scene !== "surprise" && frame.scene !== "update" && frontOf(frame) > 0 && frontOf(frame) < n;
  /** @type {(place: (frame: Frame) => string, ahead: number, back: number) => SVGElement} */
  const dot = (place, ahead, back) => {
    const node = svg("circle", {});
    on(node, "r", ({ scene }) => (scene === "backward" ? back : ahead).toFixed(1));
    return on(node, "transform", place);
  };
  const hidden = "scale(0)";
  const onRails = columnsOf(drawing).map((column) => {
    const end = railTop(drawing, column);
    const x = layout.x(column);
    const place = (/** @type {Frame} */ frame) => {
      if (!runs(frame)) return hidden;
      const y = heightAt(layout, frontOf(frame));
      return y < end ? hidden : `translate(${x} ${y.toFixed(1)})`;
    };
    const strength = Math.max(...facts.messages.map((row) => row[column] ?? 0)) / most;
    return dot(place, 4.5, strength > FAINT ? 3 + 6 * strength : 0);
  });
  const onArcs = arcs
    .filter(({ lit, back }) => lit || back)
    .map(({ x, top, bottom, level, share, message, asks }) => {
      const place = (/** @type {Frame} */ frame) => {
        const front = frontOf(frame);
        if (front <= level || front >= level + 1 || !runs(frame)) return hidden;
        const y = heightAt(layout, front);
        return y < top ? hidden : `translate(${x((bottom - y) / (bottom - top)).toFixed(1)} ${y.toFixed(1)})`;
      };
      return dot(place, asks ? 1.5 + 4 * share : 1 + 2 * share, message > FAINT ? 1.5 + 6 * message : 0);
    });
  return on(svg("g", { "aria-hidden": "true" }, onRails, onArcs), "class", ({ scene }) =>
    scene === "backward" ? "pulses descending" : "pulses",
  );
}

/** @type {(drawing: Drawing) => SVGElement} */
function boxes({ layout, facts, on, pick, words, past }) {
  const n = layout.bands.length;
  const mostBlame = Math.max(...facts.cells.flat(), 1e-300);
  const mostStep = Math.max(...facts.steps, 1e-300);
  /** @type {(level: number, column: number) => SVGElement[]} */
  const box = (level, column) => {
    const { name, box: place } = layout.bands[level];
    const frame = {
      x: layout.x(column) - layout.boxWidth / 2,
      y: place.top,
      width: layout.boxWidth,
      height: place.height,
    };
    const share = facts.cells[level][column];
    const full = Math.max(share, 0) / mostBlame;
    const word = words[facts.tokens[column]];
    /** @type {Picked} */
    const what = { kind: "node", stage: name, position: column, word: facts.tokens[column] };
    const outline = svg("rect", {
      ...frame,
      rx: 5,
      ...pick(what, `${name} at ${word}: ${shareText(share)} of the blame`),
    });
    on(outline, "class", (at) => `box pickable ${reached(at, level) > 0 ? "on" : ""}`);
    const fill = svg("rect", { ...frame, rx: 5, class: "blame" });
    const height = (/** @type {Frame} */ at) => (frame.height * full * (past ? 0 : filled(at, level, n))).toFixed(1);
    on(fill, "height", height);
    on(fill, "y", (at) => (frame.y + frame.height - Number(height(at))).toFixed(1));
    const flash = svg("rect", { ...frame, rx: 5, class: "flash" });
    const strength = 0.15 + (0.75 * facts.steps[level]) / mostStep;
    on(flash, "opacity", (at) => (strength * flashOf(at, level, n)).toFixed(2));
    const text = svg(
      "text",
      { class: "share", x: layout.x(column), y: place.top + place.height / 2 + 4 },
      shareText(share),
    );
    on(text, "opacity", (at) => (!past && Math.abs(share) >= 0.005 ? filled(at, level, n) : 0).toFixed(2));
    return [outline, fill, flash, text];
  };
  return svg(
    "g",
    {},
    facts.names.map((name, level) =>
      facts.tokens.map((_, column) =>
        name !== "output" || column === facts.tokens.length - 1 ? box(level, column) : null,
      ),
    ),
  );
}

/** @type {(share: number) => string} */
export const shareText = (share) => {
  const size = Math.abs(100 * share);
  const text = size >= 9.95 ? size.toFixed(0) : significant(size, size < 0.1 ? 1 : 2);
  return `${share < 0 ? "−" : ""}${text}\u00a0%`;
};

/** @type {(drawing: Drawing) => SVGElement[]} */
function tokenLabels({ layout, facts, words, pick }) {
  const asks = facts.tokens.length - 1;
  return facts.tokens.map((token, column) => {
    const word = words[token];
    const kind = word === "<pad>" ? "padding" : column === asks ? "asks" : "";
    const isSwapped = facts.edits.tokens[column] !== undefined;
    const text = word === "<pad>" ? "pad" : word;
    const labelled = pick({ kind: "token", stage: "embed", position: column, word: token }, `word ${text}`);
    return svg(
      "g",
      { ...labelled, class: `pickable ${isSwapped ? "swapped" : ""}` },
      svg("rect", {
        ...{ class: "token-place", x: layout.x(column) - layout.pitch / 2, y: layout.labelY(column) - 16 },
        ...{ width: layout.pitch, height: 24 },
      }),
      svg("text", { class: `token ${kind}`, x: layout.x(column), y: layout.labelY(column) }, text),
    );
  });
}
