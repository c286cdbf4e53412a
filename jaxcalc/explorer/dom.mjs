// Elements, help, numbers and small charts. Text is only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) node.style.setProperty(key, to);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

// A "?" that opens a short explanation.
export function what(title, text) {
  const open = () => {
    const help = document.getElementById("help");
    help.replaceChildren(el("h3", {}, title), ...text.split("\n").map((line) => el("p", {}, line)));
    help.showPopover();
  };
  return el(
    "button",
    { type: "button", class: "what", "aria-label": `What is this? ${title}`, title: "What is this?", onclick: open },
    "?",
  );
}

// A part of the page: its heading, a caption, and a body that is made anew on each change.
export function part(id, title, caption, help) {
  const body = el("div");
  const heading = el("h2", {}, title, help ? what(title, help) : null);
  const node = el("section", { id, "aria-label": title }, heading, el("p", { class: "caption" }, caption), body);
  document.getElementById("main").append(node);
  return body;
}

// A share as a percentage that rounds nothing to 0 or 100 that is not.
export function percent(share) {
  if (share === 0 || share === 1) return `${share * 100}\u00a0%`;
  return share < 1e-4 ? "<0.01\u00a0%" : `${Math.min(share * 100, 99.99).toFixed(2)}\u00a0%`;
}

export function significant(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const isPlain = size >= 1e-3 && size < 1e5;
  const text = isPlain ? String(Number(size.toPrecision(digits))) : size.toExponential(digits - 1).replace("e+", "e");
  return value < 0 ? `−${text}` : text;
}

// Blue for positive and red for negative, as strong as the value; transparent at 0, so it suits light and dark.
export function signed(value, most) {
  const strength = most ? Math.min(Math.abs(value) / most, 1) : 0;
  return `rgba(${value < 0 ? "220, 62, 54" : "48, 116, 214"}, ${(0.06 + 0.94 * strength ** 0.7) * (value !== 0)})`;
}

// Rows of [name, cells…] of numbers, each cell shaded by its share of the largest.
export function heatTable(label, columns, rows, format = (value) => significant(value, 3)) {
  const most = Math.max(...rows.flatMap(([, ...cells]) => cells));
  const cell = (value) =>
    el(
      "td",
      { class: "heat", style: { background: `rgba(48, 116, 214, ${most ? (0.55 * value) / most : 0})` } },
      format(value),
    );
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { "aria-label": label },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", {}, ""),
          columns.map((name) => el("th", { class: "number", scope: "col" }, name)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map(cell))),
      ),
    ),
  );
}

// Rows of [name, value, text, button attributes]; bars go from 0, to the left where a value is negative.
export function bars(label, rows) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-300);
  const anyNegative = rows.some(([, value]) => value < 0);
  const zero = anyNegative ? 50 : 0,
    span = anyNegative ? 50 : 100;
  return el(
    "div",
    { class: "bars", role: "group", "aria-label": label },
    rows.map(([name, value, text, button]) => {
      const width = (span * Math.abs(value)) / most;
      const bar = el("i", {
        class: value < 0 ? "minus" : null,
        style: { left: `${value < 0 ? zero - width : zero}%`, width: `${width}%` },
      });
      return [
        button ? el("button", { type: "button", ...button }, name) : el("span", {}, name),
        el("span", { class: "track" }, bar),
        el("span", {}, text),
      ];
    }),
  );
}

// A chart of lines. x and y are {from, to, log, ticks}; lines are {points: [[x, y]], class}; marks go on top.
export function chart(
  label,
  x,
  y,
  lines,
  { width = Math.min(520, document.body.clientWidth - 60), height = 170, marks = () => [], onclick } = {},
) {
  const left = 46,
    right = 8,
    top = 8,
    bottom = 22;
  const place = ({ from, to, log }, value, low, high) => {
    const f = log ? (v) => Math.log(v) : (v) => v;
    return low + ((f(value) - f(from)) / (f(to) - f(from))) * (high - low);
  };
  const atX = (value) => place(x, value, left, width - right);
  const atY = (value) =>
    place(y, Math.min(Math.max(value, Math.min(y.from, y.to)), Math.max(y.from, y.to)), height - bottom, top);
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
    node.addEventListener("click", (event) => {
      const box = node.getBoundingClientRect();
      onclick((value) => Math.abs(atX(value) - ((event.clientX - box.left) / box.width) * width));
    });
  }
  return node;
}

// A grid of cells on a canvas: colour(row, column) → CSS colour or null; the chosen cell has a frame. Arrow keys move
// it, Enter and a click pick it.
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
    if (chosen()) {
      const [r, c] = chosen();
      pen.lineWidth = 2;
      pen.strokeStyle = getComputedStyle(node).color;
      pen.strokeRect(c * size - 1, r * size - 1, size + 2, size + 2);
    }
  };
  const at = (event) => {
    const box = node.getBoundingClientRect();
    const clamp = (value, n) => Math.min(Math.max(Math.floor(value), 0), n - 1);
    return [
      clamp(((event.clientY - box.top) / box.height) * rows, rows),
      clamp(((event.clientX - box.left) / box.width) * columns, columns),
    ];
  };
  node.addEventListener("pointermove", (event) => onmove?.(...at(event)));
  node.addEventListener("click", (event) => onpick(...at(event), true));
  node.addEventListener("keydown", (event) => {
    const [r, c] = chosen() ?? [0, 0];
    const to = {
      ArrowUp: [r - 1, c],
      ArrowDown: [r + 1, c],
      ArrowLeft: [r, c - 1],
      ArrowRight: [r, c + 1],
      Enter: [r, c],
    }[event.key];
    if (!to || to[0] < 0 || to[1] < 0 || to[0] >= rows || to[1] >= columns) return;
    event.preventDefault();
    onpick(...to, event.key === "Enter");
  });
  draw();
  return { node, draw };
}

// The words of most probability, or of most error: indices by falling size, the first n.
export const likeliest = (sizes, n = 8) =>
  Array.from(sizes.keys())
    .sort((a, b) => sizes[b] - sizes[a])
    .slice(0, n);
