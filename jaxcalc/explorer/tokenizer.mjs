// Text → tokens, with the words and the errors of words.py, tokenizer.py and questions.py.

export class InputError extends Error {}

const PAD = "<pad>";
export const END = "<end>";
export const EQUALS = "equals";
const LONGEST_TEXT = 1000;
const ALL_OPERATIONS = ["plus", "minus", "times", "divided by"];
const SYMBOLS = {
  "+": "plus",
  "-": "minus",
  "−": "minus",
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
  `[0-9]+|divided${SPACE}+by(?!${WORD_CHARACTER})|<pad>|<end>|[\\p{L}\\p{Nl}\\p{No}]+|(?!${SPACE})[^]`,
  "gu",
);
const COMPOUND = new RegExp(
  `(?<!${WORD_CHARACTER})(${TENS.join("|")})-?(${ONES.slice(1, 10).join("|")})(?!${WORD_CHARACTER})`,
  "gu",
);

const splitCompounds = (text) => text.replace(COMPOUND, "$1 $2");

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
    for (const word of splitCompounds(text.toLowerCase()).match(WORD) ?? []) {
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
    const token = word === "x" ? "times" : (SYMBOLS[word] ?? word.replace(new RegExp(`${SPACE}+`, "gu"), " "));
    if (Object.hasOwn(this.ids, token)) return token;
    if (ALL_OPERATIONS.includes(token)) {
      throw new InputError(
        `unknown operation ${quote(word)}; this vocabulary has ${this.operations.map(quote).join(", ")}`,
      );
    }
    const start = Array.from(word).slice(0, 40).join("");
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

// The word nearest to a misspelt one, as Python's difflib finds it: twice the matching characters over all characters.
function closest(word, words, cutoff = 0.6) {
  const target = Array.from(word);
  const scored = words.map((other) => {
    const letters = Array.from(other);
    return [(2 * matching(letters, target)) / (letters.length + target.length), other];
  });
  const [score, best] = scored.reduce((a, b) => (b[0] > a[0] || (b[0] === a[0] && b[1] > a[1]) ? b : a));
  return score >= cutoff ? best : null;
}

// Characters in the longest common run, plus those in the common runs left and right of it.
function matching(a, b) {
  let best = { size: 0, i: 0, j: 0 };
  for (let i = 0; i < a.length; i++) {
    for (let j = 0; j < b.length; j++) {
      let size = 0;
      while (i + size < a.length && j + size < b.length && a[i + size] === b[j + size]) size++;
      if (size > best.size) best = { size, i, j };
    }
  }
  const { size, i, j } = best;
  if (!size) return 0;
  return size + matching(a.slice(0, i), b.slice(0, j)) + matching(a.slice(i + size), b.slice(j + size));
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
