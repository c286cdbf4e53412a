// How every page begins: its data, its worker, its tabs and its theme.

import { addTabs, tellHeight } from "./tabs.mjs";
import { Engine } from "./worker.mjs";

/** @returns {{ data: any, engine: Engine, live: ReturnType<typeof addTabs> }} */
export function begin() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const engine = new Engine(document.querySelector("script[type=module]")?.textContent ?? "");
  const live = addTabs(data, engine);
  tellHeight();
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.getElementById("made").textContent = data.made;
  return { data, engine, live };
}
