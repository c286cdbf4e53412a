// The opening: what this is in one sentence, a question that the model gets wrong, and the button that teaches it.

import { MEMBERSHIP, verdict } from "./data.mjs";
import { el, helpButton, switchOn } from "./dom.mjs";
import { describe, isEdited } from "./interventions.mjs";
import { percent, significant } from "./numbers.mjs";
import { END, InputError } from "./tokenizer.mjs";
import { numberToWords } from "./words.mjs";

/** @type {Record<string, string>} */
const MEMBERSHIP_TEXT = {
  training: "this problem was in training",
  "held out": "this problem was held out, so the model never trained on it",
  outside: "so this problem was neither in training nor held out",
};
const FIRST_QUESTION = "two plus three";
const ERROR_AFTER = 900; // milliseconds without a key

/** @type {(leaves: [string, number[]][]) => string} */
export const sentenceOf = (leaves) => {
  const n = leaves.reduce((total, [, shape]) => total + shape.reduce((a, b) => a * b, 1), 0);
  return `A network of ${n.toLocaleString("en-US")} numbers that learned arithmetic in English words. Watch it be wrong, find the blame, and learn.`;
};

// Every problem of a table, the small ones first: {text, right, membership}.
/** @type {(app: App, verdicts: Uint8Array, membership: Uint8Array) => TableProblem[]} */
function problemsIn(app, verdicts, membership) {
  const n = app.tokenizer.max_number + 1;
  const spell = (/** @type {number} */ number) => numberToWords(number).join(" ");
  return app.tokenizer.operations
    .flatMap((name, operation) =>
      Array.from({ length: n * n }, (_, i) => {
        const [a, b] = [Math.floor(i / n), i % n];
        const cell = app.cellOf(operation, a, b);
        const found = verdict(verdicts[cell]);
        if (!found) return null;
        return {
          text: () => `${spell(a)} ${name} ${spell(b)}`,
          right: found.right,
          membership: MEMBERSHIP[membership[cell]],
          size: a + b,
          isEasy: a > 1 && b > 1,
        };
      }),
    )
    .filter((problem) => problem !== null)
    .sort((a, b) => a.size - b.size);
}

// The chips, and with which of them the page opens: [{text, note, right, snapshot}].
/** @type {(app: App) => Promise<Chip[]>} */
export async function chipsOf(app) {
  const newest = app.data.snapshots.length - 1;
  const untrained = { text: firstQuestion(app), note: "untrained", right: false, snapshot: 0 };
  const verdicts = await app.verdictsOf(newest);
  if (!app.membership || !verdicts) return [...(await firstFailures(app)), untrained];
  const problems = problemsIn(app, verdicts, app.membership);
  const heldOut = problems.filter(({ membership }) => membership === "held out");
  /** @type {(note: string) => (problem: TableProblem) => Chip} */
  const chip = (note) => (problem) => ({ text: problem.text(), note, right: problem.right, snapshot: newest });
  const wrong = heldOut.filter(({ right }) => !right);
  const others = problems.filter(({ right, membership }) => !right && membership !== "held out");
  const chips = [...wrong.map(chip("held out")), ...others.map(chip("in training"))].slice(0, 1);
  const right = heldOut.filter((problem) => problem.right && problem.isEasy);
  return [...(chips.length ? chips : await firstFailures(app)), ...right.slice(0, 1).map(chip("held out")), untrained];
}

// “two plus three”, or a problem of the run where its vocabulary lacks one of these words or their answer.
/** @type {(app: App) => string} */
function firstQuestion(app) {
  try {
    if (app.rightWords(app.read(FIRST_QUESTION).parsed)) return FIRST_QUESTION;
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
  }
  return app.data.prompt;
}

// The first question at the newest snapshot that gets it wrong, if there is one.
/** @type {(app: App) => Promise<Chip[]>} */
async function firstFailures(app) {
  const text = firstQuestion(app);
  const { parsed } = app.read(text);
  const right = app.rightWords(parsed);
  for (let snapshot = app.data.snapshots.length - 1; snapshot > 0; snapshot--) {
    const { words } = app.answer(parsed, await app.paramsOf(snapshot));
    if (words.join() === right?.join()) continue;
    return [{ text, note: `after ${app.data.snapshots[snapshot].step} steps`, right: false, snapshot }];
  }
  return [];
}

// A question that is answered wrong at a later word is asked with the right words before it.
/** @type {(app: App, text: string) => string} */
export function upToTheMistake(app, text) {
  const { parsed } = app.read(text);
  const right = app.rightWords(parsed);
  if (!right || parsed.begun.length) return text;
  const { words } = app.answer(parsed);
  const first = right.findIndex((word, i) => word !== words[i]);
  return first > 0 ? `${text} equals ${right.slice(0, first).join(" ")}` : text;
}

// The chips below the sentence. pick(chip) asks its question.
/** @type {(app: App, chips: Chip[], pick: (chip: Chip) => void) => () => void} */
export function drawChips(app, chips, pick) {
  const node = document.getElementById("chips");
  /** @type {(chip: Chip) => HTMLButtonElement} */
  const button = (chip) =>
    el(
      "button",
      { type: "button", class: `chip ${chip.right ? "right" : "wrong"}`, onclick: () => pick(chip) },
      el("b", {}, chip.text),
      el("small", {}, `${chip.right ? "✓ right" : "✗ wrong"}, ${chip.note}`),
    );
  const buttons = chips.map(button);
  node.replaceChildren(...buttons);
  return () =>
    buttons.forEach((node, i) => {
      const isShown = app.prompt.startsWith(chips[i].text) && app.snapshot === chips[i].snapshot;
      node.setAttribute("aria-pressed", String(isShown));
    });
}

