// Numbers as shaded tables, bars, lines and grids of cells.

import { el, svg } from "./dom.mjs";
import { significant } from "./numbers.mjs";

// Blue for a positive and red for a negative value; 0 is transparent, which suits a light and a dark page.
/** @type {(value: number, most: number) => Colour} */
export function signed(value, most) {
  const strength = most ? Math.min(Math.abs(value) / most, 1) : 0;
  const alpha = value && 0.06 + 0.94 * strength ** 0.7;
  return value < 0 ? [220, 62, 54, alpha] : [48, 116, 214, alpha];
}

// Rows of [name, cells…] of numbers, each cell shaded by its share of the largest. onpick(name, column, cell) is for a
// click on a cell.
/** @type {(label: string, columns: string[], rows: [string, ...number[]][], onpick: (name: string, column: number, cell: HTMLElement) => void, format?: (value: number) => string) => HTMLElement} */
export function heatTable(
  label,
  columns,
  rows,
  onpick,
  format = (/** @type {number} */ value) => significant(value, 3),
) {
  const most = Math.max(...rows.flatMap(([, ...cells]) => cells));
  const cell = (/** @type {string} */ name, /** @type {number} */ value, /** @type {number} */ column) => {
    const button = el("button", { type: "button", class: "cell", onclick: () => onpick(name, column, button) });
    button.append(format(value));
    return el(
      "td",
      { class: "heat", style: { "--heat": `rgba(48, 116, 214, ${most ? (0.55 * value) / most : 0})` } },
      button,
    );
  };
  return el(
    "div",
    { class: "scroll heat-table", tabindex: 0, role: "group", "aria-label": `${label}, a table that may scroll` },
    el(
      "table",
      { "aria-label": label },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "stage"),
          columns.map((name) => el("th", { class: "number", scope: "col" }, name)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map(([name, ...cells]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, name),
            cells.map((value, column) => cell(name, value, column)),
          ),
        ),
      ),
    ),
  );
}

// Rows of [name, value, text]; a bar starts at 0 and goes to the left if its value is negative.
/** @type {(label: string, rows: [string, number, string][]) => HTMLElement} */
export function bars(label, rows) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-300);
  const anyNegative = rows.some(([, value]) => value < 0);
  const zero = anyNegative ? 50 : 0,
    span = anyNegative ? 50 : 100;
  return el(
    "div",
    { class: "bars", role: "group", "aria-label": label },
    rows.map(([name, value, text]) => {
      const width = (span * Math.abs(value)) / most;
      const bar = el("i", {
        class: value < 0 ? "minus" : null,
        style: { left: `${value < 0 ? zero - width : zero}%`, width: `${width}%` },
      });
      return [el("span", {}, name), el("span", { class: "track" }, bar), el("span", {}, text)];
    }),
  );
}

const EDGE = 30; // pixels; a tick nearer to the right end has its text on its left

// A chart of lines, drawn at the width that it has on the page, and anew when that changes: so its text keeps its size. x
// and y are {from, to, log, ticks}; lines are {points: [[x, y]], class, style}; marks(atX, atY) go on top. onclick gets a
// function: the distance in pixels from the click to a value of x.
/** @type {(label: string, x: Axis, y: Axis, lines: Line[], options?: ChartOptions) => SVGSVGElement} */
export function chart(label, x, y, lines, { height = 170, marks = () => [], onclick } = {}) {
  const node = svg("svg", { class: "chart", role: "img", "aria-label": label });
  node.style.setProperty("height", `${height}px`);
  const left = 52,
    right = 8,
    top = 8,
    bottom = 22;
  let width = 0;
  /** @type {(axis: Axis, value: number, low: number, high: number) => number} */
  const place = ({ from, to, log }, value, low, high) => {
    const f = log ? Math.log : Number;
    return low + ((f(value) - f(from)) / (f(to) - f(from))) * (high - low);
  };
  /** @type {Place} */
  const atX = (value) => place(x, value, left, width - right);
  /** @type {Place} */
  const atY = (value) =>
    place(y, Math.min(Math.max(value, Math.min(y.from, y.to)), Math.max(y.from, y.to)), height - bottom, top);
  /** @type {(points: [number, number][]) => string} */
  const path = (points) =>
    points.map(([a, b], i) => `${i ? "L" : "M"}${atX(a).toFixed(1)} ${atY(b).toFixed(1)}`).join("");
  /** @type {(tick: [number, string]) => SVGElement} */
  const below = ([value, text]) =>
    atX(value) > width - EDGE
      ? svg("text", { x: width, y: height - 6, "text-anchor": "end" }, text)
      : svg("text", { x: atX(value), y: height - 6, "text-anchor": "middle" }, text);
  new ResizeObserver(() => {
    if (!node.clientWidth || node.clientWidth === width) return;
    width = node.clientWidth;
    node.setAttribute("viewBox", `0 0 ${width} ${height}`);
    node.replaceChildren(
      ...[
        y.ticks.map(([value, text]) => [
          svg("line", { class: "axis", x1: left, x2: width - right, y1: atY(value), y2: atY(value) }),
          svg("text", { x: left - 5, y: atY(value) + 4, "text-anchor": "end" }, text),
        ]),
        x.ticks.map(below),
        lines.map((line) => svg("path", { class: line.class, style: line.style, d: path(line.points) })),
        marks(atX, atY),
      ]
        .flat(Infinity)
        .filter(Boolean),
    );
  }).observe(node);
  if (onclick) {
    node.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      const box = node.getBoundingClientRect();
      onclick((value) => Math.abs(atX(value) - ((event.clientX - box.left) / box.width) * width));
    });
  }
  return node;
}

