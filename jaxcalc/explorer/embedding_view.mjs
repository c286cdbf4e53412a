// The part of the page about number words: their embeddings as a map that moves with the snapshots and with own lessons.

import { el, part, svg } from "./dom.mjs";
import {
  comparedOrder,
  embeddingsOf,
  FEWEST_ON_MAP,
  labelsBeside,
  orderOnMap,
  placesOn,
  principalAxes,
  rowsOnMap,
  variancesOn,
  wordsOnMap,
} from "./embedding_map.mjs";

const AXES = ["first", "second"];
const TWEEN_MS = 500;
const SNAPSHOT_MS = 1200; // while playing, of which the words move for less than half
const MARGIN = 36; // pixels between the words and the edge
const REACH = 28; // pixels within which a pointer means a word
/** @type {Record<string, string>} */
const MARKS = {
  ones: "M-5 0A5 5 0 1 1 5 0A5 5 0 1 1 -5 0Z",
  teens: "M0 -6.5L6.5 0L0 6.5L-6.5 0Z",
  tens: "M-5 -5H5V5H-5Z",
  acting: "M-5 -5L5 5M-5 5L5 -5",
};
const HELP =
  "The axes are the two directions in which the number words of the last snapshot differ most (a principal component analysis, PCA).\nOrder is Spearman’s correlation of the words’ values with their places: 1 is perfect order, −1 the reverse. Proportion is Pearson’s. Words in random order stay below the last column nineteen times of twenty.";

/** @type {(value: number, digits: number) => string} */
const fixed = (value, digits) =>
  value
    .toFixed(digits)
    .replace("-", "−")
    .replace(/^−(0\.?0*)$/, "$1");
/** @type {(share: number) => string} */
const shareOf = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
/** @type {(word: MapWord) => string} */
const labelOf = ({ text, value }) => (value === null ? text : String(value));
/** @type {(words: MapWord[], word: MapWord) => string} */
const colourOnMap = (words, word) => {
  const numbers = words.filter(({ value }) => value !== null);
  const share = (100 * numbers.indexOf(word)) / (numbers.length - 1);
  return `color-mix(in oklch, var(--map-high) ${share.toFixed(1)}%, var(--map-low))`;
};

/** @type {View} */
export function mapView(app) {
  const { snapshots, task } = app.data;
  const words = wordsOnMap(task);
  const numbers = words.filter(({ value }) => value !== null);
  const body = part(
    "map",
    "Do the number words put themselves in order?",
    "Each word is a point: its embedding, the list of numbers that the model reads in its place, seen along the two directions of most variance. Nobody told the model which word is large. Move the slider and watch whether the words come into order; the table measures it.",
    HELP,
  );
  if (numbers.length < FEWEST_ON_MAP) {
    body.append(
      el("p", {}, `There is nothing to draw: this vocabulary has fewer than ${FEWEST_ON_MAP} words for numbers.`),
    );
    return () => {};
  }
  const first = snapshots[0].step ? `at step ${snapshots[0].step.toLocaleString("en-US")}` : "untrained";
  const player = playerOf(app);
  const same = el("input", { type: "checkbox", id: "map-scale", checked: true, onchange: () => draw(true) });
  const figure = el("figure");
  const drawing = drawingOf(figure, words, task.operations);
  const measured = el("div", { id: "map-order" });
  body.append(
    el("div", { class: "row" }, player.nodes, el("label", {}, same, " same scale at every snapshot")),
    el("div", { class: "map-columns" }, figure, measured),
  );
  /** @type {{ axes: MapAxes, before: [number, number][], last: [number, number][] } | null} */
  let frame = null;
  const draw = (isMoving = true) => {
    if (!frame || !body.clientWidth) return;
    const points = embeddingsOf(app.params, words);
    const places = placesOn(frame.axes, points);
    const shares = variancesOn(frame.axes, embeddingsOf(app.params, numbers));
    drawing.show({ places, shares, inView: same.checked ? [...frame.last, ...places] : places }, isMoving);
    measured.replaceChildren(...orderNodes(orderOnMap(words, places), orderOnMap(words, frame.before), first));
  };
  const prepare = async () => {
    const [start, end] = await Promise.all([app.paramsOf(0), app.paramsOf(snapshots.length - 1)]);
    const axes = principalAxes(
      embeddingsOf(end, numbers),
      numbers.map(({ value }) => Number(value)),
    );
    const [before, last] = [start, end].map((params) => placesOn(axes, embeddingsOf(params, words)));
    frame = { axes, before, last };
    draw(false);
  };
  prepare();
  new ResizeObserver(() => requestAnimationFrame(() => drawing.isStale() && draw(false))).observe(body);
  return () => {
    player.update();
    draw();
  };
}

