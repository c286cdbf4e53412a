// Number words, and texts in their plain form, like words.py.

export const EQUALS = "equals";
export const ALL_OPERATIONS = ["plus", "minus", "times", "divided by"];
const ONES =
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(
    " ",
  );
/** @type {[number, string][]} */
const SCALES = [
  [1_000_000, "million"],
  [1000, "thousand"],
  [100, "hundred"],
];
const TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split(" ");
export const NUMBER_WORDS = [...ONES, ...TENS, "hundred", "thousand", "million"];
const LARGEST_NUMBER = 999_999_999;

// Python's \s, \w and [^\W\d_] are Unicode's; JavaScript's are not quite.
export const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const WORD_CHARACTER = "[\\p{L}\\p{N}_]";
export const WORD = new RegExp(
  `0x[0-9a-f]+|[0-9]+|divided(?:${SPACE}|-)+by(?!${WORD_CHARACTER})|<pad>|<end>|[\\p{L}\\p{Nl}\\p{No}]+|(?!${SPACE})[^]`,
  "gu",
);
export const AROUND = new RegExp(
  `^${SPACE}*(?:what${SPACE}+is|what's|how${SPACE}+much${SPACE}+is)(?!${WORD_CHARACTER})` +
    `|(?<!${SPACE}|[?.])(?:${SPACE}|[?.])+$`,
  "gu",
);
/** @type {Record<string, string>} */
const PLAIN = {
  ...Object.fromEntries(Array.from("‐‒–—―−", (dash) => [dash, "-"])),
  ...{ "⁄": "/", "∕": "/", "·": "*", "∗": "*", "⋅": "*", "’": "'" },
  ...{ "\u200b": " ", "\u00ad": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "" },
};
const JOINING = [...ALL_OPERATIONS, EQUALS, "hundred", "thousand", "million", "and"]
  .join("|")
  .replace(" ", `(?:${SPACE}|-)+`);
const JOINED = new RegExp(`(?<=[a-z0-9])-(${JOINING})(?![\\p{L}\\p{Nl}\\p{No}])(?:-(?=[a-z0-9]))?`, "gu");
const COMMA = new RegExp(`(?<!${WORD_CHARACTER})(thousand|million)${SPACE}*,`, "gu");
const GROUPS = /(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])/gu;
const COMPOUND = new RegExp(
  `(?<!${WORD_CHARACTER})(${TENS.join("|")})-?(${ONES.slice(1, 10).join("|")})(?!${WORD_CHARACTER})`,
  "gu",
);

// A text in its plain form, in which each number and each operation is written in one way.
/** @type {(text: string) => string} */
export function normalize(text) {
  const plain = (/** @type {string} */ character) =>
    /\p{No}/u.test(character) ? character : character.normalize("NFKC");
  return Array.from(Array.from(text, plain).join(""), (character) => PLAIN[character] ?? character)
    .join("")
    .toLowerCase()
    .replace(JOINED, " $1 ")
    .replace(COMPOUND, "$1 $2")
    .replace(COMMA, "$1 ")
    .replace(GROUPS, (number) => number.replaceAll(",", ""));
}

// 1,234 is "one thousand two hundred thirty four".
/** @type {(number: number, joiner?: string[]) => string[]} */
export function numberToWords(number, joiner = []) {
  for (const [scale, name] of SCALES) {
    if (number >= scale) {
      const rest = number % scale;
      const tail = rest ? [...(rest < 100 ? joiner : []), ...numberToWords(rest, joiner)] : [];
      return [...numberToWords(Math.floor(number / scale), joiner), name, ...tail];
    }
  }
  if (number < 20) return [ONES[number]];
  return [TENS[Math.floor(number / 10) - 2], ...(number % 10 ? [ONES[number % 10]] : [])];
}

// The integer that words state, or null.
/** @type {(words: string[]) => number | null} */
export function numberOf(words) {
  let total = 0,
    group = 0;
  for (const word of words) {
    if (word === "thousand" || word === "million") {
      total += group * (word === "thousand" ? 1000 : 1_000_000);
      group = 0;
    } else if (word === "hundred") group *= 100;
    else if (word !== "and") group += ONES.includes(word) ? ONES.indexOf(word) : 10 * (TENS.indexOf(word) + 2);
  }
  const number = total + group;
  return number <= LARGEST_NUMBER && spells(words, number) ? number : null;
}

// Whether words spell a number, with or without each "and" of British English.
/** @type {(words: string[], number: number) => boolean} */
function spells(words, number) {
  let next = 0;
  for (const expected of numberToWords(number, ["and"])) {
    if (words[next] === expected) next += 1;
    else if (expected !== "and") return false;
  }
  return next === words.length;
}

// The word nearest to a misspelt one, or null where none is near.
/** @type {(word: string, words: string[]) => string | null} */
export function closest(word, words) {
  const distances = words.map((other) => distance(Array.from(word), Array.from(other.split(" ")[0])));
  const least = Math.min(...distances);
  const near = words[distances.indexOf(least)];
  return least <= (near.length < 6 ? 1 : 2) ? near : null;
}

// How many letters of a to add, leave out, replace or exchange with the next one to get b.
/** @type {(a: string[], b: string[]) => number} */
function distance(a, b) {
  /** @type {number[]} */
  let before = [];
  let last = Array.from({ length: b.length + 1 }, (_, index) => index);
  a.forEach((letter, i) => {
    const row = [i + 1];
    b.forEach((other, j) => {
      row.push(Math.min(last[j] + Number(letter !== other), last[j + 1] + 1, row[j] + 1));
      if (i && j && letter === b[j - 1] && a[i - 1] === other) row[j + 1] = Math.min(row[j + 1], before[j - 1] + 1);
    });
    [before, last] = [last, row];
  });
  return last.at(-1);
}
