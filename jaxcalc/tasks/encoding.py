"""A table's problems as token ids: questions, answers, inverse questions, and what an epoch visits."""

from collections.abc import Mapping

import numpy as np

from jaxcalc.batch import PAD_ID
from jaxcalc.tasks.tokenizer import END, EQUALS, Tokenizer
from jaxcalc.tasks.words import number_to_words


def lessons_of(
    problems: np.ndarray,
    is_held_out: np.ndarray,
    operations: tuple[str, ...],
    sequences: tuple[np.ndarray, np.ndarray, np.ndarray],
    copies: Mapping[str, int],
    inverse_copies: Mapping[str, int],
) -> np.ndarray:
    """Return what an epoch visits, int `[E, L]`: by training problem, its own sequence and its inverse questions.

    Args:
      sequences: as `sequences_of` returns them.
    """
    tokens, from_a, from_b = sequences
    a, index, b, _ = problems.T
    name = np.array(operations)[index]
    n_copies, n_inverse = (np.array([counts[op] for op in operations])[index] for counts in (copies, inverse_copies))
    slots = [(tokens, n_copies > i) for i in range(max(n_copies))]
    for i in range(max(n_inverse)):  # 0 times b is 0 for every b, and so is 0 divided by b: the answer is not unique
        slots.append((from_a, (n_inverse > i) & ((a > 0) | np.isin(name, ("plus", "minus")))))
        slots.append((from_b, (n_inverse > i) & ((b > 0) | (name != "times"))))
    visited = np.stack([rows & ~is_held_out for _, rows in slots], axis=1)
    return np.stack([sequence for sequence, _ in slots], axis=1)[visited]


def sequences_of(
    problems: np.ndarray, tokenizer: Tokenizer, answers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return "a op b equals" → c, "c equals a op" → b and "c equals op b" → a, each int `[N, L]`."""
    a, index, b, c = problems.T
    ids = tokenizer.ids
    words = _padded([[ids[word] for word in number_to_words(n).split()] for n in range(tokenizer.max_number + 1)])
    operation = np.array([[ids[name]] for name in tokenizer.operations])[index]
    equals = np.full_like(operation, ids[EQUALS])

    def sequence(prompt: list[np.ndarray], answer: np.ndarray) -> np.ndarray:
        rows = np.hstack(prompt)
        padding_first = np.argsort(rows != PAD_ID, axis=1, kind="stable")
        return np.hstack([np.take_along_axis(rows, padding_first, axis=1), answers[answer]])

    return (
        sequence([words[a], operation, words[b], equals], c),
        sequence([words[c], equals, words[a], operation], b),
        sequence([words[c], equals, operation, words[b]], a),
    )


def answers_of(tokenizer: Tokenizer) -> np.ndarray:
    """Return each number as an answer, its end included, int `[max_number + 1, answer_length]`."""
    answers = ([*tokenizer.spell(number), END] for number in range(tokenizer.max_number + 1))
    return _padded([[tokenizer.ids[token] for token in answer] for answer in answers])


def _padded(rows: list[list[int]]) -> np.ndarray:
    """Return rows of token ids as one array, padded on the right."""
    width = max(map(len, rows))
    return np.array([row + [PAD_ID] * (width - len(row)) for row in rows])
