"""The plain form of a text, and integers as English number words, both ways, strictly.

The canonical form has single spaces, no hyphen and no "and": 1,234,042 is
"one million two hundred thirty four thousand forty two".
"""

import re
import unicodedata

from jaxcalc.errors import InputError

LARGEST_NUMBER = 999_999_999
OPERATIONS = ("plus", "minus", "times", "divided by")
EQUALS = "equals"

_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
ONES = [*_UNITS, "ten", *_TEENS]
"""The words of the numbers below twenty, in order."""
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS = (*ONES, *TENS, "hundred", "thousand", "million")

_VALUES = {word: value for value, word in enumerate(ONES)}
_VALUES |= {word: 10 * tens for tens, word in enumerate(TENS, start=2)}

_PLAIN = str.maketrans(
    dict.fromkeys("‐‒–—―−", "-")
    | dict.fromkeys("⁄∕", "/")
    | dict.fromkeys("·∗⋅", "*")
    | {"’": "'", "\u200b": " "}  # a zero-width space
    | dict.fromkeys("\u00ad\u200c\u200d\u2060\ufeff", "")  # soft hyphen, joiners, byte order mark
)
# "forty-two" and "fortytwo", but not "five-three" or "fourtyten".
_COMPOUND = re.compile(rf"\b({'|'.join(TENS)})-?({'|'.join(ONES[1:10])})\b")
# "one-hundred-five" and "one-plus-two"; in "plus-two" the hyphen may be a sign.
_JOINING = "|".join([*OPERATIONS, EQUALS, "hundred", "thousand", "million", "and"]).replace(" ", r"[\s-]+")
_JOINED = re.compile(rf"(?<=[a-z0-9])-((?:{_JOINING})(?:-(?:{_JOINING}))*)(?![^\W\d_])(?:-(?=[a-z0-9]))?")
_COMMA = re.compile(r"\b(thousand|million)\s*,")
_GROUPS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")


def normalize(text: str) -> str:
    """Return a text in its plain form, in which each number and each operation is written in one way.

    Letters are small. Dashes are hyphens, signs and digits are ASCII's, and invisible characters are left out. There
    is a space, and neither a hyphen nor a comma, between the words of a number. Superscripts, fractions and circled
    digits stay, because their plain forms state another number: that of "3²" is "32".

    >>> normalize("Forty‑two – fortytwo")
    'forty two - forty two'
    >>> normalize("１,234 ＋ one thousand, two hundred")
    '1234 + one thousand  two hundred'
    """
    plain = (c if unicodedata.category(c) == "No" else unicodedata.normalize("NFKC", c) for c in text)
    text = "".join(plain).translate(_PLAIN).lower()
    text = _COMPOUND.sub(r"\1 \2", _JOINED.sub(lambda joined: f" {joined[1].replace('-', ' ')} ", text))
    return _GROUPS.sub(lambda number: number[0].replace(",", ""), _COMMA.sub(r"\1 ", text))


def number_to_words(number: int) -> str:
    """Return the canonical English words of an integer.

    Raises `InputError` outside −999,999,999 to 999,999,999, and `TypeError` for anything but an `int`.

    >>> number_to_words(42)
    'forty two'
    >>> number_to_words(-300_005)
    'minus three hundred thousand five'
    """
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"expected an int, got a value of type {type(number).__name__}")
    if abs(number) > LARGEST_NUMBER:
        raise InputError(f"{number} is out of range; number words go from -{LARGEST_NUMBER:,} to {LARGEST_NUMBER:,}")
    words = " ".join(_words(abs(number), joiner=()))
    return f"minus {words}" if number < 0 else words


def words_to_number(text: str) -> int:
    """Return the integer that English number words state.

    Upper and lower case count the same. Compounds may be spaced, hyphenated or glued, and an "and" or a comma may stand
    wherever British English puts one. Raises `InputError` for every other text.

    >>> words_to_number("Forty-two"), words_to_number("fortytwo")
    (42, 42)
    >>> words_to_number("three hundred twelve thousand and five")
    312005
    >>> words_to_number("twenty eleven")
    Traceback (most recent call last):
    ...
    jaxcalc.errors.InputError: 'twenty eleven' is not a number in words
    """
    words = normalize(text).split()
    negative = words[:1] in (["minus"], ["negative"])
    digits = words[1:] if negative else words
    unknown = [word for word in digits if word not in NUMBER_WORDS and word != "and"]
    if unknown:
        raise InputError(f"{_shorten(unknown[0])} is not a number word (in {_shorten(text)})")
    number = _evaluate(digits)
    # `_evaluate` accepts words in any order, so the number's own spelling is the check.
    if number > LARGEST_NUMBER or not _spells(digits, number):
        raise InputError(f"{_shorten(text)} is not a number in words")
    if negative and number == 0:
        raise InputError(f"{_shorten(text)} is not a number in words: zero has no sign")
    return -number if negative else number


def _evaluate(words: list[str]) -> int:
    total, group = 0, 0
    for word in words:
        if word in ("thousand", "million"):
            total, group = total + group * (1_000 if word == "thousand" else 1_000_000), 0
        elif word == "hundred":
            group *= 100
        elif word != "and":
            group += _VALUES[word]
    return total + group


def _spells(words: list[str], number: int) -> bool:
    """Return whether the words spell a number, with or without each "and" of British English."""
    rest = iter(words)
    word = next(rest, None)
    for expected in _words(number, ("and",)):
        if word == expected:
            word = next(rest, None)
        elif expected != "and":
            return False
    return word is None


def _words(number: int, joiner: tuple[str, ...]) -> list[str]:
    """Return the words of a non-negative number, with `joiner` between the hundreds and a rest below 100."""
    for scale, name in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred")):
        if number >= scale:
            head, rest = divmod(number, scale)
            between = joiner if 0 < rest < 100 else ()
            tail = [*between, *_words(rest, joiner)] if rest else []
            return [*_words(head, joiner), name, *tail]
    if number < 20:
        return [ONES[number]]
    tens, ones = divmod(number, 10)
    return [TENS[tens - 2], *([ONES[ones]] if ones else [])]


def _shorten(text: str) -> str:
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    return shown if len(shown) <= 80 else f"{shown[:57]}...'"  # escapes made it long