const FRAME = 2; // pixels; the frame of the chosen cell

// The frame around a cell, [x, y, side], moved where it would leave the canvas: it is nowhere clipped.
/** @type {(row: number, column: number, size: number, width: number, height: number) => [number, number, number, number]} */
export function frameAround(row, column, size, width, height) {
  const side = Math.min(size + 2 * FRAME, width, height);
  const at = (/** @type {number} */ cell, /** @type {number} */ end) =>
    Math.min(Math.max(cell * size - FRAME, 0), end - side);
  return [at(column, width), at(row, height), side, side];
}

// A picture with one pixel for each cell.
/** @type {(rows: number, columns: number, colour: GridOptions["colour"]) => HTMLCanvasElement} */
function pictureOfCells(rows, columns, colour) {
  const picture = el("canvas", { width: columns, height: rows });
  const pixels = new ImageData(columns, rows);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const [red, green, blue, alpha] = colour(r, c) ?? [0, 0, 0, 0];
      pixels.data.set([red, green, blue, 255 * alpha], 4 * (r * columns + c));
    }
  }
  picture.getContext("2d").putImageData(pixels, 0, 0);
  return picture;
}

// A grid of cells on a canvas: colour(row, column) → [red, green, blue, alpha] or null; the chosen cell has a frame. A click or an arrow
// key picks a cell: onpick(row, column, asks), where asks is true for a click and for Enter. shape() says how many rows
// and columns there are, and sizeIn(width) how large a cell is in a place of that width. It draws itself anew when its place,
// the theme or the sharpness of the screen changes; draw() is for other changes.
/** @type {(options: GridOptions) => { node: HTMLElement, draw: () => void }} */
export function cellGrid({ shape, sizeIn, label, colour, chosen, onmove, onpick }) {
  const canvas = el("canvas", { tabindex: 0, role: "application" });
  const node = el("div", { class: "scroll cells" }, canvas);
  const pen = canvas.getContext("2d");
  const draw = () => {
    if (!node.clientWidth) return; // not on the page yet
    const { rows, columns } = shape();
    const size = sizeIn(node.clientWidth - 2);
    const [width, height] = [columns * size, rows * size];
    canvas.setAttribute("aria-label", label());
    canvas.style.setProperty("width", `${width}px`);
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(pictureOfCells(rows, columns, colour), 0, 0, canvas.width, canvas.height);
    const place = chosen();
    if (!place) return;
    // A dark line and a light one, so that it is seen on every cell and in every theme.
    const styles = getComputedStyle(canvas);
    const [x, y, w, h] = frameAround(place[0], place[1], size, width, height);
    pen.scale(devicePixelRatio, devicePixelRatio);
    pen.lineWidth = FRAME;
    pen.strokeStyle = styles.color;
    pen.strokeRect(x + 1, y + 1, w - 2, h - 2);
    pen.lineWidth = 1;
    pen.strokeStyle = styles.backgroundColor;
    if (w > 8) pen.strokeRect(x + 2.5, y + 2.5, w - 5, h - 5);
    pen.resetTransform();
  };
  new ResizeObserver(draw).observe(node);
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"])
    matchMedia(query).addEventListener("change", draw);
  const followScreen = () =>
    matchMedia(`(resolution: ${devicePixelRatio}dppx)`).addEventListener(
      "change",
      () => {
        draw();
        followScreen();
      },
      { once: true },
    );
  followScreen();
  /** @type {(event: MouseEvent) => [number, number]} */
  const cellUnder = (event) => {
    const { rows, columns } = shape();
    const box = canvas.getBoundingClientRect();
    /** @type {(value: number, n: number) => number} */
    const clamp = (value, n) => Math.min(Math.max(Math.floor(value), 0), n - 1);
    return [
      clamp(((event.clientY - box.top) / box.height) * rows, rows),
      clamp(((event.clientX - box.left) / box.width) * columns, columns),
    ];
  };
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => onmove?.(...cellUnder(event)));
  canvas.addEventListener("click", (/** @type {MouseEvent} */ event) => onpick(...cellUnder(event), true));
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const { rows, columns } = shape();
    const [r, c] = chosen() ?? [0, 0];
    /** @type {Record<string, [number, number]>} */
    const targets = {
      ArrowUp: [r - 1, c],
      ArrowDown: [r + 1, c],
      ArrowLeft: [r, c - 1],
      ArrowRight: [r, c + 1],
      Enter: [r, c],
    };
    const to = targets[event.key];
    if (!to || to[0] < 0 || to[1] < 0 || to[0] >= rows || to[1] >= columns) return;
    event.preventDefault();
    onpick(...to, event.key === "Enter");
  });
  return { node, draw };
}
