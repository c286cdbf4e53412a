"""The one exception that this library raises for input it cannot use, and how its messages name a value."""

from collections.abc import Iterable


class InputError(ValueError):
    """The caller gave something that cannot be used; the message names it and says what to do.

    It is a `ValueError`, so library users need not know this class. The scripts catch it and nothing else: they print
    its message in one line and end with exit status 2. Any other exception is a bug and keeps its traceback.
    """


def shown(value: object) -> str:
    """Return a value as a message names it: a text or a number as it is, all else by its type.

    >>> shown("mod"), shown([1.0, 2.0])
    ("'mod'", 'of type list')
    """
    return f"{value!r:.100}" if isinstance(value, str | int | float | None) else f"of type {type(value).__name__}"


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise `InputError` for a value that is not one of some texts."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, known))}")