// The slider over the snapshots, and its play button.
/** @type {(app: App) => { nodes: HTMLElement[], update: () => void }} */
function playerOf(app) {
  const { snapshots } = app.data;
  const end = snapshots.length - 1;
  const slider = el("input", {
    type: "range",
    id: "map-snapshot",
    ...{ min: 0, max: end, step: 1 },
    "aria-label": "Snapshot of the map",
    oninput: () => {
      stop();
      app.setSnapshot(Number(slider.value));
    },
  });
  const shown = el("output", { for: "map-snapshot", id: "map-step" });
  let timer = 0;
  let isPlaying = false;
  const stop = () => {
    clearTimeout(timer);
    isPlaying = false;
    play.textContent = "▶ Play";
  };
  // Whoever chooses another snapshot meanwhile stops it.
  /** @type {(index: number) => Promise<void>} */
  const playFrom = async (index) => {
    await app.setSnapshot(index);
    if (!isPlaying || app.snapshot !== index || index === end) return stop();
    timer = setTimeout(() => (app.snapshot === index ? playFrom(index + 1) : stop()), SNAPSHOT_MS);
  };
  const play = el(
    "button",
    {
      type: "button",
      id: "map-play",
      onclick: () => {
        if (isPlaying) return stop();
        isPlaying = true;
        play.textContent = "❚❚ Pause";
        return playFrom(app.snapshot === end ? 0 : app.snapshot + 1);
      },
    },
    "▶ Play",
  );
  return {
    nodes: [play, slider, shown],
    update: () => {
      const step = `step ${snapshots[app.snapshot].step.toLocaleString("en-US")}`;
      const own = app.stepped ? `, and ${app.stepped} lesson${app.stepped > 1 ? "s" : ""} of yours` : "";
      slider.value = app.snapshot;
      slider.setAttribute("aria-valuetext", step + own);
      shown.textContent = step + own;
    },
  };
}

// The sentence and the table that say how far the words are in order.
/** @type {(now: MapOrder[], before: MapOrder[], first: string) => HTMLElement[]} */
function orderNodes(now, before, first) {
  const [all, allBefore] = [now[1].on[0], before[1].on[0]];
  const isFirst = now.every(({ on }, row) => on.every((value, axis) => value === before[row].on[axis]));
  const ordered = now.slice(2).flatMap(({ name, on, byChance }) =>
    on.flatMap((value, axis) => {
      const reverse = value < 0 ? ", in reverse" : "";
      return Math.abs(value) > byChance ? `${name} on the ${AXES[axis]} axis (${fixed(value, 2)}${reverse})` : [];
    }),
  );
  const told = isFirst
    ? `The words ${first}: their order on the first axis is ${fixed(all, 2)}.`
    : `On the first axis the words are ${comparedOrder(all, allBefore)} they were ${first}: ${fixed(all, 2)} against ${fixed(allBefore, 2)}.`;
  const lines = `Of the lines, these are in better order than chance: ${ordered.join(", ") || "none"}.`;
  const cell = (/** @type {string} */ text) => el("td", { class: "number" }, text);
  const heading = (/** @type {string} */ text) => el("th", { scope: "col", class: "number" }, text);
  return [
    el("p", { id: "map-told" }, `${told} ${lines}`),
    el(
      "div",
      {
        class: "scroll",
        tabindex: 0,
        role: "group",
        "aria-label": "Order of the number words, a table that may scroll",
      },
      el(
        "table",
        { "aria-label": "Order of the number words" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col", rowspan: 2 }, "order by value of"),
            AXES.map((axis) => el("th", { scope: "colgroup", colspan: 2, class: "number" }, `${axis} axis`)),
            el("th", { scope: "col", rowspan: 2, class: "number" }, "chance"),
          ),
          el(
            "tr",
            {},
            AXES.map(() => [heading(first), heading("here")]),
          ),
        ),
        el(
          "tbody",
          {},
          now.map(({ name, on, byChance }, row) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, name),
              on.flatMap((value, axis) => [
                cell(fixed(before[row].on[axis], 2)),
                el("td", { class: "number" }, el("strong", {}, fixed(value, 2))),
              ]),
              cell(`±${fixed(byChance, 2)}`),
            ),
          ),
        ),
      ),
    ),
  ];
}

