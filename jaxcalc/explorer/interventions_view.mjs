// “Change something”, the row under the stage: heads are switched off, a share of attention is held, a word is swapped, and
// a sentence says what came of it.

import { el } from "./dom.mjs";
import { describe, holdShare, isEdited, isOff, letGo, NO_EDITS, swapToken, toggleHead } from "./interventions.mjs";
import { largest, percent, significant } from "./numbers.mjs";

const HOW_TO_CHANGE = "or click an arc or a word of the network";

// The share of its attention that one position gives to another, as it is now.
/** @type {(app: App, place: Place4) => number} */
export function shareAt({ activations, tokens: { length } }, { block, head, to, from }) {
  return activations.blocks[block].attention.pattern.data[(head * length + to) * length + from];
}

// The first position has only itself to look at, and a head that is off looks nowhere.
/** @type {(app: App, place: Place4) => boolean} */
export const canHold = ({ edits }, { block, head, to }) => to > 0 && !isOff(edits, block, head);

// Holds a share, in whole per cent, once per frame at most: a drag sends more.
/** @type {(app: App) => (place: Place4, share: number) => void} */
export function holdSoon(app) {
  /** @type {HeldShare | null} */
  let next = null;
  return (place, share) => {
    const isWaiting = next !== null;
    next = { ...place, share: Math.round(100 * Math.min(Math.max(share, 0), 1)) / 100 };
    if (isWaiting) return;
    requestAnimationFrame(() => {
      const held = /** @type {HeldShare} */ (next);
      next = null;
      app.setEdits(holdShare(app.edits, held));
    });
  };
}

// What came of a change: the answer, the surprise, and the stage whose share of the blame changed most.
/** @type {(before: Moment, after: Moment, words: string[]) => string} */
export function outcomeOf(before, after, words) {
  /** @type {(moment: Moment) => string} */
  const answer = ({ probabilities }) => {
    const [best] = largest(probabilities, 1);
    return `“${words[best]}” ${percent(probabilities[best])}`;
  };
  const right = words[before.target],
    [was, is] = [before, after].map(({ loss }) => significant(loss, 3));
  const surprise =
    before.target === after.target
      ? `surprise at “${right}” ${was} → ${is} nats`
      : `surprise ${was} nats at “${right}” → ${is} at “${words[after.target]}”`;
  const stages = Object.keys(before.blame.nats).map((name) => {
    const [from, to] = [before, after].map(({ blame }) => (blame.total ? blame.nats[name] / blame.total : 0));
    return { name, from, to };
  });
  const most = stages.reduce((a, b) => (Math.abs(b.to - b.from) > Math.abs(a.to - a.from) ? b : a));
  const blame = `blame of ${most.name} ${(100 * most.from).toFixed(0)} → ${(100 * most.to).toFixed(0)}\u00a0%`;
  return `${answer(after)} (was ${answer(before)}), ${surprise}, ${blame}.`;
}

// Returns the update, and pick(what), which offers a change of what was picked on the stage.
/** @type {(app: App) => { update: () => void, pick: (what: Picked) => void }} */
export function changesView(app) {
  /** @type {any[]} */
  const buttons = [];
  const heads = el("div", { class: "switches" });
  const slot = el("div", { class: "picked" }, el("p", { class: "faint" }, HOW_TO_CHANGE));
  const said = el("p", { id: "changed", "aria-live": "polite" });
  const putBack = () => {
    app.setEdits(NO_EDITS);
    buttons[0].focus();
  };
  const back = el("button", { type: "button", id: "put-back", onclick: putBack }, "Put everything back");
  document.getElementById("broken").before(said);
  document
    .getElementById("theatre")
    .append(
      el(
        "div",
        { id: "changes", role: "group", "aria-label": "Change something" },
        el("div", { class: "row" }, el("b", {}, "Change something"), heads, slot, back),
      ),
    );
  /** @type {{ prompt: string, fill: () => void } | null} */
  let picked = null;
  /** @type {(part: { nodes: any[], first: any, fill: () => void }) => void} */
  const choose = ({ nodes, first, fill }) => {
    slot.replaceChildren(...nodes);
    picked = { prompt: app.prompt, fill };
    fill();
    first.focus();
  };
  const update = () => {
    if (!buttons.length) {
      for (const { node, all } of switches(app)) {
        heads.append(node);
        buttons.push(...all);
      }
    }
    for (const button of buttons) button.setAttribute("aria-pressed", isOff(app.edits, button.block, button.head));
    if (picked && picked.prompt !== app.prompt) {
      picked = null;
      slot.replaceChildren(el("p", { class: "faint" }, HOW_TO_CHANGE));
    }
    picked?.fill();
    const isChanged = isEdited(app.edits);
    back.hidden = !isChanged;
    said.textContent = isChanged ? sentence(app) : "";
  };
  const pick = (/** @type {Picked} */ what) => {
    if (what.kind === "arc") choose(shareSlider(app, what));
    else if (what.kind === "token") choose(wordPicker(app, what));
  };
  return { update, pick };
}