// What the model answers, and whether that is right.
/** @type {View} */
export function answerView(app) {
  const line = document.getElementById("answer");
  const help = helpButton(
    "The answer",
    "The model answers one word at a time. It always takes the likeliest next word, and stops at <end>. The probability of the answer is the product of the probabilities of its words.",
  );
  return () => {
    const { words, p } = app.answer();
    const { tokens } = app.parsed;
    const rightWords = app.rightWords(app.parsed);
    const isRight = words.join() === rightWords?.join();
    const text = words.filter((word) => word !== END).join(" ") + (words.at(-1) === END ? "" : " …");
    const verdictText = isRight
      ? "right"
      : app.parsed.isProblem === false
        ? "this is no problem, so the right word stays"
        : rightWords
          ? `wrong, it is ${rightWords.slice(0, -1).join(" ")}`
          : `the right answer is not a whole number from 0 to ${app.tokenizer.max_number}`;
    line.replaceChildren(
      `${tokens.join(" ")} → `,
      el("strong", { class: isRight ? "good" : "bad" }, text || "nothing"),
      ` ${percent(p)}`,
      help,
      el(
        "span",
        { class: "verdict" },
        ` ${isRight ? "✓" : "✗"} ${[verdictText, MEMBERSHIP_TEXT[app.membershipOf(app.parsed) ?? ""]].filter(Boolean).join("; ")}`,
      ),
    );
  };
}

// The field for a question. While text cannot be read, the page dims and waits; the error comes after a pause or Enter.
/** @type {(app: App, onask: (text: string) => void) => () => void} */
export function askView(app, onask) {
  const input = document.getElementById("prompt");
  const error = document.getElementById("problem");
  let timer = 0;
  const tell = (/** @type {string} */ message) => {
    error.textContent = message;
    document.body.classList.toggle("failed", Boolean(message));
    if (message) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  };
  const read = (/** @type {boolean} */ tellsNow) => {
    clearTimeout(timer);
    if (!tellsNow) tell("");
    try {
      app.read(input.value);
    } catch (problem) {
      if (!(problem instanceof InputError)) throw problem;
      document.body.classList.add("waiting");
      if (tellsNow) tell(problem.message);
      else timer = setTimeout(() => tell(problem.message), ERROR_AFTER);
      return;
    }
    tell("");
    document.body.classList.remove("waiting");
    if (input.value !== app.prompt) onask(input.value);
  };
  input.addEventListener("input", () => read(false));
  document.getElementById("ask").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    read(true);
  });
  return () => {
    clearTimeout(timer);
    tell("");
    document.body.classList.remove("waiting");
    if (document.activeElement !== input || input.value === "") input.value = app.prompt;
  };
}

// Teach it, ten times, until it is right; and what came of it. teach(times, untilRight) takes the steps and plays them.
/** @type {(app: App, teach: (times: number | null) => void) => (problem?: string) => void} */
export function teachView(app, teach) {
  /** @type {(id: string, text: string, onclick: () => void, isPrimary?: boolean) => HTMLButtonElement} */
  const button = (id, text, onclick, isPrimary) =>
    el("button", { type: "button", id, class: isPrimary ? "primary" : null, onclick }, text);
  const undo = button("undo-lesson", "Undo", () => app.undo());
  const said = el("p", { id: "lesson", "aria-live": "polite" });
  document.getElementById("teach-panel").replaceChildren(
    button("teach", "Teach it", () => teach(1), true),
    el(
      "div",
      { class: "row" },
      button("teach-10", "10 times", () => teach(10)),
      button("teach-until", "until right", () => teach(null)),
      undo,
    ),
    said,
  );
  return (problem) => {
    switchOn(undo, app.history.depth > 0, document.getElementById("teach"));
    said.classList.toggle("error", Boolean(problem));
    said.replaceChildren(...(problem ? [problem] : lessonText(app)));
  };
}

/** @type {(app: App) => (string | HTMLElement)[]} */
function lessonText(app) {
  const word = app.words[app.target];
  const { lesson, moment, rate } = app;
  if (!lesson) {
    const promised = moment.blame.total;
    return [
      `One step with rate ${significant(rate, 2)} promises to lower the surprise at “${word}” from `,
      el("b", {}, significant(moment.loss, 3)),
      " nats by ",
      el("b", {}, significant(promised, 3)),
      ".",
    ];
  }
  const { before, after, taken } = lesson;
  const changes = isEdited(before.edits) ? ` It was learned ${describe(before.edits, app.own.tokens, app.words)}.` : "";
  return [
    `${taken} step${taken > 1 ? "s" : ""}: p(${word}) went from ${percent(before.probabilities[before.target])} to `,
    el("b", {}, percent(after.probabilities[after.target])),
    `, the surprise from ${significant(before.loss, 3)} to `,
    el("b", {}, significant(after.loss, 3)),
    ` nats.${changes}`,
  ];
}
