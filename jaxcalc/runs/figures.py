"""Figures of a run (host)."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxcalc.runs.files import PathLike

COLOURS = {"plus": "#4477aa", "minus": "#66ccee", "times": "#ee6677", "divided by": "#ccbb44"}
"""Each operation's colour, the same in every figure."""


def learning_curve(path: PathLike, lines: Sequence[Mapping[str, Any]], watched: str, batch_size: int) -> None:
    """Write a figure of the loss at every step and of exact match by operation wherever it was measured.

    Args:
      lines: the lines of metrics.jsonl, each with "step" and either "loss" in nats or "by_operation" in shares.
      watched: which problems the shares are about, such as "held-out", for the title.
      batch_size: examples per step, for the axis of examples seen.
    """
    from matplotlib.figure import Figure  # slow to import, and training needs it only at the end

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    checks = [line for line in lines if "by_operation" in line]
    above.semilogy(list(losses), list(losses.values()), linewidth=0.6, color="#4477aa")
    above.set_ylabel("surprise per answer token (nats)")
    above.set_title("Loss on the training batches", loc="left")
    steps = [check["step"] for check in checks]
    for operation in checks[0]["by_operation"] if checks else ():
        if checks[0]["by_operation"][operation] is None:
            continue  # a small table may hold out no problem of an operation
        shares = [100 * check["by_operation"][operation] for check in checks]
        below.plot(steps, shares, marker=".", label=operation, color=COLOURS.get(operation))
    below.set_ylim(-2, 102)
    below.set_ylabel("exact match (%)")
    below.set_xlabel("training step")
    below.set_title(f"Whole answers right, on {watched} problems", loc="left")
    if checks:
        below.legend(loc="lower right", frameon=False)
    seen = above.secondary_xaxis("top", functions=(lambda step: step * batch_size, lambda n: n / batch_size))
    seen.set_xlabel(f"examples seen (step × {batch_size:,})")
    seen.xaxis.set_major_formatter("{x:,.0f}")
    below.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
