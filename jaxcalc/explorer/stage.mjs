// The stage: the network drawn as token columns and levels, and the five scenes played on it.

import { svg } from "./dom.mjs";
import { factsOf, shownWords } from "./facts.mjs";
import { layoutOf } from "./layout.mjs";
import { frameOf } from "./scenes.mjs";
import { drawMargin, drawOutput, drawSummary } from "./stage_numbers.mjs";
import { drawNetwork } from "./stage_network.mjs";

const LEAST_STAGE_HEIGHT = 420;
/** @type {Record<string, [number, number]>} */
const ARROW_WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let nStages = 0;

// new Stage(container, {words, onpick}).show(moment, {scene, t, before}) draws one moment. It is drawn anew only if the
// moment or the size changes; from frame to frame only attributes change. onpick gets {kind, stage, position, head, word}.
export class Stage {
  /**
   * @param {HTMLElement} container
   * @param {{ words: string[], onpick?: (what: Picked) => void }} options
   */
  constructor(container, { words, onpick = () => {} }) {
    this.container = container;
    this.words = words;
    this.id = `stage${++nStages}`;
    /** @type {((frame: Frame) => void)[]} */
    this.updates = [];
    /** @type {Picked[]} */
    this.picks = [];
    /** @type {Parameters<Stage["show"]> | null} */
    this.shown = null;
    /** @type {unknown[] | null} */
    this.drawn = null;
    this.nLevels = 0;
    /** @type {SVGSVGElement} */
    this.root = svg("svg", {
      class: "stage",
      role: "group",
      "aria-label": "The network",
      "aria-describedby": "caption",
    });
    container.append(this.root);
    this.root.addEventListener("click", (event) => {
      const node = pickedBy(event);
      if (node) onpick(this.picks[Number(node.dataset.pick)]);
    });
    this.root.addEventListener("keydown", (event) => this.#move(event, onpick));
    new ResizeObserver(() => this.shown && this.show(...this.shown)).observe(container);
  }

  /** @type {(moment: Moment, shown?: Shown) => void} */
  show(moment, { scene = "forward", t = 1, before = null } = {}) {
    this.shown = [moment, { scene, t, before }];
    const { clientWidth: width, clientHeight: height } = this.container;
    if (!width) return; // not on the page yet
    const seen = scene === "again" ? (before ?? moment) : null;
    const is = [moment, seen, width, height];
    const { drawn } = this;
    if (!drawn || is.some((value, i) => value !== drawn[i])) {
      this.drawn = is;
      this.#draw(moment, seen, width, Math.max(height, LEAST_STAGE_HEIGHT));
    }
    const frame = frameOf(scene, t, this.nLevels);
    for (const update of this.updates) update(frame);
    this.root.dataset.scene = scene;
  }

  /** @type {(moment: Moment, before: Moment | null, width: number, height: number) => void} */
  #draw(moment, before, width, height) {
    const facts = factsOf(moment);
    const past = before && factsOf(before);
    const rows = shownWords(past ?? facts);
    const sizes = { width, names: facts.names, nColumns: facts.tokens.length, nBars: rows.length };
    const layout = layoutOf({ ...sizes, height });
    this.container.style.setProperty("min-height", `${layoutOf({ ...sizes, height: 0 }).height}px`);
    this.nLevels = facts.names.length;
    this.updates = [];
    this.picks = [];
    /** @type {Drawing} */
    const drawing = {
      layout,
      facts,
      past,
      rows,
      words: this.words,
      id: this.id,
      on: on(this.updates),
      pick: pick(this.picks),
    };
    this.root.setAttribute("viewBox", `0 0 ${layout.width} ${layout.height}`);
    this.root.style.setProperty("height", `${layout.height}px`);
    this.root.classList.toggle("narrow", !layout.isWide);
    this.root.classList.toggle("tiny", width < 360);
    this.root.replaceChildren(drawNetwork(drawing), drawMargin(drawing), drawOutput(drawing), drawSummary(drawing));
    const [first] = this.root.querySelectorAll("[data-pick]");
    first?.setAttribute("tabindex", "0");
  }

  // The stage is one stop of the Tab key; the arrow keys go from box to box, and Enter picks.
  /** @type {(event: KeyboardEvent, onpick: (what: Picked) => void) => void} */
  #move(event, onpick) {
    const node = pickedBy(event);
    if (!node) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      onpick(this.picks[Number(node.dataset.pick)]);
    }
    const way = ARROW_WAYS[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    /** @type {NodeListOf<SVGElement>} */
    const others = this.root.querySelectorAll(".pickable");
    const next = nearest(node, others, way);
    if (!next) return;
    node.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  }
}

// The thing on the stage that an event is about, if it can be picked.
/** @type {(event: Event) => SVGElement | null} */
const pickedBy = ({ target }) => (target instanceof Element ? target.closest("[data-pick]") : null);

// The nearest other node in one direction.
/** @type {(node: SVGElement, nodes: NodeListOf<SVGElement>, way: [number, number]) => SVGElement | null} */
function nearest(node, nodes, [dx, dy]) {
  const middle = (/** @type {SVGElement} */ other) => {
    const { left, top, width, height } = other.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
  };
  const [x, y] = middle(node);
  const ways = Array.from(nodes, (other) => {
    const [ox, oy] = middle(other);
    const along = (ox - x) * dx + (oy - y) * dy,
      aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
    return { other, far: along > 1 ? along + 3 * aside : Infinity };
  }).sort((a, b) => a.far - b.far);
  return ways[0]?.far < Infinity ? ways[0].other : null;
}

// on(node, attribute, f): in every frame the attribute is f(frame), and it is only touched when that changes.
/** @type {(updates: ((frame: Frame) => void)[]) => Drawing["on"]} */
const on = (updates) => (node, attribute, f) => {
  /** @type {string | undefined} */
  let last;
  updates.push((frame) => {
    const value = String(f(frame));
    if (value === last) return;
    last = value;
    if (attribute === "text") node.textContent = value;
    else node.setAttribute(attribute, value);
  });
  return node;
};

// pick(what, label): the attributes of a node that can be picked.
/** @type {(picks: Picked[]) => Drawing["pick"]} */
const pick = (picks) => (what, label) => {
  picks.push(what);
  return { "data-pick": picks.length - 1, class: "pickable", tabindex: -1, role: "button", "aria-label": label };
};

// A picture of the stage as it is now, with its style, as the text of an SVG file.
/** @type {(root: SVGSVGElement) => string} */
export function pictureOf(root) {
  const copy = /** @type {SVGSVGElement} */ (root.cloneNode(true));
  const css = document.querySelector("style")?.textContent ?? "";
  const styles = getComputedStyle(root);
  const names = new Set(Array.from(css.matchAll(/--[\w-]+/g), ([name]) => name));
  for (const name of names) copy.style.setProperty(name, styles.getPropertyValue(name));
  // A file knows nothing of the page's own choice of light or dark.
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  copy.style.setProperty("color-scheme", document.documentElement.dataset.theme ?? (isDark ? "dark" : "light"));
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const { width, height } = root.getBoundingClientRect();
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  copy.prepend(svg("style", {}, css), svg("rect", { width: "100%", height: "100%", fill: "var(--card)" }));
  return new XMLSerializer().serializeToString(copy);
}
