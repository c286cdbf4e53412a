// Text → tokens, with the words and the errors of words.py, tokenizer.py and questions.py.

export class InputError extends Error {}

const PAD = "<pad>";
export const END = "<end>";
export const EQUALS = "equals";
const NEGATIVE = "negative numbers are out of range";
const LONGEST_TEXT = 1000;
const ALL_OPERATIONS = ["plus", "minus", "times", "divided by"];
const SYMBOLS = {
  "+": "plus",
  "-": "minus",
  "*": "times",
  "×": "times",
  "/": "divided by",
  "÷": "divided by",
  "=": "equals",
};
const ONES =
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(
    " ",
  );
const TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split(" ");
const NUMBER_WORDS = [...ONES, ...TENS, "hundred", "thousand", "million"];
const LARGEST_NUMBER = 999_999_999;

// Python's \s, \w and [^\W\d_] are Unicode's; JavaScript's are not quite.
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const WORD_CHARACTER = "[\\p{L}\\p{N}_]";
const WORD = new RegExp(
  `0x[0-9a-f]+|[0-9]+|divided(?:${SPACE}|-)+by(?!${WORD_CHARACTER})|<pad>|<end>|[\\p{L}\\p{Nl}\\p{No}]+|(?!${SPACE})[^]`,
  "gu",
);
const AROUND = new RegExp(
  `^${SPACE}*(?:what${SPACE}+is|what's|how${SPACE}+much${SPACE}+is)(?!${WORD_CHARACTER})` +
    `|(?<!${SPACE}|[?.])(?:${SPACE}|[?.])+$`,
  "gu",
);
const PLAIN = {
  ...Object.fromEntries(Array.from("‐‒–—―−", (dash) => [dash, "-"])),
  ...{ "⁄": "/", "∕": "/", "·": "*", "∗": "*", "⋅": "*", "’": "'" },
  ...{ "\u200b": " ", "\u00ad": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "" },
};
const JOINING = [...ALL_OPERATIONS, EQUALS, "hundred", "thousand", "million", "and"]
  .join("|")
  .replace(" ", `(?:${SPACE}|-)+`);
const JOINED = new RegExp(`(?<=[a-z0-9])-((?:${JOINING})(?:-(?:${JOINING}))*)(?![\\p{L}\\p{Nl}\\p{No}])(?:-(?=[a-z0-9]))?`, "gu");
const COMMA = new RegExp(`(?<!${WORD_CHARACTER})(thousand|million)${SPACE}*,`, "gu");
const GROUPS = /(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])/gu;
const COMPOUND = new RegExp(
  `(?<!${WORD_CHARACTER})(${TENS.join("|")})-?(${ONES.slice(1, 10).join("|")})(?!${WORD_CHARACTER})`,
  "gu",
);

// A text in its plain form, in which each number and each operation is written in one way.
function normalize(text) {
  const plain = (character) => (/\p{No}/u.test(character) ? character : character.normalize("NFKC"));
  return Array.from(Array.from(text, plain).join(""), (character) => PLAIN[character] ?? character)
    .join("")
    .toLowerCase()
    .replace(JOINED, (_, joined) => ` ${joined.replaceAll("-", " ")} `)
    .replace(COMPOUND, "$1 $2")
    .replace(COMMA, "$1 ")
    .replace(GROUPS, (number) => number.replaceAll(",", ""));
}

// 1,234 is "one thousand two hundred thirty four".
export function numberToWords(number, joiner = []) {
  for (const [scale, name] of [
    [1_000_000, "million"],
    [1000, "thousand"],
    [100, "hundred"],
  ]) {
    if (number >= scale) {
      const rest = number % scale;
      const tail = rest ? [...(rest < 100 ? joiner : []), ...numberToWords(rest, joiner)] : [];
      return [...numberToWords(Math.floor(number / scale), joiner), name, ...tail];
    }
  }
  if (number < 20) return [ONES[number]];
  return [TENS[Math.floor(number / 10) - 2], ...(number % 10 ? [ONES[number % 10]] : [])];
}

// The integer that words state, or an error if they are not exactly the words of a number.
export function wordsToNumber(words) {
  const unknown = words.find((word) => !NUMBER_WORDS.includes(word) && word !== "and");
  if (unknown) throw new InputError(`${quote(unknown)} is not a number word (in ${shorten(words.join(" "))})`);
  const number = valueOf(words);
  if (number === null) throw new InputError(`${shorten(words.join(" "))} is not a number in words`);
  return number;
}

