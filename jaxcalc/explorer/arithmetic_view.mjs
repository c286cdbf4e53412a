// The panel that shows a number as the sum that it is, beside the stage, or beside the table that it was opened from.

import { arithmeticOf } from "./arithmetic.mjs";
import { el } from "./dom.mjs";
import { percent, significant } from "./numbers.mjs";

// onall(asked) opens all numbers of a stage. open(asked, from) shows the panel, and focus goes back to `from`;
// follow(moment, scene) keeps it up to date.
/** @type {(stage: { root: SVGSVGElement, picks: any[] }, about: ArithmeticAbout, onall: (asked: Asked) => void) => { open: (asked: Asked, from?: HTMLElement) => void, follow: (moment: Moment, scene: string) => void }} */
export function arithmeticView(stage, about, onall) {
  const panel = /** @type {HTMLElement} */ (document.getElementById("arithmetic"));
  /** @type {Asked[]} */
  let trail = []; // from what was clicked to what is shown
  /** @type {HTMLElement | undefined} */
  let opener;
  /** @type {Moment} */
  let moment;
  let scene = "forward";

  const go = (/** @type {Asked[]} */ next) => {
    trail = next;
    draw();
    panel.querySelector("h2")?.focus();
  };
  const close = () => {
    panel.hidden = true;
    mark();
    const back = opener?.isConnected
      ? opener
      : (pickedNode(stage, trail[0]) ?? stage.root.querySelector("[data-pick]"));
    /** @type {HTMLElement} */ (back)?.focus();
  };
  // The thing on the stage whose number is shown has a frame.
  const mark = () => {
    for (const node of stage.root.querySelectorAll("[data-shown]")) node.removeAttribute("data-shown");
    if (!panel.hidden) pickedNode(stage, /** @type {Asked} */ (trail.at(-1)))?.setAttribute("data-shown", "");
  };
  const draw = () => {
    const focused = panel.contains(document.activeElement) ? document.activeElement : null;
    const key = focused instanceof HTMLElement ? focused.dataset.key : undefined;
    const asked = /** @type {Asked} */ (trail.at(-1));
    const { title, sums } = arithmeticOf(moment, asked, about);
    const sum = sums.find(({ name }) => name === asked.show) ?? sums.find((each) => each.scene === scene) ?? sums[0];
    const ask = (/** @type {Asked} */ next) => go([...trail, next]);
    const all = () => {
      panel.hidden = true;
      mark();
      onall(asked);
    };
    const show = (/** @type {Partial<Asked>} */ change) => {
      trail = [...trail.slice(0, -1), { ...asked, show: sum.name, ...change }];
      draw();
    };
    panel.replaceChildren(
      el(
        "div",
        { class: "bar" },
        el("h2", { id: "arithmetic-title", tabindex: -1, "data-key": "title" }, title),
        el("button", { type: "button", "aria-label": "Close", "data-key": "close", onclick: close }, "×"),
      ),
      el(
        "div",
        { class: "row", role: "group", "aria-label": "Which number" },
        trail.length > 1
          ? el("button", { type: "button", "data-key": "back", onclick: () => go(trail.slice(0, -1)) }, "← Back")
          : null,
        sums.map(({ name }) =>
          el(
            "button",
            {
              type: "button",
              class: "tab",
              "data-key": name,
              "aria-pressed": String(name === sum.name),
              onclick: () => show({ show: name }),
            },
            name,
          ),
        ),
      ),
      el("p", {}, sum.text),
      sum.dimension ? dimensionPicker(sum.dimension, (dimension) => show({ dimension })) : "",
      sum.terms.length ? sumTable(sum, ask) : "",
      asked.kind === "weight"
        ? ""
        : el(
            "button",
            { type: "button", "data-key": "all", onclick: all },
            asked.kind === "cell" ? "All numbers of the blame" : "All numbers of this stage",
          ),
    );
    const again = Array.from(panel.querySelectorAll("[data-key]")).find(
      (node) => node instanceof HTMLElement && node.dataset.key === key,
    );
    if (focused) /** @type {HTMLElement} */ (again ?? panel.querySelector("h2"))?.focus();
    mark();
  };

  /** @type {PointerEvent | null} */
  let pointer = null; // what was pressed last, if it was no key
  document.addEventListener("pointerdown", (event) => (pointer = event), { capture: true });
  document.addEventListener("keydown", () => (pointer = null), { capture: true });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || panel.hidden || document.querySelector(":popover-open")) return;
    const { target } = event;
    if (target instanceof Element && target.closest("input[type=text], select")) return;
    event.preventDefault();
    close();
  });
  // The buttons for a lesson move when the answer above them gets longer.
  const follows = new ResizeObserver(() => {
    if (panel.hidden) return;
    const edge = (/** @type {string} */ id) => document.getElementById(id).getBoundingClientRect().top;
    panel.style.setProperty("--top", `${Math.max(0, edge("lesson") - edge("theatre"))}px`);
  });
  for (const id of ["answer", "teach-panel"]) follows.observe(document.getElementById(id));
  return {
    open(asked, from) {
      const { activeElement: active } = document;
      opener = active instanceof HTMLElement && from?.contains(active) ? active : from;
      panel.hidden = false;
      place(panel, from?.getBoundingClientRect(), pointer);
      trail = [asked];
      draw();
      // Whoever clicks about in a matrix may go on there with the arrow keys.
      if (!(pointer && active?.matches("canvas"))) panel.querySelector("h2")?.focus();
    },
    follow(now, nowIn) {
      scene = { again: "forward", update: "backward" }[nowIn] ?? nowIn;
      if (moment === now) return panel.hidden || mark();
      moment = now;
      if (!panel.hidden) draw();
    },
  };
}

