"""The closed vocabulary: text ↔ token ids, one token a word.

"divided by" is one token. Its "by" would carry no information, and with one
token an operation every problem puts its operation and its "equals" at the
same distance from the answer.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable
from typing import Literal, get_args

from jaxcalc.errors import InputError
from jaxcalc.tasks.words import NUMBER_WORDS, number_to_words, split_compounds, words_to_number

PAD, END, EQUALS = "<pad>", "<end>", "equals"
END_ID = 1
OPERATIONS = ("plus", "minus", "times", "divided by")
DIGITS = tuple("0123456789")
Output = Literal["words", "digits", "reversed"]
LONGEST_TEXT = 1_000
"""Characters; the longest text that is read at all."""

_SYMBOLS = {
    "+": "plus",
    "-": "minus",
    "−": "minus",
    "*": "times",
    "×": "times",
    "/": "divided by",
    "÷": "divided by",
    "=": "equals",
}
_NUMBER = re.compile(r"[0-9]+")
_WORD = re.compile(r"[0-9]+|divided\s+by\b|<pad>|<end>|[^\W\d_]+|\S")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text ↔ ids over the words that `operations`, numbers up to `max_number` and answers in `output` need.

    There is no unknown-word token: a word outside the vocabulary is an error.

    >>> tokenizer = Tokenizer()
    >>> tokenizer.encode("2 + 3") == tokenizer.encode("Two plus three equals")
    True
    >>> tokenizer.decode(tokenizer.encode("fortytwo / 6 = 7"))
    'forty two divided by six equals seven'
    """

    operations: tuple[str, ...] = OPERATIONS
    max_number: int = 99
    output: Output = "words"
    """How the number after "equals" is written: in words, or as one token a digit,
    the highest first ("digits") or the lowest first ("reversed")."""
    notation: Output = "words"
    """How the numbers before "equals" are written."""

    def __post_init__(self) -> None:
        for name in ("output", "notation"):
            value = getattr(self, name)
            if value not in get_args(Output):
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(Output)))}")

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
        """Return the tokens of a text: digits and symbols as words, numbers in canonical form.

        A question, which is a text with an operation and no "equals", gets its
        "equals". Where `output` is not "words", digits after "equals" are
        tokens as they stand. Before it, "42" is a number, whose digits stand in the order
        of `notation`.

        Raises `InputError` for a word that is not in the vocabulary (with its
        nearest neighbour), a number that is malformed or above `max_number`, or
        a text of more than 1,000 characters.
        """
        if len(text) > LONGEST_TEXT:
            raise InputError(f"the text has {len(text):,} characters; at most {LONGEST_TEXT:,} are read")
        tokens: list[str] = []
        number: list[str] = []
        for word in _WORD.findall(split_compounds(text.lower())):
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
        """Return the ids of the canonical tokens of `text`; see `canonical` for what may be written.

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

    def spell(self, number: int, notation: Output | None = None) -> list[str]:
        """Return the tokens of a number in a notation, that of answers where none is given.

        >>> Tokenizer(output="reversed").spell(42)
        ['2', '4']
        """
        notation = notation or self.output
        if notation == "words":
            return number_to_words(number).split()
        return list(str(number)[:: -1 if notation == "reversed" else 1])

    def read(self, tokens: list[str], notation: Output | None = None) -> int | None:
        """Return the number that the tokens state exactly as `spell` would, else None."""
        notation = notation or self.output
        text = " ".join(tokens)
        try:
            digits = "".join(tokens[:: -1 if notation == "reversed" else 1])
            number = words_to_number(text) if notation == "words" else int(digits)
        except ValueError:
            return None
        return number if self.spell(number, notation) == tokens else None

    def _number(self, words: list[str], before: list[str]) -> list[str]:
        if not words:
            return []
        text = " ".join(words)
        if text.isdigit():
            text = text.lstrip("0") or "0"
        if text.isdigit() and len(text) > max(9, len(str(self.max_number))):  # slow to convert
            raise InputError(f"number out of range: {text[:20]!r} has {len(text)} digits; "
                             f"this vocabulary goes from 0 to {self.max_number}")  # fmt: skip
        value = int(text) if text.isdigit() else words_to_number(text)
        if value > self.max_number:
            raise InputError(f"number out of range: {text!r}; this vocabulary goes from 0 to {self.max_number}")
        return self.spell(value, self.output if EQUALS in before else self.notation)

    def _word(self, word: str) -> str:
        token = "times" if word == "x" else _SYMBOLS.get(word, re.sub(r"\s+", " ", word))
        if token in self.ids:
            return token
        if token in OPERATIONS:
            known = ", ".join(repr(operation) for operation in self.operations)
            raise InputError(f"unknown operation {word!r}; this vocabulary has {known}")
        readable = (*self.operations, EQUALS, *NUMBER_WORDS)
        near = difflib.get_close_matches(word[:40], readable, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; write numbers, an operation and 'equals'"
        raise InputError(f"unknown word {word[:40]!r}{hint}")
