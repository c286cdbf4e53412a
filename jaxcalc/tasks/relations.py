"""What the lessons of a table have to do with one of its problems: the same fact, a number in common, or less."""

import numpy as np

from jaxcalc.tasks.encoding import sequences_of
from jaxcalc.tasks.problems import COMMUTATIVE
from jaxcalc.tasks.table import Calculator

INVERSE = {"plus": "minus", "minus": "plus", "times": "divided by", "divided by": "times"}
RELATIONS: tuple[str, ...] = (
    "the question itself",
    "the question from another side",
    "its commuted twin",
    "the same fact, another operation",
    "same operation and first number",
    "same operation and second number",
    "same operation and answer",
    "same operation",
    "another operation, the same answer",
    "the inverse operation",
    "other operations",
)
"""What a lesson has to do with a question. The first that holds counts."""


def relations(task: Calculator, lessons: np.ndarray, row: int) -> list[str]:
    """Return what each lesson, such as a row of `task.lessons`, has to do with the problem of a row: of `RELATIONS`.

    An inverse question counts as the problem that it is made of.

    >>> from jaxcalc import calculator
    >>> task = calculator(max_number=9, inverse_copies={"minus": 1})
    >>> lesson = task.tokens[task.row("three plus two")]
    >>> relations(task, np.asarray(lesson)[None], task.row("two plus three"))
    ['its commuted twin']
    """
    problems, operations = np.asarray(task.problems), task.tokenizer.operations
    forms = sequences_of(problems, task.tokenizer, np.asarray(task.answers))
    stated = {
        sequence.astype(np.int32).tobytes(): (at, form)
        for form, sequences in enumerate(forms)
        for at, sequence in enumerate(sequences)
    }
    a, index, b, c = problems[row].tolist()
    name = operations[index]

    def relation(lesson: np.ndarray) -> str:
        at, form = stated[lesson.astype(np.int32).tobytes()]
        x, index, y, z = problems[at].tolist()
        other = operations[index]
        holds = (
            at == row and form == 0,
            at == row,
            other == name and name in COMMUTATIVE and (x, y) == (b, a),
            other != name and _fact(x, other, y, z) == _fact(a, name, b, c),
            other == name and x == a,
            other == name and y == b,
            other == name and z == c,
            other == name,
            z == c,
            other == INVERSE[name],
            True,
        )
        return RELATIONS[holds.index(True)]

    return [relation(lesson) for lesson in lessons]


def _fact(a: int, operation: str, b: int, c: int) -> tuple[bool, int, int]:
    """Return what 3 + 4 = 7, 4 + 3 = 7, 7 − 3 = 4 and 7 − 4 = 3 have in common."""
    parts = (a, b) if operation in COMMUTATIVE else (b, c)
    return operation in ("plus", "minus"), min(parts), max(parts)
