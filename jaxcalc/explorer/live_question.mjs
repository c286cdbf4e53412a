// One question, asked again after every report of a training, on the stage.

import { MEMBERSHIP } from "./data.mjs";
import { el } from "./dom.mjs";
import { sgd } from "./learning.mjs";
import { momentOf } from "./moment.mjs";
import { significant } from "./numbers.mjs";
import { Stage } from "./stage.mjs";
import { InputError, Tokenizer } from "./tokenizer.mjs";
import { numberToWords } from "./words.mjs";

const REDRAW_MS = 250; // while it trains, the stage is drawn anew no more often than this

/** @type {(watched: Watched) => string} */
export const questionOf = ({ a, operation, b }) =>
  `${numberToWords(a).join(" ")} ${operation} ${numberToWords(b).join(" ")}`;

/** @type {(live: import("./live_run.mjs").LiveRun, ask: (watched: Watched) => void) => LivePart} */
export function watchedView(live, ask) {
  const tokenizer = new Tokenizer(live.data.task);
  const input = el("input", {
    ...{ type: "text", id: "live-question", spellcheck: "false", autocapitalize: "none" },
    "aria-describedby": "live-answer",
  });
  const answer = el("p", { id: "live-answer", "aria-live": "polite" }),
    place = el("div", { class: "live-stage" });
  const stage = new Stage(place, { words: live.data.task.vocabulary });
  const refuse = (/** @type {string} */ sentence) => {
    input.setAttribute("aria-invalid", "true");
    place.classList.add("is-old");
    answer.textContent = sentence;
  };
  input.addEventListener("input", () => {
    try {
      const parsed = tokenizer.parse(input.value);
      if (parsed.answer === null) return refuse(`its answer is no number from 0 to ${tokenizer.max_number}`);
      input.removeAttribute("aria-invalid");
      place.classList.remove("is-old");
      ask(parsed);
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      refuse(error.message);
    }
  });
  const node = el(
    "div",
    { class: "live-card live-watched" },
    el("div", { class: "live-ask" }, el("h2", {}, el("label", { for: "live-question" }, "One question")), input),
    answer,
    place,
  );
  let shown = "",
    drawnAt = 0;
  const draw = () => {
    const writes = document.activeElement === input;
    if (writes && input.hasAttribute("aria-invalid")) return;
    const text = questionOf(live.watched);
    if (text === shown && live.playing && performance.now() - drawnAt < REDRAW_MS) return;
    shown = text;
    drawnAt = performance.now();
    if (!writes) input.value = text;
    input.removeAttribute("aria-invalid");
    place.classList.remove("is-old");
    const parsed = tokenizer.parse(text);
    const target = tokenizer.ids[tokenizer.spell(Number(parsed.answer))[0]];
    const tokens = tokenizer.encode({ ...parsed, begun: [] });
    const moment = momentOf({ params: live.run.params, tokens, target, optimizer: sgd(1) });
    setTimeout(() => stage.show(moment, { scene: "backward", t: 1 })); // a task of its own, as it takes its time
    const lesson = live.lessons.find((other) => questionOf(other) === text);
    answer.textContent = `${lesson ? MEMBERSHIP[lesson.held ? 2 : 1] : "not in this training"}; surprise ${significant(moment.loss, 3)} nats`;
  };
  return { node, draw };
}
