// The settings of a training. A setting that cannot be read is refused with a sentence, and the one before it holds.

import { el } from "./dom.mjs";

const NAMES = { muon: "Muon", adamw: "AdamW", sgd: "SGD" };

// [name, label, least, most, why another number is refused]
/** @type {["rate" | "batch" | "seed", string, number, number, string][]} */
const NUMBERS = [
  ["rate", "Rate", 1e-6, 10, "The rate is a number from 0.000001 to 10."],
  ["batch", "Batch", 1, 512, "The batch is a whole number from 1 to 512."],
  ["seed", "Seed", 0, 999999, "The seed is a whole number from 0 to 999999."],
];
const SHARES = [0.05, 0.1, 0.2, 0.4];

/** @type {(live: import("./live_run.mjs").LiveRun) => LivePart} */
export function settingsView(live) {
  const { data } = live,
    note = el("p", { id: "live-note", "aria-live": "polite" });
  /** @type {Record<string, any>} */
  const fields = {};
  let refused = "";
  /** @type {(sentence: string, changes?: Partial<LiveSettings>) => void} */
  const answer = (sentence, changes) => {
    refused = sentence;
    if (changes) live.set(changes);
    else live.onchange();
  };
  /** @type {(spec: (typeof NUMBERS)[number]) => HTMLElement} */
  const number = ([name, label, least, most, refusal]) => {
    const read = () => {
      const value = Number(fields[name].value);
      const whole = name === "rate" || Number.isInteger(value);
      const fits = fields[name].value !== "" && whole && value >= least && value <= most;
      if (fits) fields[name].removeAttribute("aria-invalid");
      else fields[name].setAttribute("aria-invalid", "true");
      if (fits) answer("", { [name]: value });
      else answer(refusal);
    };
    fields[name] = el("input", { type: "number", min: least, max: most, step: "any", onchange: read });
    return el("label", {}, label, fields[name]);
  };
  /** @type {(name: string, label: string, options: [any, string][], read: (value: string) => any, onchoice?: (value: string) => Partial<LiveSettings>) => HTMLElement} */
  const choice = (name, label, options, read, onchoice = () => ({})) => {
    const choose = () => answer("", { [name]: read(fields[name].value), ...onchoice(fields[name].value) });
    fields[name] = el(
      "select",
      { onchange: choose },
      options.map(([value, text]) => el("option", { value }, text)),
    );
    return el("label", {}, label, fields[name]);
  };
  const boxes = data.task.operations.map((name) =>
    el("label", {}, el("input", { type: "checkbox", value: name, onchange: () => chooseOperations() }), name),
  );
  /** @type {(label: HTMLElement) => any} */
  const inputOf = (label) => label.querySelector("input");
  const chooseOperations = () => {
    const operations = boxes
      .map(inputOf)
      .filter(({ checked }) => checked)
      .map(({ value }) => value);
    if (operations.length) return answer("", { operations });
    answer("Choose at least one operation.");
    boxes.map(inputOf).forEach((box) => (box.checked = live.wanted.operations.includes(box.value)));
  };
  const node = el(
    "form",
    {
      class: "live-settings",
      "aria-label": "Settings",
      onsubmit: (/** @type {Event} */ event) => event.preventDefault(),
    },
    el("fieldset", {}, el("legend", {}, "Operations"), boxes),
    choice("optimizer", "Optimizer", Object.entries(NAMES), String, (name) => ({ rate: data.rates[name] })),
    NUMBERS.map(number),
    choice(
      "share",
      "Held out",
      SHARES.map((share) => [share, `${100 * share} %`]),
      Number,
    ),
    note,
  );
  /** @type {LiveSettings | null} */
  let shown = null;
  const draw = () => {
    note.textContent = refused || (live.isOther ? "These settings are for the next run. Reset begins it." : "");
    if (shown === live.wanted) return;
    shown = live.wanted;
    for (const [name, field] of Object.entries(fields)) {
      if (field === document.activeElement) continue; // the user writes in it
      field.value = /** @type {any} */ (live.wanted)[name];
      field.removeAttribute("aria-invalid");
    }
    boxes.map(inputOf).forEach((box) => (box.checked = live.wanted.operations.includes(box.value)));
  };
  return { node, draw };
}
