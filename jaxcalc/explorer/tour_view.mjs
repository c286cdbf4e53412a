// The card of the tour and its rings. It is not modal: everything on the page can be used meanwhile.

import { el } from "./dom.mjs";
import { placeCard, scrollFor, STOPS, tourFacts } from "./tour.mjs";
import { indexOfScene } from "./transport.mjs";

const RING = 5; // pixels between a thing and its ring
const KEPT_CLEAR = ["header", ".reply", "#age", "#teach-panel", "#stage", "#transport", "#chips", "#ask", "#broken"];

export class Tour {
  // onmove is called when the stop changes or the tour ends.
  /** @param {{ app: App, transport: import("./transport.mjs").Transport, onmove: () => void }} page */
  constructor({ app, transport, onmove }) {
    this.app = app;
    this.transport = transport;
    this.onmove = onmove;
    /** @type {{ focus: () => void } | null} */
    this.cameFrom = null;
    /** @type {(name: string, label: string, onclick: () => void) => HTMLButtonElement} */
    const button = (name, label, onclick) => el("button", { type: "button", id: `tour-${name}`, onclick }, label);
    this.count = el("p", { class: "faint", id: "tour-count" });
    this.heading = el("h2", { id: "tour-title", tabindex: -1, "aria-describedby": "tour-count tour-says" });
    this.says = el("div", { id: "tour-says" });
    this.back = button("back", "Back", () => this.go(this.stop - 1));
    this.next = button("next", "Next", () => (this.stop < STOPS.length ? this.go(this.stop + 1) : this.end()));
    this.skip = button("skip", "Skip", () => this.end());
    this.card = el(
      "div",
      { id: "tour", role: "dialog", "aria-labelledby": "tour-title", hidden: true },
      el("div", { class: "row" }, this.count, this.skip),
      this.heading,
      this.says,
      el("div", { class: "row" }, this.back, this.next),
    );
    this.next.classList.add("primary");
    this.rings = el("div", { id: "tour-rings", "aria-hidden": "true" });
    this.opener = button("start", "Take the tour", () => this.start());
    document.getElementById("theme").before(this.opener);
    document.querySelector("header")?.after(this.card);
    document.body.append(this.rings);
    this.narrow = matchMedia("(max-width: 860px)");
    this.card.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.stop || document.querySelector(":popover-open, dialog[open]")) return;
      event.preventDefault();
      this.end();
    });
    document.getElementById("tab-live").addEventListener("click", () => this.end(false));
    new ResizeObserver(() => this.#place()).observe(document.body);
    addEventListener("resize", () => this.#place());
  }

  // Counted from 1; 0 without a tour.
  get stop() {
    return this.app.tour ?? 0;
  }

  start() {
    this.cameFrom = this.opener;
    this.go(1);
  }

  // Shows a stop, counted from 1. Its scene is played, unless the stage is to stay as it is.
  /** @type {(stop: number, plays?: boolean) => Promise<void>} */
  async go(stop, plays = true) {
    if (stop < 1 || stop > STOPS.length) return;
    this.app.tour = stop;
    document.body.classList.add("touring");
    const scene = indexOfScene(STOPS[stop - 1].scene);
    if (plays) this.transport.play(scene ? this.transport.endOf(scene - 1) : 0, this.transport.endOf(scene));
    await this.#write();
    if (this.stop !== stop) return;
    this.#place();
    this.#scroll();
    this.#place();
    this.heading.focus({ preventScroll: true });
    this.onmove();
  }

  // Ends the tour; the focus goes back to where it came from.
  end(returnsFocus = true) {
    if (!this.stop) return;
    this.app.tour = null;
    document.body.classList.remove("touring");
    this.card.hidden = true;
    this.rings.replaceChildren();
    if (returnsFocus) (this.cameFrom ?? this.opener).focus();
    this.onmove();
  }

  // Writes the card anew after a change of the page.
  async update() {
    if (!this.stop) return;
    await this.#write();
    requestAnimationFrame(() => this.#place()); // the stage is drawn first
  }

  async #write() {
    const { app } = this;
    const untrained = await app.paramsOf(0);
    if (!this.stop) return;
    const seen = tourFacts(app, { first: app.answer(app.parsed, untrained).words, answer: app.answer().words });
    const { title, says } = STOPS[this.stop - 1];
    this.count.textContent = `Stop ${this.stop} of ${STOPS.length}`;
    this.heading.textContent = title;
    this.says.replaceChildren(
      ...says(seen)
        .filter(Boolean)
        .map((sentence) => el("p", {}, sentence)),
    );
    this.back.disabled = this.stop === 1;
    this.next.textContent = this.stop < STOPS.length ? "Next" : "Done";
    this.card.hidden = false;
  }

  // What the stop points at: one box for each ring, in the window.
  #targets() {
    return STOPS[this.stop - 1].at.map((selector) => boxAround(document.querySelectorAll(selector))).filter(isBox);
  }

  // Puts the rings around what the stop points at, and the card beside it.
  #place() {
    if (!this.stop || this.card.hidden) return;
    const targets = this.#targets();
    this.rings.replaceChildren(
      ...targets.map(({ left, top, right, bottom }) =>
        el("i", {
          style: pixels({
            ...offset(left - RING, top - RING),
            width: right - left + 2 * RING,
            height: bottom - top + 2 * RING,
          }),
        }),
      ),
    );
    const { width, height } = this.card.getBoundingClientRect();
    const others = KEPT_CLEAR.map((selector) => boxAround(document.querySelectorAll(selector))).filter(isBox);
    const view = { left: 0, top: 0, right: document.documentElement.clientWidth, bottom: innerHeight };
    const isFramed = parent !== window; // as high as the page, so its lower end may be far away
    const place = this.narrow.matches && !isFramed ? null : placeCard({ card: [width, height], view, targets, others });
    this.card.classList.toggle("sheet", !place);
    for (const [key, value] of Object.entries(place ? pixels(offset(place.left, place.top)) : { left: "", top: "" }))
      this.card.style.setProperty(key, value);
  }

  #scroll() {
    const targets = this.#targets();
    if (!targets.length) return;
    const isSheet = this.card.classList.contains("sheet");
    const end = isSheet ? this.card.getBoundingClientRect().top : innerHeight;
    scrollBy(0, scrollFor(targets[0], 2 * RING, end - 2 * RING));
  }

  // Within the card the arrow keys go from stop to stop; elsewhere they move the transport.
  /** @type {(event: KeyboardEvent) => void} */
  #key(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.go(this.stop + way);
  }
}

/** @type {(left: number, top: number) => { left: number, top: number }} */
const offset = (left, top) => ({ left: left + scrollX, top: top + scrollY });

/** @type {(sizes: Record<string, number>) => Record<string, string>} */
const pixels = (sizes) => Object.fromEntries(Object.entries(sizes).map(([key, value]) => [key, `${value}px`]));

/** @type {(box: Box | null) => box is Box} */
const isBox = (box) => box !== null;

// The box around all elements that are seen; null if none is.
/** @type {(nodes: Iterable<Element>) => Box | null} */
function boxAround(nodes) {
  const boxes = Array.from(nodes, (node) => node.getBoundingClientRect()).filter(({ width, height }) => width + height);
  if (!boxes.length) return null;
  return {
    left: Math.min(...boxes.map(({ left }) => left)),
    top: Math.min(...boxes.map(({ top }) => top)),
    right: Math.max(...boxes.map(({ right }) => right)),
    bottom: Math.max(...boxes.map(({ bottom }) => bottom)),
  };
}