// What the marks, the lines and the colours stand for.
/** @type {(words: MapWord[], rows: { kind: string, name: string }[], operations: string[]) => HTMLElement} */
function legendOf(words, rows, operations) {
  const numbers = words.filter(({ value }) => value !== null);
  const mark = (/** @type {string} */ kind) =>
    svg(
      "svg",
      { class: `map-key ${kind}`, viewBox: "-14 -8 28 16", "aria-hidden": "true" },
      rows.some((row) => row.kind === kind) ? svg("path", { class: `map-line ${kind}`, d: "M-14 0H14" }) : null,
      svg("path", { class: "map-mark", d: MARKS[kind] }),
    );
  const kinds = ["ones", "teens", "tens"].filter((kind) => words.some((word) => word.kind === kind));
  const range = (/** @type {string} */ kind) => {
    const among = words.filter((word) => word.kind === kind);
    return among.length > 1 ? `${among[0].text} … ${among.at(-1).text}` : among[0].text;
  };
  const acting = words.some(({ kind, text }) => kind === "acting" && !operations.includes(text))
    ? "operations, hundred …"
    : "operations";
  return el(
    "p",
    { class: "legend" },
    kinds.map((kind) => el("span", {}, mark(kind), range(kind))),
    words.some(({ kind }) => kind === "acting") ? el("span", {}, mark("acting"), acting) : null,
    el("span", {}, numbers[0].text, el("i", { class: "map-ramp" }), numbers.at(-1).text),
  );
}