/** @type {(app: App) => string} */
function sentence(app) {
  const text = describe(app.edits, app.own.tokens, app.words);
  const lessons = app.stepped
    ? " Lessons learn with this change; the table of broken answers is asked without it."
    : " A lesson learns with this change.";
  return `${text[0].toUpperCase()}${text.slice(1)}: ${outcomeOf(app.unedited, app.moment, app.words)}${lessons}`;
}

// A button for each head of each block: pressed is off.
/** @type {(app: App) => { node: any, all: any[] }[]} */
function switches(app) {
  return app.activations.blocks.map(({ attention: { pattern } }, block) => {
    const all = Array.from({ length: pattern.shape[0] }, (_, head) => {
      const button = el(
        "button",
        {
          ...{ type: "button", "aria-label": `Switch head ${head} of block ${block} off` },
          style: { "--head": `var(--head-${head % 8})` },
          onclick: () => app.setEdits(toggleHead(app.edits, block, head)),
        },
        el("i", { "aria-hidden": "true" }),
        String(head),
      );
      return Object.assign(button, { block, head });
    });
    return { node: el("span", {}, el("small", {}, `heads of block ${block}`), all), all };
  });
}

// The share of an arc, on a slider.
/** @type {(app: App, what: PickedArc) => { nodes: any[], first: any, fill: () => void }} */
function shareSlider(app, what) {
  const place = { block: Number(what.stage.match(/\d+/)?.[0]), head: what.head, to: what.position, from: what.from };
  const hold = holdSoon(app);
  const label = el("label", { for: "share" });
  const slider = el("input", {
    ...{ type: "range", id: "share", min: 0, max: 100, step: 1 },
    oninput: () => hold(place, slider.value / 100),
  });
  const output = el("output", { for: "share" });
  const free = el(
    "button",
    {
      type: "button",
      onclick: () => {
        app.setEdits(letGo(app.edits, place));
        slider.focus();
      },
    },
    "let go",
  );
  const fill = () => {
    const [to, from] = [place.to, place.from].map((position) => app.words[app.tokens[position]]);
    label.textContent = `Head ${place.head} of block ${place.block}: attention from “${to}” to “${from}”`;
    const share = shareAt(app, place);
    slider.value = Math.round(100 * share);
    slider.disabled = !canHold(app, place);
    slider.setAttribute("aria-valuetext", percent(share));
    output.textContent = percent(share);
    free.disabled = letGo(app.edits, place).shares.length === app.edits.shares.length;
  };
  return { nodes: [label, slider, output, free], first: slider, fill };
}

// Another word in the place of one.
/** @type {(app: App, what: PickedToken) => { nodes: any[], first: any, fill: () => void }} */
function wordPicker(app, { position }) {
  const own = app.own.tokens[position];
  const picker = el(
    "select",
    { id: "swap", onchange: () => app.setEdits(swapToken(app.edits, position, Number(picker.value), own)) },
    app.words.map((word, id) => el("option", { value: id }, word)),
  );
  const fill = () => {
    picker.value = app.tokens[position];
  };
  const label = el("label", { for: "swap" }, `Position ${position}: “${app.words[own]}” becomes`);
  return { nodes: [label, picker], first: picker, fill };
}
