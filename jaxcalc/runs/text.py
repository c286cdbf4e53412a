"""Numbers as text for people."""


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