// The node on the stage of what was asked about, if it is drawn.
/** @type {(stage: { root: SVGSVGElement, picks: any[] }, asked: Asked) => Element | null} */
function pickedNode({ root, picks }, asked) {
  const same = ["kind", "stage", "position", "head", "from"];
  const index = picks.findIndex(
    (pick) =>
      same.every((key) => pick[key] === asked[/** @type {keyof Asked} */ (key)]) &&
      (asked.kind !== "bar" || pick.word === asked.word),
  );
  return root.querySelector(`[data-pick="${index}"]`);
}

// Beside the stage it stands below the buttons for a lesson. For a number further down it floats over the half of the
// window where the number is not.
/** @type {(panel: HTMLElement, box: DOMRect | undefined, pointer: PointerEvent | null) => void} */
function place(panel, box, pointer) {
  panel.classList.toggle("floating", Boolean(box));
  const y = pointer?.clientY ?? (box ? box.top + box.height / 2 : 0);
  panel.classList.toggle("above", Boolean(box) && y > innerHeight / 2);
}

/** @type {(dimension: { at: number, n: number }, onchange: (at: number) => void) => HTMLElement} */
function dimensionPicker({ at, n }, onchange) {
  const input = el("input", {
    type: "number",
    min: 0,
    max: n - 1,
    value: at,
    "data-key": "dimension",
    onchange: () => onchange(Math.min(Math.max(Math.round(Number(input.value)) || 0, 0), n - 1)),
  });
  return el("label", { class: "dimension" }, "number ", input, ` of 0 to ${n - 1}`);
}

/** @type {(value: number, unit?: "%") => string} */
const shown = (value, unit) => {
  if (!unit) return significant(value, 5);
  return value >= 0 && value <= 1 ? percent(value) : `${significant(100 * value, 3)}\u00a0%`;
};

// The terms, the rest and the total, and below it what follows from the total.
/** @type {(sum: Sum, ask: (asked: Asked) => void) => HTMLElement} */
function sumTable({ title, columns, terms, rest, total, unit, follows }, ask) {
  const isPlain = columns.length === 2; // each term is one number, with no product to show
  const width = columns.length + (isPlain ? 0 : 1);
  /** @type {(text: string, name: string, to: Asked | undefined, key: string) => HTMLElement} */
  const link = (text, name, to, key) =>
    to
      ? el(
          "button",
          {
            type: "button",
            class: "link",
            title: name,
            "aria-label": `${text}: ${name}`,
            "data-key": key,
            onclick: () => ask(to),
          },
          text,
        )
      : el("span", { title: name }, text);
  const span = Math.max(1, width - 2);
  /** @type {(label: string, value: string, kind?: string) => HTMLElement} */
  const line = (label, value, kind) =>
    el(
      "tr",
      { class: kind },
      el("th", { scope: "row", colspan: span }, label),
      el("td", { class: "number", colspan: width - span }, value),
    );
  return el(
    "div",
    {
      class: "scroll",
      tabindex: 0,
      role: "group",
      "aria-label": `${title}, a table that may scroll`,
      "data-key": "table",
    },
    el(
      "table",
      { "aria-label": title },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map((name, i) =>
            el(
              i || name ? "th" : "td",
              i ? { scope: "col", class: "number" } : { scope: name ? "col" : null },
              i > 1 ? `×\u00a0${name}` : name,
            ),
          ),
          isPlain
            ? null
            : el("th", { scope: "col", class: "number" }, columns.length > 2 ? "product" : unit || "value"),
        ),
      ),
      el(
        "tbody",
        {},
        terms.map(({ label, factors, value, to }, row) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, link(label, to ? "go to this weight" : label, to, `${row}`)),
            columns.slice(1).map((_, i) => {
              const factor = factors[i];
              const text = factor ? significant(factor.value, isPlain ? 5 : 3) : "";
              return el("td", { class: "number" }, factor ? link(text, factor.name, factor.to, `${row} ${i}`) : "");
            }),
            isPlain ? null : el("td", { class: "number" }, significant(value, 3)),
          ),
        ),
        rest ? line(`${rest.n.toLocaleString("en-US")} more`, significant(rest.value, isPlain ? 5 : 3)) : null,
      ),
      el(
        "tfoot",
        {},
        line(`= ${title}${unit && `, ${unit}`}`, shown(total), "total"),
        follows.map(([label, value, unit]) => line(label, shown(value, unit), "follows")),
      ),
    ),
  );
}
