// Text → tokens, with the errors of words.py, tokenizer.py and questions.py.

import {
  ALL_OPERATIONS,
  AROUND,
  closest,
  EQUALS,
  NUMBER_WORDS,
  normalize,
  numberOf,
  numberToWords,
  SPACE,
  WORD,
} from "./words.mjs";

export class InputError extends Error {}

export const PAD = "<pad>";
export const END = "<end>";
const NEGATIVE = "negative numbers are out of range";
const LONGEST_TEXT = 1000;
/** @type {Record<string, string>} */
const SYMBOLS = {
  "+": "plus",
  "-": "minus",
  "*": "times",
  "×": "times",
  "/": "divided by",
  "÷": "divided by",
  "=": "equals",
};

// The integer that words state, or an error if they are not exactly the words of a number.
/** @type {(words: string[]) => number} */
function wordsToNumber(words) {
  const unknown = words.find((word) => !NUMBER_WORDS.includes(word) && word !== "and");
  if (unknown) throw new InputError(`${quote(unknown)} is not a number word (in ${shorten(words.join(" "))})`);
  const number = numberOf(words);
  if (number === null) throw new InputError(`${shorten(words.join(" "))} is not a number in words`);
  return number;
}

// Text ↔ tokens for a task, {vocabulary, operations, max_number, output, prompt_length}.
export class Tokenizer {
  /** @param {TaskData} task */
  constructor(task) {
    this.operations = task.operations;
    this.max_number = task.max_number;
    this.output = task.output;
    this.prompt_length = task.prompt_length;
    /** @type {Record<string, number>} */
    this.ids = Object.fromEntries(task.vocabulary.map((word, id) => [word, id]));
  }

  // The tokens of a text: symbols as words, numbers in canonical form; a question gets its "equals".
  /** @type {(text: string) => string[]} */
  canonical(text) {
    if (text.length > LONGEST_TEXT) {
      const length = Array.from(text).length; // in characters, as Python counts them
      if (length > LONGEST_TEXT) {
        throw new InputError(
          `the text has ${thousands(length)} characters; at most ${thousands(LONGEST_TEXT)} are read`,
        );
      }
    }
    /** @type {string[]} */
    const tokens = [];
    /** @type {string[]} */
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
  /** @type {(text: string) => Question} */
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
      const isSign = (/** @type {string} */ token, /** @type {number} */ index) =>
        token === "minus" && (!index || operations.includes(tokens[index - 1]));
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
      const number = numberOf(words);
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
  /** @type {(question: { tokens: string[], begun: string[] }) => number[]} */
  encode({ tokens, begun }) {
    const padded = [...Array(this.prompt_length - tokens.length).fill(PAD), ...tokens, ...begun];
    return padded.map((token) => this.ids[token]);
  }

  // A number's tokens as an answer.
  /** @type {(number: number) => string[]} */
  spell(number) {
    if (this.output === "words") return numberToWords(number);
    const digits = [...String(number)];
    return this.output === "digits-reversed" ? digits.reverse() : digits;
  }

  /** @type {(words: string[], before: string[]) => string[]} */
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

  /** @type {(word: string) => string} */
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
/** @type {(a: number, operation: string, b: number, maxNumber: number) => number | null} */
export function answerOf(a, operation, b, maxNumber) {
  /** @type {Record<string, number | null>} */
  const answers = { plus: a + b, minus: a - b, times: a * b, "divided by": a % b ? null : a / b };
  const exact = answers[operation];
  return exact !== null && exact >= 0 && exact <= maxNumber ? exact : null;
}

// A string as Python's repr shows it.
/** @type {(text: string) => string} */
function quote(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = Array.from(text, (character) => {
    if (character === "\\" || character === mark) return `\\${character}`;
    if (character === "\n" || character === "\r" || character === "\t")
      return { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    if (character === " " || !/[\p{C}\p{Z}]/u.test(character)) return character;
    const code = character.codePointAt(0) ?? 0;
    const [letter, width] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${letter}${code.toString(16).padStart(width, "0")}`;
  });
  return mark + escaped.join("") + mark;
}

/** @type {(tokens: string[]) => string} */
const quoteStart = (tokens) => quote(tokens.join(" ").slice(0, 60));
/** @type {(text: string) => string} */
const shorten = (text) => quote(text.length <= 60 ? text : `${text.slice(0, 57)}...`);
/** @type {(number: number) => string} */
const thousands = (number) => number.toLocaleString("en-US");