// The integer that words state, or null.
function valueOf(words) {
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
function spells(words, number) {
  let next = 0;
  for (const expected of numberToWords(number, ["and"])) {
    if (words[next] === expected) next += 1;
    else if (expected !== "and") return false;
  }
  return next === words.length;
}

// Text ↔ tokens for a task, {vocabulary, operations, max_number, output, prompt_length}.
export class Tokenizer {
  constructor(task) {
    Object.assign(this, task);
    this.ids = Object.fromEntries(task.vocabulary.map((word, id) => [word, id]));
  }

  // The tokens of a text: symbols as words, numbers in canonical form; a question gets its "equals".
  canonical(text) {
    if (text.length > LONGEST_TEXT) {
      const length = Array.from(text).length; // in characters, as Python counts them
      if (length > LONGEST_TEXT) {
        throw new InputError(
          `the text has ${thousands(length)} characters; at most ${thousands(LONGEST_TEXT)} are read`,
        );
      }
    }
    const tokens = [];
    let number = [];
    for (const word of normalize(text).replace(AROUND, "").match(WORD) ?? []) {
      if (NUMBER_WORDS.includes(word) || (word === "and" && number.length)) {
        number.push(word);
        continue;
      }
      tokens.push(...this.#number(number, tokens));
      number = [];
      if (!/^[0-9]+$/.test(word)) tokens.push(this.#word(word));
      else if (this.output !== "words" && tokens.includes(EQUALS)) tokens.push(...word);
      else tokens.push(...this.#number([word], tokens));
    }
    tokens.push(...this.#number(number, tokens));
    if (!tokens.includes(EQUALS) && tokens.some((token) => this.operations.includes(token))) tokens.push(EQUALS);
    return tokens;
  }

  // A question and the words, if any, with which its answer begins: {a, operation, b, answer, begun, tokens}.
  parse(text) {
    const all = this.canonical(text);
    const middle = all.includes(EQUALS) ? all.indexOf(EQUALS) + 1 : all.length;
    const tokens = all.slice(0, middle),
      begun = all.slice(middle);
    const [four, two] = [4, 2].map((number) => numberToWords(Math.min(number, this.max_number)).join(" "));
    const hint = `ask for example '${four} ${this.operations[0]} ${two}'`;
    const operations = tokens.filter((token) => this.operations.includes(token));
    if (!tokens.length) throw new InputError(`the prompt is empty; ${hint}`);
    if (operations.length > 1) {
      const isSign = (token, index) => token === "minus" && (!index || operations.includes(tokens[index - 1]));
      if (tokens.some(isSign)) throw new InputError(`${NEGATIVE}; this vocabulary goes from 0 to ${this.max_number}`);
      throw new InputError(
        `the prompt has ${operations.length} operations (${operations.slice(0, 4).join(", ")}), not 1; ${hint}`,
      );
    }
    if (!operations.length || tokens.at(-1) !== EQUALS) {
      throw new InputError(`the prompt is not 'number operation number': ${quoteStart(tokens)}; ${hint}`);
    }
    const split = tokens.indexOf(operations[0]);
    const [a, b] = [tokens.slice(0, split), tokens.slice(split + 1, -1)].map((words, index) => {
      const side = index ? "after" : "before";
      if (!words.length) throw new InputError(`there is no number ${side} ${quote(operations[0])}; ${hint}`);
      const number = valueOf(words);
      if (number === null) throw new InputError(`${quoteStart(words)} is not a number; ${hint}`);
      if (number > this.max_number) {
        throw new InputError(
          `number out of range: ${quoteStart(words)}; this vocabulary goes from 0 to ${this.max_number}`,
        );
      }
      return number;
    });
    if (operations[0] === "divided by" && b === 0) {
      throw new InputError("division by zero has no answer; divide by another number");
    }
    const answer = answerOf(a, operations[0], b, this.max_number);
    return {
      a,
      operation: operations[0],
      b,
      answer,
      tokens: [...numberToWords(a), operations[0], ...numberToWords(b), EQUALS],
      begun,
    };
  }

  // Token ids of a parsed question, padded on the left so that "equals" always stands at the same position.
  encode({ tokens, begun }) {
    const padded = [...Array(this.prompt_length - tokens.length).fill(PAD), ...tokens, ...begun];
    return padded.map((token) => this.ids[token]);
  }

  // A number's tokens as an answer.
  spell(number) {
    if (this.output === "words") return numberToWords(number);
    const digits = [...String(number)];
    return this.output === "digits-reversed" ? digits.reverse() : digits;
  }

  #number(words, before) {
    if (!words.length) return [];
    const joined = words.join(" ");
    const range = `this vocabulary goes from 0 to ${this.max_number}`;
    const isDigits = /^[0-9]+$/.test(joined);
    const text = isDigits ? joined.replace(/^0+(?=.)/, "") : joined;
    if (isDigits && text.length > 9) {
      throw new InputError(`number out of range: ${quote(text.slice(0, 20))} has ${text.length} digits; ${range}`);
    }
    const value = isDigits ? Number(text) : wordsToNumber(words);
    if (value > this.max_number) throw new InputError(`number out of range: ${quote(text)}; ${range}`);
    return before.includes(EQUALS) ? this.spell(value) : numberToWords(value);
  }

  #word(word) {
    const token = word === "x" ? "times" : (SYMBOLS[word] ?? word.replace(new RegExp(`(?:${SPACE}|-)+`, "gu"), " "));
    if (Object.hasOwn(this.ids, token)) return token;
    if (ALL_OPERATIONS.includes(token)) {
      throw new InputError(
        `unknown operation ${quote(word)}; this vocabulary has ${this.operations.map(quote).join(", ")}`,
      );
    }
    if (word === "negative") {
      throw new InputError(`${NEGATIVE}; this vocabulary goes from 0 to ${this.max_number}`);
    }
    const start = Array.from(word).slice(0, 40).join("");
    if (start.startsWith("0x")) {
      throw new InputError(
        `${quote(start)} may be a hexadecimal number; write it in decimal, or put spaces around the 'x'`,
      );
    }
    const near = closest(start, [...this.operations, EQUALS, ...NUMBER_WORDS]);
    const hint = near ? `did you mean ${quote(near)}?` : "write numbers, an operation and 'equals'";
    throw new InputError(`unknown word ${quote(start)}; ${hint}`);
  }
}

// The answer of a problem, or null if no number from 0 to the largest is right.
export function answerOf(a, operation, b, maxNumber) {
  const exact = { plus: a + b, minus: a - b, times: a * b, "divided by": a % b ? null : a / b }[operation];
  return exact !== null && exact >= 0 && exact <= maxNumber ? exact : null;
}

// The word nearest to a misspelt one, or null where none is near.
function closest(word, words) {
  const distances = words.map((other) => distance(Array.from(word), Array.from(other.split(" ")[0])));
  const least = Math.min(...distances);
  const near = words[distances.indexOf(least)];
  return least <= (near.length < 6 ? 1 : 2) ? near : null;
}

// How many letters of a to add, leave out, replace or exchange with the next one to get b.
function distance(a, b) {
  let before = [],
    last = Array.from({ length: b.length + 1 }, (_, index) => index);
  a.forEach((letter, i) => {
    const row = [i + 1];
    b.forEach((other, j) => {
      row.push(Math.min(last[j] + (letter !== other), last[j + 1] + 1, row[j] + 1));
      if (i && j && letter === b[j - 1] && a[i - 1] === other) row[j + 1] = Math.min(row[j + 1], before[j - 1] + 1);
    });
    [before, last] = [last, row];
  });
  return last.at(-1);
}

// A string as Python's repr shows it.
function quote(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = Array.from(text, (character) => {
    if (character === "\\" || character === mark) return `\\${character}`;
    if (character === "\n" || character === "\r" || character === "\t")
      return { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    if (character === " " || !/[\p{C}\p{Z}]/u.test(character)) return character;
    const code = character.codePointAt(0);
    const [letter, width] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${letter}${code.toString(16).padStart(width, "0")}`;
  });
  return mark + escaped.join("") + mark;
}

const quoteStart = (tokens) => quote(tokens.join(" ").slice(0, 60));
const shorten = (text) => quote(text.length <= 60 ? text : `${text.slice(0, 57)}...`);
const thousands = (number) => number.toLocaleString("en-US");
