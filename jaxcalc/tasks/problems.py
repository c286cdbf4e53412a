"""Single problems, as exact integers on the host."""

import operator
from collections.abc import Iterable
from typing import NamedTuple

from jaxcalc.errors import InputError, shown
from jaxcalc.tasks.words import OPERATIONS

COMMUTATIVE = ("plus", "times")
EXACT = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
"""The operations whose result is always an integer."""


class _Parts(NamedTuple):
    numbers: tuple[int, ...]
    operations: tuple[str, ...]


class Problem(_Parts):
    """A question of two or more numbers, read from left to right: `numbers[0] operations[0] numbers[1] …`.

    Raises `InputError` for an unknown operation, and for a text or a number in place of a tuple.

    >>> problem = Problem((2, 3), ("plus",))
    >>> str(problem), problem.answer
    ('2 plus 3', 5)
    """

    __slots__ = ()

    def __new__(cls, numbers: tuple[int, ...], operations: tuple[str, ...], *more: object) -> "Problem":
        if more or isinstance(numbers, int):
            raise InputError("a problem is all its numbers, then all its operations: Problem((2, 3), ('plus',))")
        if isinstance(operations, str):
            raise InputError(f"operations is {operations!r}; it must be a tuple, such as ('plus',)")
        check_known(operations)
        return super().__new__(cls, numbers, operations)

    @property
    def results(self) -> tuple[int | None, ...]:
        """The first number, then the result after each operation; None from the first division that is not exact.

        Raises `ZeroDivisionError` for a division by zero, which no task and no parsed question contains.
        """
        results: list[int | None] = [self.numbers[0]]
        for operation, number in zip(self.operations, self.numbers[1:], strict=True):
            before = results[-1]
            results.append(None if before is None else _result(before, operation, number))
        return tuple(results)

    @property
    def answer(self) -> int | None:
        """The last result."""
        return self.results[-1]

    def __str__(self) -> str:
        """Return the question as one would type it, such as "2 plus 3"."""
        pairs = zip(self.operations, self.numbers[1:], strict=True)
        return " ".join([str(self.numbers[0]), *(f"{operation} {number}" for operation, number in pairs)])


def check_known(operations: Iterable[str]) -> None:
    """Raise `InputError` for an operation that is unknown."""
    for operation in operations:
        if not isinstance(operation, str) or operation not in OPERATIONS:
            known = ", ".join(map(repr, OPERATIONS))
            raise InputError(f"unknown operation {shown(operation)}; the operations are {known}")


def _result(a: int, operation: str, b: int) -> int | None:
    """Return the result of one operation, or None where a division is not exact."""
    if operation == "divided by":
        quotient, remainder = divmod(a, b)
        return None if remainder else quotient
    return EXACT[operation](a, b)


def carry_chain(problem: Problem) -> int | None:
    """Return the largest number of places in a row that carry or borrow; None for problems of times and divided by.

    >>> carry_chain(Problem((95, 17), ("plus",))), carry_chain(Problem((1000, 1), ("minus",)))
    (2, 3)
    """
    if not set(problem.operations) <= {"plus", "minus"}:
        return None
    total, longest = problem.numbers[0], 0
    for operation, number in zip(problem.operations, problem.numbers[1:], strict=True):
        result = EXACT[operation](total, number)
        larger, smaller = (result, number) if operation == "plus" else (total, number)
        # In larger = smaller + rest a place carries if larger has a smaller number than smaller up to that place.
        moduli = (10**place for place in range(1, len(str(larger)) + 1))
        carries = "".join("1" if larger % modulus < smaller % modulus else "0" for modulus in moduli)
        longest = max(longest, *map(len, carries.split("0")))
        total = result
    return longest
