"""Questions in text: one parser and one encoder for every task."""

import itertools

import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.tasks.problems import Problem
from jaxcalc.tasks.tokenizer import NEGATIVE, PAD, Tokenizer
from jaxcalc.tasks.words import EQUALS, number_to_words

_LONGEST_QUOTE = 60  # characters of a prompt that an error repeats


def parse(text: str, tokenizer: Tokenizer, n_numbers: int) -> Problem:
    """Return the problem that a question of `n_numbers` numbers states.

    Raises `InputError` for a text that is not exactly one such question, for a number out of range and
    for a division by zero. The message names what is wrong and, where it helps, a question to type instead.

    >>> parse("forty two / 6", Tokenizer(), 2)
    Problem(numbers=(42, 6), operations=('divided by',))
    """
    tokens = tokenizer.canonical(text)
    hint = f"ask for example {_example(tokenizer, n_numbers)!r}"
    operations = tuple(token for token in tokens if token in tokenizer.operations)
    if not tokens:
        raise InputError(f"the prompt is empty; {hint}")
    if operations and len(operations) != n_numbers - 1:
        if any(token == "minus" and last in (None, *operations) for last, token in itertools.pairwise([None, *tokens])):
            raise InputError(f"{NEGATIVE}; this vocabulary goes from 0 to {tokenizer.max_number}")
        count = "1 operation" if len(operations) == 1 else f"{len(operations)} operations"
        raise InputError(f"the prompt has {count} ({', '.join(operations[:4])}), not {n_numbers - 1}; {hint}")
    if not operations or tokens.index(EQUALS) != len(tokens) - 1:
        form = " operation ".join(["number"] * n_numbers)
        raise InputError(f"the prompt is not {form!r}: {_quote(tokens)}; {hint}")
    groups = [[]]
    for token in tokens[:-1]:
        if token in operations:
            groups.append([])
        else:
            groups[-1].append(token)
    numbers = []
    for index, group in enumerate(groups):
        if not group:
            side = f"after {operations[index - 1]!r}" if index else f"before {operations[0]!r}"
            raise InputError(f"there is no number {side}; {hint}")
        number = tokenizer.read(group, tokenizer.notation)
        if number is None:
            raise InputError(f"{_quote(group)} is not a number; {hint}")
        if number > tokenizer.max_number:  # the tokenizer saw only its parts, as in "twenty 8"
            raise InputError(
                f"number out of range: {_quote(group)}; this vocabulary goes from 0 to {tokenizer.max_number}"
            )
        numbers.append(number)
    if ("divided by", 0) in itertools.zip_longest(operations, numbers[1:]):
        raise InputError("division by zero has no answer; divide by another number")
    return Problem(tuple(numbers), operations)


def encode(problem: Problem, tokenizer: Tokenizer, prompt_length: int, slot: int = 0) -> np.ndarray:
    """Return the tokens of a question, int32 `[prompt_length]`, its last one "equals".

    Each number is padded to `slot` tokens: in front, or behind where its lowest digit stands first. What is still
    missing to `prompt_length` is padded in front of the whole.

    >>> encode(Problem((2, 3), ("plus",)), Tokenizer(), 6)
    array([ 0,  0,  9,  3, 10,  2], dtype=int32)
    """
    words: list[str] = []
    for number, after in zip(problem.numbers, (*problem.operations, EQUALS), strict=True):
        spelled = tokenizer.spell(number, tokenizer.notation)
        padding = [PAD] * (slot - len(spelled))
        words += [*spelled, *padding] if tokenizer.notation == "digits-reversed" else [*padding, *spelled]
        words.append(after)
    padded = [PAD] * (prompt_length - len(words)) + words
    return np.array([tokenizer.ids[word] for word in padded], np.int32)


def _example(tokenizer: Tokenizer, n_numbers: int) -> str:
    """Return a question, in words where prompts are: 4 and 2, which every operation takes, then ones."""
    numbers = [min(number, tokenizer.max_number) for number in (4, 2, 1, 1)[:n_numbers]]
    spelled = [number_to_words(number) if tokenizer.notation == "words" else str(number) for number in numbers]
    return f" {tokenizer.operations[0]} ".join(spelled)


def _quote(tokens: list[str]) -> str:
    return repr(" ".join(tokens)[:_LONGEST_QUOTE])
