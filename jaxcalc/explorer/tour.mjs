// The tour: eight stops through the story of learning, each told with the numbers that the page shows.

import { overlap } from "./boxes.mjs";
import { factsOf, fourBoxes } from "./facts.mjs";
import { percent, significant } from "./numbers.mjs";
import { END, PAD } from "./tokenizer.mjs";

const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

// A stop: what its card says, the scene that the stage plays meanwhile, and where it points. Each text of `at` names
// the elements that one ring encloses.
/** @type {TourStop[]} */
export const STOPS = [
  {
    id: "what",
    title: "What this is",
    scene: "forward",
    at: [".reply"],
    says: (seen) => [
      `This network of ${count(seen.weights)} numbers reads a question and says the words that come next.`,
      beforeAndAfter(seen),
      judgement(seen),
    ],
  },
  {
    id: "tokens",
    title: "Text becomes tokens",
    scene: "forward",
    at: [".stage .token"],
    says: ({ tokens, vocabulary, padding }) => [
      `The tokenizer cuts the text into tokens: ${tokens.map(({ word }) => quoted(word)).join(", ")}.`,
      `Each is known by its number in a list of ${vocabulary} words; ${quoted(tokens[0].word)} is number ${tokens[0].id}.`,
      padding ? "In front of it, “pad” fills shorter questions up." : null,
    ],
  },
  {
    id: "embeddings",
    title: "Embeddings and the stream",
    scene: "forward",
    at: [".stage .band.embed", ".stage .resting.rails line:last-child"],
    says: ({ width, layers, early, last }) => [
      `Each token becomes ${width} numbers that were learned: those of its word plus those of its place.`,
      `They climb as a stream. Each of the ${layers} layers above reads the stream and adds to it.`,
      `Read out this early at ${last}, the stream would say ${quoted(early.word)}, with ${percent(early.p)}.`,
    ],
  },
  {
    id: "attention",
    title: "Attention",
    scene: "forward",
    at: [".stage .ahead path.asks"],
    says: ({ last, looks, heads, layers }) => [
      "In attention a token looks at itself and at those before it, and takes something of them along. The more it looks, the wider the arc.",
      `Of the other words, ${last} looks most at ${looks.name}: ${percent(looks.share)} of its attention, over all ${(heads * layers) / 2} heads.`,
      `Head ${looks.most.head} of block ${looks.most.block} gives it ${percent(looks.most.share)}. Nobody programmed that.`,
    ],
  },
  {
    id: "output",
    title: "The next word",
    scene: "forward",
    at: [".stage .bars-of-words"],
    says: ({ last, vocabulary, likeliest }) => [
      `At the top, the stream of ${last} becomes a probability for each of the ${vocabulary} words.`,
      likeliest.word === END
        ? `The likeliest is ${quoted(END)} with ${percent(likeliest.p)}, so the answer stops here.`
        : `The likeliest is ${quoted(likeliest.word)} with ${percent(likeliest.p)}. It is said, and read with the rest when the next word is asked for.`,
      "This is next-token prediction, the task of every large language model.",
    ],
  },
  {
    id: "loss",
    title: "Loss is surprise",
    scene: "surprise",
    at: [".stage .surprise, .stage .word.right"],
    says: ({ target, loss }) => [
      `${{ right: "The right word is", chosen: "The word to learn is the one that you chose,", likeliest: "No word is right here, so the likeliest is learned:" }[target.kind]} ${quoted(target.word)}, and it gets ${percent(target.p)}.`,
      `The loss is the surprise at it: ${surpriseSum(target.p, loss)}.`,
      "It is 0 for a word that was certain, and it grows without end as p falls.",
    ],
  },
  {
    id: "backpropagation",
    title: "Backpropagation",
    scene: "backward",
    at: [".stage .summary"],
    says: ({ target, error, boxes, total }) => [
      `The error at ${quoted(target.word)}, p − 1 = ${significant(error, 3)}, is traced backwards by the chain rule, the way the answer came.`,
      total
        ? `Each stage gets its share of the blame: ${boxes.map(({ name, share }) => `${name} ${tenths(share)}`).join("; ")}.`
        : "Here the gradient is 0, so there is no blame to share.",
      "The tokenizer has no weights, so it carries no blame.",
    ],
  },
  {
    id: "descent",
    title: "Gradient descent, again and again",
    scene: "update",
    at: ["#teach", "#tab-live"],
    says: (seen) => [
      weightSum(seen),
      `Forward, loss, backward, update: that is one step. This run took ${count(seen.trained)}, each for a batch of problems.`,
      "Press “Teach it” for one more. Then open “Train from nothing”, and see a network learn from its first step.",
    ],
  },
];

