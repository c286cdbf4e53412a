"""The closed vocabulary: text ↔ token ids, one token per word.

"divided by" is one token. Its "by" would carry no information, and with one token per operation "equals" and the
operation are at the same distance from the answer in every problem.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Literal, get_args

from jaxcalc.errors import InputError, check_choice
from jaxcalc.tasks.words import EQUALS, NUMBER_WORDS, OPERATIONS, normalize, number_to_words, words_to_number

PAD, END = "<pad>", "<end>"
END_ID = 1
DIGITS = tuple("0123456789")
Notation = Literal["words", "digits", "digits-reversed"]
"""How a number is written: in words, or as one token per digit with the highest or the lowest digit first."""
NEGATIVE = "negative numbers are out of range"
LONGEST_TEXT = 1_000
"""Characters of the longest text that the tokenizer reads."""

_SYMBOLS = {
    "+": "plus",
    "-": "minus",
    "*": "times",
    "×": "times",
    "/": "divided by",
    "÷": "divided by",
    "=": "equals",
}
_NUMBER = re.compile(r"[0-9]+")
_WORD = re.compile(r"0x[0-9a-f]+|[0-9]+|divided[\s-]+by\b|<pad>|<end>|[^\W\d_]+|\S")
_AROUND = re.compile(r"\A\s*(?:what\s+is|what's|how\s+much\s+is)\b|(?<![\s?.])[\s?.]+\Z")
"""What may stand before and after a question: "what is two plus three?"."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text ↔ ids, over the words that the operations and the numbers up to `max_number` need.

    There is no unknown-word token: a word outside the vocabulary is an error.

    >>> tokenizer = Tokenizer()
    >>> tokenizer.encode("2 + 3") == tokenizer.encode("Two plus three equals")
    True
    >>> tokenizer.encode("2 + 3") == tokenizer.encode("What is two plus three?")
    True
    >>> tokenizer.decode(tokenizer.encode("fortytwo / 6 = 7"))
    'forty two divided by six equals seven'
    """

    operations: tuple[str, ...] = OPERATIONS
    max_number: int = 99
    output: Notation = "words"
    """How the number after "equals" is written."""
    notation: Notation = "words"
    """How the numbers before "equals" are written."""

    def __post_init__(self) -> None:
        for name in ("notation", "output"):
            value = getattr(self, name)
            check_choice(name, value, get_args(Notation))

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token's text; a token's id is its index."""
        values = {word: int(f"1{'0' * zeros}") for word, zeros in (("hundred", 2), ("thousand", 3), ("million", 6))}
        numbers = [word for word in NUMBER_WORDS if (values.get(word) or words_to_number(word)) <= self.max_number]
        notations = {self.output, self.notation}
        numbers = numbers if "words" in notations else ()
        digits = DIGITS if notations - {"words"} else ()
        return (PAD, END, EQUALS, *self.operations, *numbers, *digits)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {word: index for index, word in enumerate(self.vocabulary)}

    def canonical(self, text: str) -> list[str]:
        """Return the tokens of a text: symbols as words, numbers in canonical form.

        A text with an operation but no "equals" is a question and gets its "equals". Before "equals", "42" is a
        number and is written in `notation`. After it, and unless `output` is "words", each digit is one token.

        Raises `InputError` for a word outside the vocabulary (with the word that is near, if there is one), for a
        number that is malformed, negative or above `max_number`, and for a text of more than 1,000 characters.
        """
        if len(text) > LONGEST_TEXT:
            raise InputError(f"the text has {len(text):,} characters; at most {LONGEST_TEXT:,} are read")
        tokens: list[str] = []
        number: list[str] = []
        for word in _WORD.findall(_AROUND.sub("", normalize(text))):
            if word in NUMBER_WORDS or (word == "and" and number):
                number.append(word)
                continue
            tokens += self._number(number, tokens)
            number = []
            if not _NUMBER.fullmatch(word):
                tokens.append(self._word(word))
            elif self.output != "words" and EQUALS in tokens:
                tokens += word
            else:
                tokens += self._number([word], tokens)
        tokens += self._number(number, tokens)
        if EQUALS not in tokens and any(token in self.operations for token in tokens):
            tokens.append(EQUALS)
        return tokens

    def encode(self, text: str) -> list[int]:
        """Return the ids of the tokens of a text. Raises as `canonical` does.

        >>> Tokenizer().encode("two plus three equals five")
        [9, 3, 10, 2, 12]
        >>> Tokenizer().encode("two pluss three")
        Traceback (most recent call last):
        ...
        jaxcalc.errors.InputError: unknown word 'pluss'; did you mean 'plus'?
        """
        return [self.ids[token] for token in self.canonical(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, words separated by one space.

        Raises `InputError` for an id outside the vocabulary.
        """
        return " ".join(self.token(int(index)) for index in ids)

    def token(self, index: int) -> str:
        """Return the text of one id; raises `InputError` outside the vocabulary."""
        if not 0 <= index < len(self.vocabulary):
            raise InputError(f"token id {index} is outside the vocabulary of {len(self.vocabulary)} words")
        return self.vocabulary[index]

    def spell(self, number: int, notation: Notation | None = None) -> list[str]:
        """Return the tokens of a number in a notation, by default that of answers.

        >>> Tokenizer(output="digits-reversed").spell(42)
        ['2', '4']
        """
        notation = notation or self.output
        if notation == "words":
            return number_to_words(number).split()
        return list(str(number)[:: -1 if notation == "digits-reversed" else 1])

    def read(self, tokens: list[str], notation: Notation | None = None) -> int | None:
        """Return the number whose tokens, as `spell` returns them, these are; None if there is no such number."""
        notation = notation or self.output
        text = " ".join(tokens)
        try:
            digits = "".join(tokens[:: -1 if notation == "digits-reversed" else 1])
            number = words_to_number(text) if notation == "words" else int(digits)
        except ValueError:
            return None
        return number if self.spell(number, notation) == tokens else None

    def _number(self, words: list[str], before: list[str]) -> list[str]:
        """Return the tokens of a number that stands after the tokens `before`."""
        if not words:
            return []
        text = " ".join(words)
        if text.isdigit():
            text = text.lstrip("0") or "0"
        if text.isdigit() and len(text) > max(9, len(str(self.max_number))):  # int() is slow on it
            raise InputError(
                f"number out of range: {text[:20]!r} has {len(text)} digits; this vocabulary goes from 0 to "
                f"{self.max_number}"
            )
        value = int(text) if text.isdigit() else words_to_number(text)
        if value > self.max_number:
            raise InputError(f"number out of range: {text!r}; this vocabulary goes from 0 to {self.max_number}")
        return self.spell(value, self.output if EQUALS in before else self.notation)

    def _word(self, word: str) -> str:
        """Return the token of a word that is no number."""
        token = "times" if word == "x" else _SYMBOLS.get(word, re.sub(r"[\s-]+", " ", word))
        if token in self.ids:
            return token
        if token in OPERATIONS:
            known = ", ".join(repr(operation) for operation in self.operations)
            raise InputError(f"unknown operation {word!r}; this vocabulary has {known}")
        if word == "negative":
            raise InputError(f"{NEGATIVE}; this vocabulary goes from 0 to {self.max_number}")
        word = word[:40]
        if word.startswith("0x"):
            raise InputError(f"{word!r} may be a hexadecimal number; write it in decimal, or put spaces around the 'x'")
        readable = (*self.operations, EQUALS, *NUMBER_WORDS)
        distances = {name: _distance(word, name.split()[0]) for name in readable}
        near = min(distances, key=distances.__getitem__)
        is_near = distances[near] <= (1 if len(near) < 6 else 2)
        hint = f"did you mean {near!r}?" if is_near else "write numbers, an operation and 'equals'"
        raise InputError(f"unknown word {word!r}; {hint}")


def _distance(a: str, b: str) -> int:
    """Return how many letters of `a` to add, leave out, replace or exchange with the next one to get `b`."""
    before, last = [], list(range(len(b) + 1))
    for i, letter in enumerate(a):
        row = [i + 1]
        for j, other in enumerate(b):
            row.append(min(last[j] + (letter != other), last[j + 1] + 1, row[j] + 1))
            if i and j and (letter, a[i - 1]) == (b[j - 1], other):
                row[-1] = min(row[-1], before[j - 1] + 1)
        before, last = last, row
    return last[-1]
