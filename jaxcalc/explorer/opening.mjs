// @ts-nocheck
// The opening: what this is in one sentence, a question that the model gets wrong, and the button that teaches it.

import { MEMBERSHIP, verdict } from "./data.mjs";
import { el, helpButton } from "./dom.mjs";
import { describe, isEdited } from "./interventions.mjs";
import { percent, significant } from "./numbers.mjs";
import { END, InputError } from "./tokenizer.mjs";
import { numberToWords } from "./words.mjs";

const MEMBERSHIP_TEXT = {
  training: "this problem was in training",
  "held out": "this problem was held out, so the model never trained on it",
  outside: "so this problem was neither in training nor held out",
};
const FIRST_QUESTION = "two plus three";
const ERROR_AFTER = 900; // milliseconds without a key

export const sentenceOf = (leaves) => {
  const n = leaves.reduce((total, [, shape]) => total + shape.reduce((a, b) => a * b, 1), 0);
  return `A network of ${n.toLocaleString("en-US")} numbers that learned arithmetic in English words. Watch it be wrong, find the blame, and learn.`;
};

// Every problem of a table, the small ones first: {text, right, membership}.
export function problemsIn(app, verdicts) {
  const n = app.tokenizer.max_number + 1;
  const spell = (number) => numberToWords(number).join(" ");
  return app.tokenizer.operations
    .flatMap((name, operation) =>
      Array.from({ length: n * n }, (_, i) => {
        const [a, b] = [Math.floor(i / n), i % n];
        const cell = app.cellOf(operation, a, b);
        if (!verdicts[cell]) return null;
        const membership = MEMBERSHIP[app.membership[cell]];
        return {
          text: () => `${spell(a)} ${name} ${spell(b)}`,
          right: verdict(verdicts[cell]).right,
          membership,
          size: a + b,
          isEasy: a > 1 && b > 1,
        };
      }),
    )
    .filter(Boolean)
    .sort((a, b) => a.size - b.size);
}

// The chips, and with which of them the page opens: [{text, note, right, snapshot}].
export async function chipsOf(app) {
  const newest = app.data.snapshots.length - 1;
  const untrained = { text: FIRST_QUESTION, note: "untrained", right: false, snapshot: 0 };
  if (!app.membership) return [...(await firstFailures(app)), untrained];
  const problems = problemsIn(app, await app.verdictsOf(newest));
  const heldOut = problems.filter(({ membership }) => membership === "held out");
  const chip = (note) => (problem) => ({ text: problem.text(), note, right: problem.right, snapshot: newest });
  const wrong = heldOut.filter(({ right }) => !right);
  const others = problems.filter(({ right, membership }) => !right && membership !== "held out");
  const chips = [...wrong.map(chip("held out")), ...others.map(chip("in training"))].slice(0, 1);
  const right = heldOut.filter((problem) => problem.right && problem.isEasy);
  return [...(chips.length ? chips : await firstFailures(app)), ...right.slice(0, 1).map(chip("held out")), untrained];
}

// “two plus three” at the newest snapshot that gets it wrong, if there is one.
async function firstFailures(app) {
  const parsed = app.tokenizer.parse(FIRST_QUESTION);
  for (let snapshot = app.data.snapshots.length - 1; snapshot > 0; snapshot--) {
    const { words } = app.answer(parsed, await app.paramsOf(snapshot));
    if (words.join() === app.rightWords(parsed).join()) continue;
    return [{ text: FIRST_QUESTION, note: `after ${app.data.snapshots[snapshot].step} steps`, right: false, snapshot }];
  }
  return [];
}

// A question that is answered wrong at a later word is asked with the right words before it.
export function upToTheMistake(app, text) {
  const { parsed } = app.read(text);
  const right = app.rightWords(parsed);
  if (!right || parsed.begun.length) return text;
  const { words } = app.answer(parsed);
  const first = right.findIndex((word, i) => word !== words[i]);
  return first > 0 ? `${text} equals ${right.slice(0, first).join(" ")}` : text;
}

// The chips below the sentence. pick(chip) asks its question.
export function drawChips(app, chips, pick) {
  const node = document.getElementById("chips");
  const buttons = chips.map((chip) =>
    el(
      "button",
      { type: "button", class: `chip ${chip.right ? "right" : "wrong"}`, onclick: () => pick(chip) },
      el("b", {}, chip.text),
      el("small", {}, `${chip.right ? "✓ right" : "✗ wrong"}, ${chip.note}`),
    ),
  );
  node.replaceChildren(...buttons);
  return () =>
    buttons.forEach((button, i) =>
      button.setAttribute("aria-pressed", app.prompt.startsWith(chips[i].text) && app.snapshot === chips[i].snapshot),
    );
}

// What the model answers, and whether that is right.
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
        ` ${isRight ? "✓" : "✗"} ${[verdictText, MEMBERSHIP_TEXT[app.membershipOf(app.parsed)]].filter(Boolean).join("; ")}`,
      ),
    );
  };
}

// The field for a question. While text cannot be read, the page dims and waits; the error comes after a pause or Enter.
export function askView(app, onask) {
  const input = document.getElementById("prompt");
  const error = document.getElementById("problem");
  let timer = null;
  const tell = (message) => {
    error.textContent = message;
    document.body.classList.toggle("failed", Boolean(message));
    if (message) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  };
  const read = (tellsNow) => {
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
  document.getElementById("ask").addEventListener("submit", (event) => {
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
export function teachView(app, teach) {
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
    undo.disabled = !app.history.depth;
    said.classList.toggle("error", Boolean(problem));
    said.replaceChildren(...(problem ? [problem] : lessonText(app)));
  };
}

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
