// Elements, and the parts of the page with their help. Text is only ever set as text, never as markup.

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

// A "?" that opens a short explanation.
/** @type {(title: string, text: string) => HTMLButtonElement} */
export function helpButton(title, text) {
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

// Adds a part to the page (a heading with its help, and a caption) and returns its empty body.
/** @type {(id: string, title: string, caption: string, help: string) => HTMLElement} */
export function part(id, title, caption, help) {
  const body = el("div");
  const heading = el("h2", {}, title, helpButton(title, help));
  const node = el("section", { id, "aria-label": title }, heading, el("p", { class: "caption" }, caption), body);
  document.getElementById("main").append(node);
  return body;
}
