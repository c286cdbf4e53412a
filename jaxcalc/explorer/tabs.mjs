// The two tabs of a page with a run: what it learned, and a training from nothing. A page without a run is the second.

import { el } from "./dom.mjs";
import { liveView } from "./live_view.mjs";

// Adds the tabs below the title. The training starts when its tab is first opened; live() returns it.
/** @type {(data: PageData | LivePageData, engine: import("./worker.mjs").Engine) => () => import("./live_run.mjs").LiveRun | null} */
export function addTabs(data, engine) {
  const root = el("main", { id: "live", "aria-label": "Train from nothing" });
  document.querySelector("footer")?.before(root);
  const names = [
    ["run", "What it learned"],
    ["live", "Train from nothing"],
  ];
  const buttons = names.map(([name, text]) =>
    el("button", { type: "button", id: `tab-${name}`, onclick: () => open(name) }, text),
  );
  /** @type {import("./live_run.mjs").LiveRun | null} */
  let live = null;
  /** @type {(name: string) => void} */
  const open = (name) => {
    document.body.dataset.tab = name;
    document.querySelector(".skip")?.setAttribute("href", name === "live" ? "#live" : "#ask");
    buttons.forEach((button, i) => button.setAttribute("aria-current", names[i][0] === name ? "page" : "false"));
    if (name === "live") live ??= liveView(root, data.live, engine);
    else live?.pause();
  };
  if (data.snapshots) document.getElementById("theme").before(el("nav", { id: "tabs", "aria-label": "Tabs" }, buttons));
  open(data.snapshots ? "run" : "live");
  return () => live;
}

// In a notebook's frame: tells the notebook how high the page is, so that the frame needs no scroll bar of its own.
export function tellHeight() {
  if (parent === window) return;
  document.documentElement.classList.add("framed"); // nothing may be as high as a frame that is as high as the page
  const tell = () =>
    parent.postMessage({ jaxcalcHeight: Math.ceil(document.body.getBoundingClientRect().height) }, "*");
  new ResizeObserver(tell).observe(document.body);
}