/** @type {(n: number) => string} */
const count = (n) => n.toLocaleString("en-US");
/** @type {(word: string) => string} */
const quoted = (word) => `“${word}”`;
/** @type {(share: number) => string} */
const tenths = (share) => `${(100 * share).toFixed(1).replace("-", "−")}\u00a0%`;

/** @type {(seen: TourFacts) => string} */
function beforeAndAfter({ question, first, answer, steps, lessons }) {
  const own = lessons ? `${count(lessons)} lesson${lessons > 1 ? "s" : ""} of yours` : "";
  const training = steps ? `${count(steps)} steps of training` : "";
  if (!training && !own) return `It is untrained here, and answers ${quoted(question)} with ${quoted(first)}.`;
  const after = [training, own].filter(Boolean).join(" and ");
  return `Untrained, it answered ${quoted(question)} with ${quoted(first)}. After ${after} it answers ${quoted(answer)}.`;
}

/** @type {(seen: TourFacts) => string} */
function judgement({ answer, right, most }) {
  if (right === null) return `The right answer is not a whole number from 0 to ${most}, so it cannot say it.`;
  return answer === right ? "That is right." : `That is wrong, it is ${quoted(right)}.`;
}

// “−ln 0.0443 = 3.12 nats”. A p near 1 is written as what is missing from it.
/** @type {(p: number, loss: number) => string} */
function surpriseSum(p, loss) {
  if (!p) return `−ln p = ${significant(loss, 3)} nats`;
  const isNearOne = p > 0.99 && p < 1;
  return `−ln ${isNearOne ? `(1 − ${significant(1 - p, 3)})` : significant(p, 3)} = ${significant(loss, 3)} nats`;
}

// One weight's step, with as many digits as are needed to see it move.
/** @type {(seen: TourFacts) => string} */
function weightSum({ moved: { name, value, gradient, step, next }, rate, kind }) {
  if (![value, gradient, step, next].every(Number.isFinite))
    return "The gradient says how every weight must move. At this rate they would no longer be finite numbers, so the step is refused.";
  const digits = Math.max(3, Math.min(8, Math.ceil(Math.log10(Math.abs(value / step)) + 2) || 3));
  const from = significant(value, digits),
    to = significant(next, digits),
    by = significant(gradient, 3);
  if (kind === "sgd")
    return `Every weight moves a little downhill. ${name} moves most: ${from} − ${significant(rate, 3)} · ${gradient < 0 ? `(${by})` : by} = ${to}, its value − rate · gradient.`;
  return `Every weight moves a little downhill. ${name} moves most: its gradient is ${by}, and Adam takes it from ${from} to ${to}.`;
}

// All numbers of the tour. first and answer are the words that the untrained model and this one say.
/** @type {(app: App, answers: { first: string[], answer: string[] }) => TourFacts} */
export function tourFacts(app, answers) {
  const { words, parsed, data } = app;
  const moment = app.lesson?.before ?? app.moment; // what the stage shows
  const { tokens, target, probabilities, params } = moment;
  const facts = factsOf(moment);
  const shown = tokens.map((id) => ({ id, word: words[id] })).filter(({ word }) => word !== PAD);
  const padding = tokens.length - shown.length;
  const right = app.rightWords(parsed);
  const begun = parsed.begun.length;
  const fits = right && parsed.begun.every((word, i) => word === right[i]);
  const isRight = fits && words[target] === right[begun];
  const likeliest = best(probabilities);
  return {
    weights: data.leaves.reduce((total, [, shape]) => total + shape.reduce((a, b) => a * b, 1), 0),
    steps: data.snapshots[app.snapshot].step,
    trained: data.snapshots.at(-1).step,
    lessons: app.stepped,
    question: parsed.tokens.join(" "),
    first: said(answers.first),
    answer: said(answers.answer),
    right: right && said(right),
    most: data.task.max_number,
    tokens: shown,
    vocabulary: words.length,
    padding,
    width: params.embed.token.shape[1],
    layers: 2 * params.blocks.length,
    heads: params.blocks[0].attention.query.shape[1],
    last: nameAt(shown, shown.length - 1),
    early: { word: words[facts.says[0].word], p: facts.says[0].p },
    looks: looksOf(facts.arcs, shown, padding),
    likeliest: { word: words[likeliest], p: probabilities[likeliest] },
    target: {
      word: words[target],
      p: probabilities[target],
      kind: isRight ? "right" : !fits && target === likeliest ? "likeliest" : "chosen",
    },
    loss: facts.loss,
    error: facts.error,
    boxes: fourBoxes(facts)
      .filter(({ share }) => share !== null)
      .map(({ name, share }) => ({ name, share: share ?? 0 })),
    total: moment.blame.total,
    moved: facts.moved.reduce((a, b) => (Math.abs(b.step) > Math.abs(a.step) ? b : a)),
    rate: moment.rate,
    kind: app.kind,
  };
}

