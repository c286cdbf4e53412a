// What the user's lessons changed elsewhere: the whole table is answered again in the worker, a sample first.

import { verdict } from "./data.mjs";
import { el } from "./dom.mjs";
import "./table.mjs";
import { numberToWords } from "./words.mjs";

const EXAMPLES = 3;

// Which problems were right and are wrong now, which the other way round, and how many have been asked.
/** @type {(before: Uint8Array, now: Uint8Array) => TableChanges} */
function changesOf(before, now) {
  /** @type {TableChanges} */
  const changes = { broken: [], mended: [], asked: 0 };
  now.forEach((byte, cell) => {
    const was = verdict(before[cell]),
      is = verdict(byte);
    if (!is) return;
    changes.asked++;
    if (was?.right && !is.right) changes.broken.push(cell);
    if (!was?.right && is.right) changes.mended.push(cell);
  });
  return changes;
}

// The text of a problem, from its cell.
/** @type {(task: Pick<TaskData, "operations" | "max_number">, cell: number) => string} */
function textOf({ operations, max_number: most }, cell) {
  const n = most + 1;
  const spell = (/** @type {number} */ number) => numberToWords(number).join(" ");
  return `${spell(Math.floor(cell / n) % n)} ${operations[Math.floor(cell / (n * n))]} ${spell(cell % n)}`;
}

/** @type {(app: App, ask: (text: string) => void) => () => Promise<void>} */
export function brokenView(app, ask) {
  const node = document.getElementById("broken");
  const said = el("p", { "aria-live": "polite" });
  const maps = el("div", { class: "maps" });
  const examples = el("div", { class: "examples" });
  node.append(el("h2", {}, "Answers broken by your lessons"), said, maps, examples);
  node.hidden = true;
  /** @type {Params | null} */
  let asked = null;
  /** @type {(progress: TableProgress) => void} */
  const show = ({ verdicts, done, all }) => {
    if (!app.verdicts) return;
    const changes = changesOf(app.verdicts, verdicts);
    const count = (/** @type {number[]} */ cells) => cells.length.toLocaleString("en-US");
    const of = done < all ? `${done.toLocaleString("en-US")} of ${all.toLocaleString("en-US")} asked so far: ` : "";
    said.replaceChildren(
      of,
      el("b", { class: "bad" }, `✗ ${count(changes.broken)}`),
      ` of ${changes.asked.toLocaleString("en-US")} answers were right and are wrong now; `,
      el("b", { class: "good" }, `✓ ${count(changes.mended)}`),
      " the other way round.",
    );
    const colours = coloursOf(["--rail", "--ahead", "--back"]);
    maps.replaceChildren(...app.tokenizer.operations.map((name, i) => mapOf(app, name, i, verdicts, changes, colours)));
    const step = Math.max(1, Math.floor(changes.broken.length / EXAMPLES));
    examples.replaceChildren(
      ...changes.broken
        .filter((_, i) => i % step === 0)
        .slice(0, EXAMPLES)
        .map((cell) => textOf(app.tokenizer, cell))
        .map((text) => el("button", { type: "button", class: "chip", onclick: () => ask(text) }, text)),
    );
  };
  return async () => {
    node.hidden = !app.stepped || !app.verdicts;
    if (node.hidden || asked === app.params) return;
    asked = app.params;
    const result = await app.engine.run("table", { params: app.params, task: app.data.task }, (progress) => {
      if (asked === app.params) show(progress);
    });
    if (result && asked === app.params) show(result);
  };
}

// The colours that variables of the style have now. Asking makes the browser compute the page's style, so ask once.
/** @type {(variables: string[]) => string[]} */
function coloursOf(variables) {
  const probe = el("i");
  document.body.append(probe);
  const style = getComputedStyle(probe);
  const colours = variables.map((variable) => {
    probe.style.setProperty("color", `var(${variable})`);
    return style.color;
  });
  probe.remove();
  return colours;
}

// A small picture of one operation's problems: broken, mended, and asked.
/** @type {(app: App, name: string, operation: number, verdicts: Uint8Array, changes: TableChanges, colours: string[]) => HTMLElement} */
function mapOf(app, name, operation, verdicts, { broken, mended }, [asked, better, worse]) {
  const n = app.tokenizer.max_number + 1,
    first = operation * n * n;
  /** @type {HTMLCanvasElement} */
  const canvas = el("canvas", { width: n, height: n, role: "img", "aria-label": `${name}: broken and mended answers` });
  const pen = canvas.getContext("2d");
  if (!pen) throw new Error("this browser cannot draw");
  /** @type {(cells: number[], colour: string) => void} */
  const paint = (cells, colour) => {
    pen.fillStyle = colour;
    for (const cell of cells) {
      const place = cell - first;
      if (place >= 0 && place < n * n) pen.fillRect(place % n, Math.floor(place / n), 2, 2);
    }
  };
  // What was asked, in runs of neighbours: a few hundred rectangles where there are thousands of problems.
  pen.fillStyle = asked;
  for (let row = 0; row < n; row++) {
    let start = 0;
    for (let column = 0; column <= n; column++) {
      if (column < n && verdicts[first + row * n + column]) continue;
      if (column > start) pen.fillRect(start, row, column - start, 1);
      start = column + 1;
    }
  }
  paint(mended, better);
  paint(broken, worse);
  return el("figure", {}, canvas, el("figcaption", {}, name));
}
