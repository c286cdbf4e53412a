"""What the page shows of a ledger: surprise and credit at some of its steps, and the lessons that counted most."""

from collections.abc import Collection

import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.runs.account import Ledger, LessonRow

N_POINTS = 180
"""Steps of a curve, apart from those of snapshots."""
MOST, AGAINST = 10, 5
"""Lessons shown: those that taught it most, and those that pulled against it."""


def timeline_data(ledger: Ledger, snapshots: Collection[int]) -> dict[str, object]:
    """Return what the page shows of a ledger, with numbers of four digits. It has all steps of snapshots.

    Raises `InputError` for a ledger that ends before the last snapshot or begins after the first one.
    """
    steps = np.append(ledger.steps, ledger.steps[-1] + 1)
    lacking = sorted({*snapshots} - {*steps.tolist()})
    if lacking:
        raise InputError(
            f"the ledger of {ledger.question!r} goes from step {steps[0]:,} to {steps[-1]:,}, and the run has a "
            f"snapshot of step {lacking[-1]:,}; the page needs the ledger of the whole run"
        )
    chosen = np.geomspace(steps[0] + 1, steps[-1] + 1, N_POINTS).round().astype(int) - 1  # even on the page's axis
    chosen = np.unique([*chosen, *snapshots])
    at = chosen - steps[0]

    def credit(added: np.ndarray) -> list[float]:
        return _rounded(np.append(0.0, np.cumsum(added))[at])

    return {
        "question": ledger.question,
        "remainder": _rounded(np.array([ledger.remainder]))[0],
        "steps": chosen.tolist(),
        "surprise": _rounded(ledger.surprise[at]),
        "stages": [{"name": name, "credit": credit(added)} for name, added in ledger.by_stage.items()],
        "taught": [_lesson(row) for row in ledger.by_lesson[:MOST] if row.nats > 0],
        "against": [_lesson(row) for row in ledger.by_lesson[::-1][:AGAINST] if row.nats < 0],
    }


def _lesson(row: LessonRow) -> dict[str, object]:
    return {**row._asdict(), "nats": _rounded(np.array([row.nats]))[0]}


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
