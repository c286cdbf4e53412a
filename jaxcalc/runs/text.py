"""Numbers and lines as text for people."""

import shutil
import textwrap


def wrapped(text: str, indent: str = "    ") -> str:
    """Return a text in lines that fit the terminal, those after the first indented. "%" stays beside its number.

    >>> print(wrapped("word " * 14 + "and 99.98 %"))
    word word word word word word word word word word word word word word and
        99.98 %
    """
    joined = text.replace(" %", "\u00a0%")  # at which no line breaks
    return textwrap.fill(joined, shutil.get_terminal_size().columns, subsequent_indent=indent).replace("\u00a0", " ")


def percent(share: float | None) -> str:
    """Return a share as a percentage, or "–" for None. Only 0 and 1 themselves become 0 % and 100 %.

    >>> percent(0.98765), percent(1.0), percent(0.99999), percent(1e-9)
    ('98.77 %', '100 %', '99.99 %', '<0.01 %')
    """
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return "<0.01 %" if share < 1e-4 else f"{min(100 * share, 99.99):.2f} %"
