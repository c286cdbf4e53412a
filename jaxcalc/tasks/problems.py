"""Single problems, as exact integers on the host."""

import operator
from typing import NamedTuple

COMMUTATIVE = ("plus", "times")
EXACT = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}


class Problem(NamedTuple):
    """One question, such as "two plus three"."""

    a: int
    operation: str
    b: int

    @property
    def answer(self) -> int | None:
        """The integer result, or None where a division is not exact. Never asked for a division by zero."""
        if self.operation == "divided by":
            quotient, remainder = divmod(self.a, self.b)
            return None if remainder else quotient
        return EXACT[self.operation](self.a, self.b)

    def __str__(self) -> str:
        """Return it as one would type it, such as "2 plus 3"."""
        return f"{self.a} {self.operation} {self.b}"

    @property
    def numbers(self) -> tuple[int, ...]:
        """Both numbers."""
        return self.a, self.b

    @property
    def operations(self) -> tuple[str, ...]:
        """The one operation."""
        return (self.operation,)


class Expression(NamedTuple):
    """A question of two or more numbers, such as "two plus three minus one", read from left to right."""

    numbers: tuple[int, ...]
    operations: tuple[str, ...]

    @property
    def results(self) -> tuple[int | None, ...]:
        """The first number, and the result after each operation: None from where a division is not exact.

        Never asked for a division by zero.
        """
        results: list[int | None] = [self.numbers[0]]
        for operation, number in zip(self.operations, self.numbers[1:], strict=True):
            before = results[-1]
            results.append(None if before is None else Problem(before, operation, number).answer)
        return tuple(results)

    @property
    def answer(self) -> int | None:
        """The last result."""
        return self.results[-1]

    def __str__(self) -> str:
        """Return it as one would type it.

        >>> str(Expression((2, 3), ("plus",)))
        '2 plus 3'
        """
        pairs = zip(self.operations, self.numbers[1:], strict=True)
        return " ".join([str(self.numbers[0]), *(f"{operation} {number}" for operation, number in pairs)])


def carry_chain(problem: Problem | Expression) -> int | None:
    """Return over how many places in a row a carry, or what is borrowed, runs at most; None with times or divided by.

    >>> carry_chain(Problem(95, "plus", 17)), carry_chain(Problem(1000, "minus", 1)), carry_chain(Problem(2, "plus", 3))
    (2, 3, 0)
    """
    if not set(problem.operations) <= {"plus", "minus"}:
        return None
    total, longest = problem.numbers[0], 0
    for operation, number in zip(problem.operations, problem.numbers[1:], strict=True):
        result = EXACT[operation](total, number)
        larger, smaller = (result, number) if operation == "plus" else (total, number)
        # A place borrows, or in larger = smaller + rest carries, where the places up to it of larger are the smaller.
        moduli = (10**place for place in range(1, len(str(larger)) + 1))
        carries = "".join("1" if larger % modulus < smaller % modulus else "0" for modulus in moduli)
        longest = max(longest, *map(len, carries.split("0")))
        total = result
    return longest
