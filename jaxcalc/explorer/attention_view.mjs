// The part of the page about attention: a matrix for each head, whose cells are sliders.

import { el, part } from "./dom.mjs";
import { heldShares, letGo } from "./interventions.mjs";
import { canHold, holdSoon, shareAt } from "./interventions_view.mjs";
import { percent } from "./numbers.mjs";

const DRAG = 150; // pixels from no attention to all of it
const LEAST_DRAG = 3; // pixels; less is a click
/** @type {Record<string, number>} */
const STEPS = { ArrowUp: 0.01, ArrowDown: -0.01, PageUp: 0.1, PageDown: -0.1, Home: -1, End: 1 };

/** @type {View} */
export function attentionView(app) {
  const body = part(
    "attention",
    "Attention",
    "Each position looks at itself and at the positions before it. A row shows where one position looks: its cells are the shares of its attention, and they add up to 100 %. Point at a cell to read it; click it, or press Enter, to see its sum. Drag it up or down, or press ↑ or ↓ on it, to hold its share at another value; ← and → go to the next cell, and Delete lets it go.",
    "pattern = softmax(query · key / √K), where K is the width of a head. It is the share of its attention that one position (the row) gives to another (the column). The upper right is empty because a model that predicts the next word must not look ahead.\nWhere a share is held, the others of its row keep their ratios and make up the rest.",
  );
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const heads = el("div");
  body.append(heads, readout);
  const hold = holdSoon(app);
  const wordAt = (/** @type {number} */ position) => app.words[app.tokens[position]];
  /** @type {(place: Place4) => void} */
  const say = (place) => {
    const { block, head, to, from } = place;
    readout.textContent = `block ${block}, head ${head}: “${wordAt(to)}” (position ${to}) gives ${percent(shareAt(app, place))} of its attention to “${wordAt(from)}” (position ${from})`;
  };

  // The sum behind a cell.
  /** @type {(place: Place4, node: HTMLElement) => void} */
  const explain = ({ block, head, to, from }, node) =>
    app.explain({ kind: "arc", stage: `block ${block} attention`, head, position: to, from }, node);

  // The keys of a cell, which is a slider; cells are those of its matrix.
  /** @type {(event: KeyboardEvent, place: Place4, cells: { node: any }[], at: number) => void} */
  const press = (event, place, cells, at) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (way) cells[at + way]?.node.focus();
    else if (event.key === "Enter") explain(place, cells[at].node);
    else if (event.key === "Delete" || event.key === "Backspace") app.setEdits(letGo(app.edits, place));
    else if (!(event.key in STEPS)) return;
    else if (canHold(app, place)) hold(place, Math.round(100 * shareAt(app, place)) / 100 + STEPS[event.key]);
    event.preventDefault();
  };

  // A finger drags a cell that it has tapped before; otherwise it scrolls the page.
  /** @type {(down: PointerEvent, place: Place4) => void} */
  const drag = (down, place) => {
    const cell = /** @type {HTMLElement} */ (down.currentTarget);
    if (down.button !== 0) return;
    const start = shareAt(app, place);
    let isClick = true;
    cell.setPointerCapture(down.pointerId);
    const stop = new AbortController();
    const move = (/** @type {PointerEvent} */ { clientY }) => {
      if (Math.abs(clientY - down.clientY) < LEAST_DRAG && isClick) return;
      isClick = false;
      if (canHold(app, place)) hold(place, start + (down.clientY - clientY) / DRAG);
    };
    cell.addEventListener("pointermove", move, { signal: stop.signal });
    cell.addEventListener("pointercancel", () => stop.abort(), { signal: stop.signal });
    cell.addEventListener(
      "pointerup",
      () => {
        stop.abort();
        if (isClick) explain(place, cell);
      },
      { signal: stop.signal },
    );
  };

  // One matrix: its node, and a function that fills it anew.
  /** @type {(block: number, head: number) => { node: any, fill: () => void }} */
  const patternOf = (block, head) => {
    const n = app.tokens.length,
      asks = n - 1;
    const cells = Array.from({ length: n }, (_, to) => to).flatMap((to) =>
      Array.from({ length: to + 1 }, (_, from) => {
        const place = { block, head, to, from };
        const node = el("i", {
          ...{ role: "slider", tabindex: -1, "aria-valuemin": 0, "aria-valuemax": 100 },
          onpointerenter: () => say(place),
          onpointerdown: (/** @type {PointerEvent} */ event) => drag(event, place),
          onkeydown: (/** @type {KeyboardEvent} */ event) => press(event, place, cells, cells.indexOf(cell)),
          onfocus: () => {
            for (const other of cells) other.node.setAttribute("tabindex", -1);
            node.setAttribute("tabindex", 0);
            say(place);
          },
        });
        const cell = { node, place };
        return cell;
      }),
    );
    cells.at(-1).node.setAttribute("tabindex", 0);
    const grid = el(
      "div",
      { class: "pattern", role: "group", style: { "grid-template-columns": `repeat(${n}, max-content)` } },
      cells.map(({ node, place: { to, from } }) =>
        from < to ? node : [node, Array.from({ length: asks - to }, () => el("i", { class: "masked" }))],
      ),
    );
    const fill = () => {
      let best = 0;
      for (const { node, place } of cells) {
        const { to, from } = place;
        const share = shareAt(app, place);
        if (to === asks && share > shareAt(app, { ...place, from: best })) best = from;
        node.style.setProperty("--share", share);
        node.title = `${wordAt(to)} → ${wordAt(from)}: ${percent(share)}`;
        node.classList.toggle("held", heldShares(app.edits, block, head, to)[from] !== undefined);
        const states = { label: node.title, valuenow: Math.round(100 * share), valuetext: percent(share) };
        for (const [name, value] of Object.entries(states)) node.setAttribute(`aria-${name}`, value);
        node.setAttribute("aria-disabled", !canHold(app, place));
      }
      const most = percent(shareAt(app, { block, head, to: asks, from: best }));
      grid.setAttribute(
        "aria-label",
        `Block ${block}, head ${head}: ${wordAt(asks)} looks most at ${wordAt(best)}, ${most}`,
      );
    };
    return { node: el("figure", {}, grid, el("figcaption", {}, `block ${block} · head ${head}`)), fill };
  };

  /** @type {{ node: any, fill: () => void }[]} */
  let patterns = [];
  let shown = "";
  return () => {
    const names = app.tokens.map((id) => app.words[id]);
    if (names.join() !== shown) {
      shown = names.join();
      readout.textContent = `The last row of each pattern is “${names.at(-1)}”, the position that predicts the next word.`;
      const blocks = app.activations.blocks.map(({ attention: { pattern } }, block) =>
        Array.from({ length: pattern.shape[0] }, (_, head) => patternOf(block, head)),
      );
      const rows = names.map((name) => el("span", {}, name));
      heads.replaceChildren(
        ...blocks.map((all) =>
          el(
            "div",
            { class: "heads" },
            el(
              "div",
              { class: "names", "aria-hidden": "true" },
              rows.map((row) => row.cloneNode(true)),
            ),
            all.map(({ node }) => node),
          ),
        ),
      );
      patterns = blocks.flat();
    }
    for (const { fill } of patterns) fill();
  };
}