/** @type {(sizes: number[]) => number} */
const best = (sizes) => sizes.indexOf(Math.max(...sizes));

/** @type {(answer: string[]) => string} */
const said = (answer) =>
  (answer.filter((word) => word !== END).join(" ") || "nothing") + (answer.at(-1) === END ? "" : " …");

// “two”, or the second “two” where there are several.
/** @type {(shown: { word: string }[], place: number) => string} */
export function nameAt(shown, place) {
  const { word } = shown[place];
  const all = shown.filter((other) => other.word === word).length;
  if (all === 1) return quoted(word);
  const before = shown.slice(0, place).filter((other) => other.word === word).length;
  return `the ${ORDINALS[before] ?? `${before + 1}th`} ${quoted(word)}`;
}

// The word at which the last token looks most, other than itself, and the head that looks most at it.
/** @type {(arcs: Arc[], shown: { word: string }[], padding: number) => TourFacts["looks"]} */
function looksOf(arcs, shown, padding) {
  const last = padding + shown.length - 1;
  const mine = arcs.filter(({ to }) => to === last);
  const nHeads = mine.filter(({ from }) => from === last).length; // one arc to itself for each head
  const shares = shown
    .slice(0, -1)
    .map((_, i) => mine.reduce((sum, { from, share }) => sum + (from === padding + i ? share : 0), 0) / nHeads);
  const place = best(shares);
  const most = mine.filter(({ from }) => from === padding + place).reduce((a, b) => (b.share > a.share ? b : a));
  const block = Number(most.stage.split(" ")[1]);
  return {
    name: nameAt(shown, place),
    share: shares[place],
    most: { head: most.head, block, share: most.share },
  };
}

// Where the card goes: inside the view, off what it points at, near it, and off the other things where that is
// possible. Null if there is no such place. Boxes are {left, top, right, bottom}.
/** @type {(boxes: { card: [number, number], view: Box, targets: Box[], others: Box[] }, gap?: number) => { left: number, top: number } | null} */
export function placeCard({ card: [width, height], view, targets, others }, gap = 12) {
  const all = [...targets, ...others];
  const lefts = [view.left + gap, view.right - width - gap];
  const tops = [view.top + gap, view.bottom - height - gap];
  for (const { left, top, right, bottom } of all) {
    lefts.push(left, right - width, right + gap, left - width - gap);
    tops.push(top, bottom - height, bottom + gap, top - height - gap);
  }
  let found = null,
    least = Infinity;
  for (const left of lefts) {
    for (const top of tops) {
      const box = { left, top, right: left + width, bottom: top + height };
      if (left < view.left || top < view.top || box.right > view.right || box.bottom > view.bottom) continue;
      if (targets.some((target) => overlap(box, grown(target, gap / 2)))) continue;
      const hidden = others.reduce((sum, other) => sum + overlap(box, other), 0) / (width * height);
      const cost = 800 * hidden + gapBetween(box, targets[0]);
      if (cost < least) [found, least] = [{ left, top }, cost];
    }
  }
  return found;
}

/** @type {(box: Box, by: number) => Box} */
const grown = ({ left, top, right, bottom }, by) => ({
  left: left - by,
  top: top - by,
  right: right + by,
  bottom: bottom + by,
});

/** @type {(a: Box, b: Box) => number} */
const gapBetween = (a, b) =>
  Math.hypot(Math.max(0, a.left - b.right, b.left - a.right), Math.max(0, a.top - b.bottom, b.top - a.bottom));

// By how much to scroll, so that a box is seen between two heights of the window; its top, if it is higher than that.
/** @type {(box: Box, from: number, to: number) => number} */
export function scrollFor({ top, bottom }, from, to) {
  if (top >= from && bottom <= to) return 0;
  return bottom - top > to - from || top < from ? top - from : bottom - to;
}
