// Elements, and the parts of the page with their help. Text is only ever set as text, never as markup.

import { overlap } from "./boxes.mjs";

const SVG = "http://www.w3.org/2000/svg";

/** @type {(tag: string, attributes?: Record<string, any>, ...children: any[]) => any} */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** @type {(tag: string, attributes?: Record<string, any>, ...children: any[]) => any} */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** @type {(node: any, attributes: Record<string, any>, children: any[]) => any} */
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

// Switches a button on or off. The focus does not get lost on a button that goes off: another control takes it.
/** @type {(button: HTMLButtonElement, isOn: boolean, next: HTMLElement) => void} */
export function switchOn(button, isOn, next) {
  const hadFocus = document.activeElement === button;
  button.disabled = !isOn;
  if (hadFocus && !isOn) next.focus();
}

// Where an explanation of a size goes, inside the window: never over its button, and over as little as possible of the
// thing that it explains; of equally good places, the one nearest to the button.
/** @type {(size: Size, button: Box, thing: Box, room: Size) => { left: number, top: number }} */
export function placeBeside({ width, height }, button, thing, room, gap = 8) {
  const inside = (/** @type {number} */ at, /** @type {number} */ length, /** @type {number} */ end) =>
    Math.max(gap, Math.min(at, end - gap - length));
  const places = [button, thing]
    .flatMap((box) => [
      [button.left, box.top - gap - height],
      [button.left, box.bottom + gap],
      [box.right + gap, button.top],
      [box.left - gap - width, button.top],
    ])
    .map(([x, y]) => {
      const [left, top] = [inside(x, width, room.width), inside(y, height, room.height)];
      const box = { left, top, right: left + width, bottom: top + height };
      const far = Math.hypot(left - button.left, top - button.top);
      return { left, top, cost: 1e6 * overlap(box, button) + overlap(box, thing), far };
    })
    .sort((a, b) => a.cost - b.cost || a.far - b.far);
  return { left: places[0].left, top: places[0].top };
}

const unbroken = (/** @type {string} */ text) => text.replace(/(\d) (%|nats)/g, "$1\u00a0$2");

// A "?" that opens a short explanation beside it.
/** @type {(title: string, text: string) => HTMLButtonElement} */
export function helpButton(title, text) {
  const open = () => {
    const help = document.getElementById("help");
    help.replaceChildren(el("h3", {}, title), ...text.split("\n").map((line) => el("p", {}, unbroken(line))));
    help.style.setProperty("left", "0");
    help.showPopover();
    const thing = button.closest("table, figure, p, div, section") ?? button;
    const { clientWidth: width, clientHeight } = document.documentElement;
    const place = placeBeside(
      help.getBoundingClientRect(),
      button.getBoundingClientRect(),
      thing.getBoundingClientRect(),
      { width, height: Math.min(clientHeight, window.innerHeight) },
    );
    // In the page's own coordinates, so that it scrolls with its button.
    help.style.setProperty("left", `${place.left + scrollX}px`);
    help.style.setProperty("top", `${place.top + scrollY}px`);
  };
  /** @type {HTMLButtonElement} */
  const button = el(
    "button",
    { type: "button", class: "what", "aria-label": `What is this? ${title}`, title: "What is this?", onclick: open },
    "?",
  );
  return button;
}

// Adds a part to the page (a heading with its help, and a caption) and returns its empty body.
/** @type {(id: string, title: string, caption: string, help: string) => HTMLElement} */
export function part(id, title, caption, help) {
  const body = el("div");
  const heading = el("h2", {}, title, helpButton(title, help));
  const node = el(
    "section",
    { id, "aria-label": title },
    heading,
    el("p", { class: "caption" }, unbroken(caption)),
    body,
  );
  document.getElementById("main").append(node);
  return body;
}
