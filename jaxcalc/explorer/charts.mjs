// Numbers as shaded tables, bars, lines and grids of cells.

import { el, svg } from "./dom.mjs";
import { significant } from "./numbers.mjs";

// Blue for a positive and red for a negative value; 0 is transparent, which suits a light and a dark page.
/** @type {(value: number, most: number) => string} */
export function signed(value, most) {
  const strength = most ? Math.min(Math.abs(value) / most, 1) : 0;
  return `rgba(${value < 0 ? "220, 62, 54" : "48, 116, 214"}, ${value && 0.06 + 0.94 * strength ** 0.7})`;
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
      { class: "heat", style: { background: `rgba(48, 116, 214, ${most ? (0.55 * value) / most : 0})` } },
      button,
    );
  };
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": `${label}, a table that may scroll` },
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

// A chart of lines. x and y are {from, to, log, ticks}; lines are {points: [[x, y]], class}; marks(atX, atY) go on top.
// onclick gets a function: the distance in pixels from the click to a value of x.
/** @type {(label: string, x: Axis, y: Axis, lines: Line[], options?: ChartOptions) => SVGSVGElement} */
export function chart(label, x, y, lines, options = {}) {
  const { width = Math.min(520, document.body.clientWidth - 60), height = 170, marks = () => [], onclick } = options;
  const left = 46,
    right = 8,
    top = 8,
    bottom = 22;
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
  const node = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    y.ticks.map(([value, text]) => [
      svg("line", { class: "axis", x1: left, x2: width - right, y1: atY(value), y2: atY(value) }),
      svg("text", { x: left - 5, y: atY(value) + 4, "text-anchor": "end" }, text),
    ]),
    x.ticks.map(([value, text]) => svg("text", { x: atX(value), y: height - 6, "text-anchor": "middle" }, text)),
    lines.map((line) => svg("path", { class: line.class, d: path(line.points) })),
    marks(atX, atY),
  );
  if (onclick) {
    node.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      const box = node.getBoundingClientRect();
      onclick((value) => Math.abs(atX(value) - ((event.clientX - box.left) / box.width) * width));
    });
  }
  return node;
}

// A grid of cells on a canvas: colour(row, column) → CSS colour or null; the chosen cell has a frame. A click or an arrow
// key picks a cell: onpick(row, column, asks), where asks is true for a click and for Enter.
/** @type {(options: GridOptions) => { node: HTMLCanvasElement, draw: () => void }} */
export function cellGrid({ rows, columns, size, label, colour, chosen, onmove, onpick }) {
  const node = el("canvas", {
    width: columns * size,
    height: rows * size,
    tabindex: 0,
    role: "application",
    "aria-label": label,
  });
  const pen = node.getContext("2d");
  const draw = () => {
    pen.clearRect(0, 0, node.width, node.height);
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const fillStyle = colour(r, c);
        if (!fillStyle) continue;
        pen.fillStyle = fillStyle;
        pen.fillRect(c * size, r * size, size, size);
      }
    }
    const place = chosen();
    if (place) {
      const [r, c] = place;
      pen.lineWidth = 2;
      pen.strokeStyle = getComputedStyle(node).color;
      pen.strokeRect(c * size - 1, r * size - 1, size + 2, size + 2);
    }
  };
  /** @type {(event: MouseEvent) => [number, number]} */
  const cellUnder = (event) => {
    const box = node.getBoundingClientRect();
    /** @type {(value: number, n: number) => number} */
    const clamp = (value, n) => Math.min(Math.max(Math.floor(value), 0), n - 1);
    return [
      clamp(((event.clientY - box.top) / box.height) * rows, rows),
      clamp(((event.clientX - box.left) / box.width) * columns, columns),
    ];
  };
  node.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => onmove?.(...cellUnder(event)));
  node.addEventListener("click", (/** @type {MouseEvent} */ event) => onpick(...cellUnder(event), true));
  node.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
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
  draw();
  return { node, draw };
}