// The map itself. show() takes it to new places, and what is drawn follows in half a second.
/** @type {(figure: HTMLElement, words: MapWord[], operations: string[]) => { show: (state: MapState, isMoving: boolean) => void, isStale: () => boolean }} */
function drawingOf(figure, words, operations) {
  const rows = rowsOnMap(words);
  const grid = svg("g", { class: "map-grid", "aria-hidden": "true" });
  const lines = rows.map(({ kind }) => svg("path", { class: `map-line ${kind}` }));
  const titles = [svg("text", { "text-anchor": "end" }), svg("text", { x: 0, y: 12 })]; // of the axes
  const nodes = words.map((word, index) =>
    svg(
      "g",
      {
        class: `map-word ${word.kind}`,
        role: "option",
        "aria-selected": "false",
        tabindex: -1,
        onfocus: () => choose(index),
      },
      svg("path", { d: MARKS[word.kind], style: word.value === null ? {} : { fill: colourOnMap(words, word) } }),
      svg("text", { "text-anchor": "middle" }, labelOf(word)),
    ),
  );
  const root = svg(
    "svg",
    {
      class: "map",
      onpointermove: (/** @type {PointerEvent} */ event) => point(event),
      onpointerdown: (/** @type {PointerEvent} */ event) => point(event),
      onkeydown: (/** @type {KeyboardEvent} */ event) => move(event),
    },
    grid,
    svg("g", { class: "map-titles" }, titles),
    svg("g", { "aria-hidden": "true" }, lines),
    svg("g", { role: "listbox", "aria-label": "Words on the map; arrow keys go through them by value" }, nodes),
  );
  const readout = el(
    "p",
    { class: "readout", id: "map-word" },
    "Point at a word, or go through them with the arrow keys.",
  );
  figure.append(legendOf(words, rows, operations), root, readout);

  let chosen = -1;
  /** @type {MapState | null} */
  let state = null;
  let width = 0,
    height = 0;
  let request = 0;
  // x, y, and the label's dx, dy of each word; then the view's x, y and logarithm of scale
  /** @type {Row} */
  let drawn = new Float64Array(0);
  let wanted = drawn;

  const tell = (/** @type {number} */ index) => {
    const [x, y] = state?.places[index] ?? [0, 0];
    const { text, value } = words[index];
    return `${text}: ${value === null ? "" : `value ${value}, `}at ${fixed(x, 3)} on the first axis and ${fixed(y, 3)} on the second`;
  };
  const choose = (/** @type {number} */ index) => {
    if (index === chosen) return;
    chosen = index;
    nodes.forEach((node, i) => {
      node.setAttribute("aria-selected", String(i === index));
      node.setAttribute("tabindex", i === index ? 0 : -1);
    });
    readout.textContent = tell(index);
  };
  const point = (/** @type {PointerEvent} */ event) => {
    if (!drawn.length) return;
    const box = root.getBoundingClientRect();
    const distances = words.map((_, i) => {
      const [x, y] = pixels(drawn, i);
      return Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
    });
    const least = Math.min(...distances);
    if (least < REACH) choose(distances.indexOf(least));
  };
  const move = (/** @type {KeyboardEvent} */ event) => {
    /** @type {Record<string, number>} */
    const targets = {
      ArrowRight: chosen + 1,
      ArrowUp: chosen + 1,
      ArrowLeft: chosen - 1,
      ArrowDown: chosen - 1,
      Home: 0,
      End: words.length - 1,
    };
    const to = nodes[targets[event.key]];
    if (!to) return;
    event.preventDefault();
    to.focus();
  };
  /** @type {(vector: Float64Array, index: number) => [number, number]} */
  const pixels = (vector, index) => {
    const [x, y, scale] = vector.subarray(4 * words.length);
    const perUnit = Math.exp(scale);
    return [width / 2 + (vector[4 * index] - x) * perUnit, height / 2 - (vector[4 * index + 1] - y) * perUnit];
  };
  /** @type {(vector: Float64Array) => void} */
  const paint = (vector) => {
    const at = words.map((_, i) => pixels(vector, i));
    const view = 4 * words.length;
    if (vector.subarray(view).some((value, i) => value !== drawn[view + i]) || !grid.firstChild) paintGrid(vector);
    nodes.forEach((node, i) => {
      node.setAttribute("transform", `translate(${at[i][0].toFixed(2)} ${at[i][1].toFixed(2)})`);
      node.lastChild.setAttribute("x", vector[4 * i + 2].toFixed(2));
      node.lastChild.setAttribute("y", (vector[4 * i + 3] + 4).toFixed(2));
    });
    rows.forEach(({ words: among }, row) => {
      const through = among.map((word) => at[words.indexOf(word)].map((v) => v.toFixed(2)).join(" "));
      lines[row].setAttribute("d", `M${through.join("L")}`);
    });
    drawn = vector;
  };
  /** @type {(vector: Float64Array) => void} */
  const paintGrid = (vector) => {
    const [x, y, scale] = vector.subarray(4 * words.length);
    const perUnit = Math.exp(scale);
    const power = 10 ** Math.floor(Math.log10(70 / perUnit));
    const gap = power * ([1, 2, 5].find((n) => n * power * perUnit >= 70) ?? 10); // 70 pixels or more
    const digits = Math.max(0, -Math.floor(Math.log10(gap) + 1e-9));
    /** @type {(middle: number, size: number) => number[]} */
    const ticks = (middle, size) => {
      const from = Math.ceil((middle - size / 2 / perUnit) / gap);
      const to = Math.floor((middle + size / 2 / perUnit) / gap);
      return Array.from({ length: to - from + 1 }, (_, i) => (from + i) * gap);
    };
    grid.replaceChildren(
      ...ticks(x, width).map((tick) => {
        const at = width / 2 + (tick - x) * perUnit;
        return svg(
          "g",
          {},
          svg("line", { x1: at, x2: at, y1: 0, y2: height }),
          svg("text", { x: at + 3, y: height - 4 }, fixed(tick, digits)),
        );
      }),
      ...ticks(y, height - 40).map((tick) => {
        const at = height / 2 - (tick - y) * perUnit;
        return svg(
          "g",
          {},
          svg("line", { x1: 0, x2: width, y1: at, y2: at }),
          svg("text", { x: 3, y: at - 3 }, fixed(tick, digits)),
        );
      }),
    );
  };
  // What is to be drawn of a state.
  /** @type {(state: MapState) => Float64Array} */
  const vectorOf = ({ places, inView }) => {
    const [xs, ys] = [0, 1].map((axis) => inView.map((place) => place[axis]));
    const middle = (/** @type {number[]} */ values) => (Math.min(...values) + Math.max(...values)) / 2;
    const extent = (/** @type {number[]} */ values) => Math.max(Math.max(...values) - Math.min(...values), 1e-9);
    const perUnit = Math.min((width - 2 * MARGIN) / extent(xs), (height - 2 * MARGIN) / extent(ys));
    const vector = Float64Array.from([
      ...places.flatMap((place) => [...place, 0, 0]),
      middle(xs),
      middle(ys),
      Math.log(perUnit),
    ]);
    const labels = labelsBeside(
      places.map((_, i) => pixels(vector, i)),
      words.map((word) => 7.2 * labelOf(word).length),
      13,
    );
    labels.forEach((offset, i) => vector.set(offset, 4 * i + 2));
    return vector;
  };
  const tween = (/** @type {Float64Array} */ from, /** @type {Float64Array} */ to) => {
    cancelAnimationFrame(request);
    let last = NaN;
    let passed = 0;
    const tick = (/** @type {number} */ now) => {
      passed += Math.min(now - last || 0, 50); // after a hitch the words go on from where they were seen last
      last = now;
      const t = Math.min(passed / TWEEN_MS, 1);
      const eased = t * t * (3 - 2 * t);
      paint(t < 1 ? from.map((value, i) => value + eased * (to[i] - value)) : to);
      if (t < 1) request = requestAnimationFrame(tick);
    };
    request = requestAnimationFrame(tick);
  };
  return {
    show(next, isMoving) {
      state = next;
      const still = !drawn.length || !isMoving || matchMedia("(prefers-reduced-motion: reduce)").matches;
      if (figure.clientWidth !== width) {
        width = figure.clientWidth;
        height = Math.round(Math.min(Math.max(0.75 * width, 300), 560));
        root.setAttribute("viewBox", `0 0 ${width} ${height}`);
        titles[0].setAttribute("x", width);
        titles[0].setAttribute("y", height - 18);
        grid.replaceChildren();
      }
      titles[0].textContent = `first axis → (${shareOf(next.shares[0])} of the variance)`;
      titles[1].textContent = `↑ second axis (${shareOf(next.shares[1])} of the variance)`;
      const to = vectorOf(next);
      nodes.forEach((node, i) => node.setAttribute("aria-label", tell(i)));
      if (chosen < 0) nodes[0].setAttribute("tabindex", 0);
      else readout.textContent = tell(chosen);
      if (still) {
        cancelAnimationFrame(request);
        paint(to);
      } else if (to.some((value, i) => value !== wanted[i])) tween(drawn, to);
      wanted = to;
    },
    isStale: () => figure.clientWidth > 0 && figure.clientWidth !== width,
  };
}
